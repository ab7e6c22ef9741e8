"""Why a QUIC connection has ended that this side did not close, in a sentence. Pure."""

from typing import Final

from aioquic.quic.packet import QuicErrorCode

from p2pnode.errors import ConnectionClosedError, HandshakeError, P2PNodeError, ProtocolError
from p2pnode.transport.quic.engine import Closing
from p2pnode.wire.error_codes import connection_reason

OTHER_PROTOCOL: Final = "the other end does not speak libp2p over QUIC"
_NO_APPLICATION_PROTOCOL: Final = QuicErrorCode.CRYPTO_ERROR + 120  # RFC 7301


def why_ended(closing: Closing, *, is_proven: bool) -> P2PNodeError:
    """Return the error that says it.

    Args:
        closing: what the engine knows of the end.
        is_proven: whether the peer had proven its identity; before that, a handshake has failed.
    """
    said = f": {closing.reason}" if closing.reason else ""
    if closing.is_application and not is_proven:
        return HandshakeError(
            f"the peer refused the connection ({connection_reason(closing.code)})"
        )
    if closing.is_application and closing.code == 0:
        return ConnectionClosedError("the peer closed the connection")
    if closing.is_application:
        return ConnectionClosedError(
            f"the peer closed the connection ({connection_reason(closing.code)})"
        )
    if not closing.is_remote and closing.code == QuicErrorCode.INTERNAL_ERROR and not is_proven:
        return HandshakeError(f"the handshake failed{said}")
    if not closing.is_remote and "timeout" in closing.reason.lower():
        return ConnectionClosedError("the peer has fallen silent")
    if closing.code == _NO_APPLICATION_PROTOCOL:
        return HandshakeError(OTHER_PROTOCOL)
    if not closing.is_remote:
        return ProtocolError(f"the peer broke a rule of QUIC{said}")
    if not is_proven:
        return HandshakeError(f"the peer gave up the handshake (code {closing.code:#x}{said})")
    return ConnectionClosedError(f"the peer gave up the connection (code {closing.code:#x}{said})")
