"""Ping: 32 bytes are sent and come back, as libp2p/specs, ping, has it."""

from typing import Final

from p2pnode.errors import ProtocolError

PROTOCOL: Final = "/ipfs/ping/1.0.0"
PAYLOAD_BYTES: Final = 32
MAX_INBOUND_STREAMS: Final = 2  # of one peer, as the specification has it


def check_echo(sent: bytes, received: bytes) -> None:
    """Compare what came back with what was sent.

    Raises:
        ProtocolError: it is something else.
    """
    if received != sent:
        raise ProtocolError("the answer to a ping is not what was sent")
