"""Why a stream was reset or a connection closed, in numbers that libp2p implementations share.

On Yamux a reset carries its code in the length of the window update it travels on, and a
connection's close in that of the go-away. Peers that know no codes take them for a reset or a
close like any other. Source: libp2p/specs, error-codes.
"""

from enum import IntEnum

from p2pnode.errors import ResourceLimitError


class StreamCode(IntEnum):
    """Why a stream was reset."""

    NONE = 0
    NEGOTIATION_FAILED = 0x1001
    RESOURCE_LIMIT_EXCEEDED = 0x1002
    RATE_LIMITED = 0x1003
    PROTOCOL_VIOLATION = 0x1004
    SUPPLANTED = 0x1005
    GARBAGE_COLLECTED = 0x1006
    SHUTDOWN = 0x1007
    GATED = 0x1008


class ConnectionCode(IntEnum):
    """Why a connection was closed."""

    NONE = 0
    NEGOTIATION_FAILED = 0x1000
    RESOURCE_LIMIT_EXCEEDED = 0x1001
    RATE_LIMITED = 0x1002
    PROTOCOL_VIOLATION = 0x1003
    SUPPLANTED = 0x1004
    GARBAGE_COLLECTED = 0x1005
    SHUTDOWN = 0x1006
    GATED = 0x1007


def stream_code(refusal: ResourceLimitError) -> StreamCode:
    """Return the code of a stream that a budget of ours refuses."""
    if refusal.limit is not None and refusal.limit.is_rate:
        return StreamCode.RATE_LIMITED
    return StreamCode.RESOURCE_LIMIT_EXCEEDED


def connection_code(refusal: ResourceLimitError) -> ConnectionCode:
    """Return the code of a connection that a budget of ours refuses."""
    if refusal.limit is not None and refusal.limit.is_rate:
        return ConnectionCode.RATE_LIMITED
    return ConnectionCode.RESOURCE_LIMIT_EXCEEDED


def stream_reason(code: int) -> str:
    """Say what a stream's code means: `code 0x1002, resource limit exceeded`."""
    return _reason(code, StreamCode)


def connection_reason(code: int) -> str:
    """Say what a connection's code means, as `stream_reason`."""
    return _reason(code, ConnectionCode)


def _reason(code: int, known: type[IntEnum]) -> str:
    try:
        name = known(code).name
    except ValueError:
        return f"code {code}"
    return f"code {code:#x}, {name.lower().replace('_', ' ')}"
