"""The node's network side: who is connected, and how streams are opened and served."""

from p2pnode.host.interfaces import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    LocalPeerChanged,
    PeerIdentified,
    PeerMisbehaved,
    Reachability,
    ReachabilityChanged,
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
    "Reachability",
    "ReachabilityChanged",
    "Stream",
    "StreamHandler",
]
