"""The node's network side: who is connected, and how streams are opened and served."""

from p2pnode.host.interfaces import (
    PROGRESS_BYTES,
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
    finishing,
)

__all__ = [
    "PROGRESS_BYTES",
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
    "finishing",
]
