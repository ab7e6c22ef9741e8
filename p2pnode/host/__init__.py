"""The node's network side: who is connected, and how streams are opened and served."""

from p2pnode.host.interfaces import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    LocalPeerChanged,
    PeerIdentified,
    PeerMisbehaved,
    Stream,
    StreamHandler,
)

__all__ = [
    "Connection",
    "ConnectionEnded",
    "ConnectionOpened",
    "Host",
    "LocalPeerChanged",
    "PeerIdentified",
    "PeerMisbehaved",
    "Stream",
    "StreamHandler",
]
