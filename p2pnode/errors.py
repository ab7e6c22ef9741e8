"""Every public exception, in one tree.

The first cut says who erred: `LocalError` is ours to mend (a bad argument, a bad file, a port in
use), `RemoteError` is about a peer or the path to it. An error with a numeric `code` can cross the
wire; `from_code` turns the number back into the class on the other side. The message of each is
one sentence that says what to do, and the command line prints it as it is.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Final, TypeVar

E = TypeVar("E", bound=BaseException)


class P2PNodeError(Exception):
    """The base of every error this package raises on purpose."""

    code: ClassVar[int | None] = None


# --- ours to mend -------------------------------------------------------------------------------


class LocalError(P2PNodeError):
    """Something on this side must change before trying again."""


class ConfigError(LocalError):
    """A setting is missing, unknown or out of range."""


class InvalidAddressError(LocalError, ValueError):
    """A multiaddr cannot be read or names a transport this node does not have."""


class InvalidKeyError(LocalError, ValueError):
    """Key material or a peer id is malformed."""


class KeyFileError(LocalError):
    """The identity file is unreadable, corrupt, or open to other users."""


class DataDirInUseError(LocalError):
    """Another daemon runs on the same data directory."""


class DaemonNotRunningError(LocalError):
    """No daemon runs on this data directory."""


class AddressInUseError(LocalError):
    """A listen address is taken by another program."""


class CheckpointError(LocalError):
    """A checkpoint cannot be read or written; what is on disk is left as it is."""


class ModelError(LocalError):
    """A model's directory cannot be read, or holds a model that cannot be hosted."""


class StorageError(LocalError):
    """The disk does not take an expert's state, or does not give it back; make room on it."""


class InvalidUidError(LocalError, ValueError):
    """An expert uid or pattern cannot be read."""


class InvalidTokenError(LocalError, ValueError):
    """An invite or token cannot be read, or was not signed by its run."""


class MessageTooLargeError(LocalError, ValueError):
    """A message is larger than pub/sub carries; publish a digest, and serve the rest on request."""


class MemoryLimitError(LocalError):
    """What is to be hosted does not fit the memory that the machine's owner lets the node have."""


class NonFiniteError(LocalError, ValueError):
    """A tensor to be sent holds NaN or infinite values."""


# --- about a peer or the path to it -------------------------------------------------------------


class RemoteError(P2PNodeError):
    """A peer, or the path to it, failed."""


class DialError(RemoteError):
    """No address of the peer could be reached."""


class HolePunchError(DialError):
    """No hole could be punched: the peer and this node did not get through each other's routers.

    Attributes:
        reasons: by address, what became of dialling it.
    """

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message, reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return str(self.args[0])


class NoRouteError(DialError):
    """This machine has no way there now: its own network is down, or it lacks what a dial takes."""


class PortMappingError(RemoteError):
    """The router does not let others in: it refuses, is silent, or cannot be asked."""


class RelayRefusedError(DialError):
    """A relay does not do what it was asked for.

    Attributes:
        status: the number it gave for the reason, see `p2pnode.protocols.relay.messages.Status`.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class NoPeersError(RemoteError):
    """The node knows no peer that could answer; give it a reachable bootstrap address."""


class NotFoundError(RemoteError):
    """The DHT holds no such record."""


class ConnectionClosedError(RemoteError):
    """The connection ended."""


class LimitedConnectionError(RemoteError):
    """The peer is connected only through a relay that limits what it carries."""


class StreamResetError(RemoteError):
    """The stream was reset by the peer, or by this side."""


class ProtocolError(RemoteError):
    """The peer broke the rules of a protocol."""


class HandshakeError(ProtocolError):
    """The secure handshake failed: wrong identity, bad signature or broken messages."""


class WrongPeerError(HandshakeError):
    """Another peer than the one that was dialled answers there."""


class SimultaneousOpenError(HandshakeError):
    """Both ends dialled from the ports they listen on, and TCP made one connection of the two."""


class NegotiationError(ProtocolError):
    """No protocol could be agreed on."""


class ProtocolNotSupportedError(NegotiationError):
    """The peer speaks none of the protocols asked for."""


class Limit(StrEnum):
    """Which budget of this node refused something: whose it is, and of what.

    `address` and `network` are the small and the large subnet a peer connects from; `pair` is one
    protocol with one peer. Rates are of new ones in a second.
    """

    NODE_CONNECTIONS = "node.connections"
    NODE_INBOUND_CONNECTIONS = "node.inbound_connections"
    NODE_OUTBOUND_CONNECTIONS = "node.outbound_connections"
    NODE_HANDSHAKES = "node.handshakes"
    NODE_INBOUND_STREAMS = "node.inbound_streams"
    NODE_OUTBOUND_STREAMS = "node.outbound_streams"
    NODE_BYTES = "node.bytes"
    NETWORK_INBOUND_CONNECTIONS = "network.inbound_connections"
    NETWORK_CONNECTION_RATE = "network.connection_rate"
    NETWORK_BYTES = "network.bytes"
    ADDRESS_INBOUND_CONNECTIONS = "address.inbound_connections"
    ADDRESS_CONNECTION_RATE = "address.connection_rate"
    ADDRESS_BYTES = "address.bytes"
    PEER_CONNECTIONS = "peer.connections"
    PEER_INBOUND_STREAMS = "peer.inbound_streams"
    PEER_OUTBOUND_STREAMS = "peer.outbound_streams"
    PEER_STREAM_RATE = "peer.stream_rate"
    PEER_BYTES = "peer.bytes"
    CONNECTION_STREAMS = "connection.streams"
    CONNECTION_BYTES = "connection.bytes"
    PROTOCOL_INBOUND_STREAMS = "protocol.inbound_streams"
    PROTOCOL_OUTBOUND_STREAMS = "protocol.outbound_streams"
    PAIR_INBOUND_STREAMS = "pair.inbound_streams"
    PAIR_OUTBOUND_STREAMS = "pair.outbound_streams"

    @property
    def is_rate(self) -> bool:
        """Whether waiting a second helps."""
        return self.value.endswith("_rate")


class ResourceLimitError(RemoteError):
    """A budget of this node or of the peer is used up; try again later or elsewhere.

    Attributes:
        limit: which budget of this node, or None if it is the peer's.
    """

    code = 429

    def __init__(self, message: str, limit: Limit | None = None) -> None:
        super().__init__(message, limit)
        self.limit = limit

    def __str__(self) -> str:
        return str(self.args[0])


class CallError(RemoteError):
    """A tensor call failed; the subclasses say why, and their codes cross the wire."""

    code = 500


class BadRequestError(CallError):
    """The request cannot be understood."""

    code = 400


class NotAMemberError(CallError):
    """The caller has not shown that it may do this in the run."""

    code = 401


class PermissionDeniedError(NotAMemberError):
    """The caller's token does not allow this operation."""

    code = 403


class TokenExpiredError(NotAMemberError):
    """The caller's token has expired; ask the run's owner for a new invite."""

    code = 410


class WrongRunError(NotAMemberError):
    """The token belongs to another run than the expert."""

    code = 421


class UnknownExpertError(CallError):
    """The host does not serve this expert."""

    code = 404


class SchemaError(CallError, TypeError):
    """A tensor's shape or dtype is not what the expert takes."""

    code = 422


class TensorTooLargeError(CallError):
    """A call's tensors are larger than the host takes in one call."""

    code = 413


class OverloadedError(CallError):
    """The host's queue or the caller's budget is full; try again later or elsewhere."""

    code = 503


class PausedError(CallError):
    """The host takes no calls now, as its owner paused or stopped it; go elsewhere."""

    code = 423


class DeadlineExceededError(CallError, TimeoutError):
    """The deadline passed before the answer came."""

    code = 504


class AlreadyAppliedError(CallError):
    """This backward call was applied earlier, and its gradients cannot be computed again."""

    code = 409


class StaleUpdateError(CallError):
    """The layer has taken too many steps since the samples' forward pass; the update is dropped."""

    code = 417


class BehindError(CallError):
    """This peer's weights are not those of its swarm; it fetches them before it serves again."""

    code = 425


class StepUnderWayError(CallError):
    """Another step of this expert has its turn at the peer; ask again when it is over."""

    code = 427


class StepLostError(CallError):
    """This step is not under way at the peer any more; its part has to be computed elsewhere."""

    code = 428


class ExpertFailedError(CallError):
    """The expert itself failed while computing."""

    code = 520


class RoundError(CallError):
    """The peer does not take this contribution: it is late, comes twice, or is of another group."""

    code = 412


class HostLostError(CallError):
    """The host died or became unreachable during the call."""


class TransferError(RemoteError):
    """A state could not be fetched: no holder is left that gives the rest of it."""


class AveragingError(RemoteError):
    """A round of averaging ended without a result; the tensors are as they were."""


class NoLiveExpertError(RemoteError):
    """No live host was found for an expert, or none of those chosen answered."""


def _coded(kind: type[P2PNodeError]) -> dict[int, type[P2PNodeError]]:
    found = {kind.code: kind} if kind.code is not None and "code" in vars(kind) else {}
    for child in kind.__subclasses__():
        found |= _coded(child)
    return found


_BY_CODE: Final = _coded(P2PNodeError)


def from_code(code: int, message: str) -> P2PNodeError:
    """Build the error that `code` names; an unknown code gives a plain `CallError`."""
    return _BY_CODE.get(code, CallError)(message)


def first_leaf(group: BaseExceptionGroup[E]) -> E:
    """Return the first of the errors that a group and the groups within it hold."""
    error: E | BaseExceptionGroup[E] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
