"""How much of this node one peer, and all peers together, may use.

Pure bookkeeping: every use is held as a context manager, so that nothing is ever left charged.
What exceeds a budget is refused before anything is decoded or allocated for it.
"""

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import ResourceLimitError
from p2pnode.events import Event
from p2pnode.wire.peer_id import PeerId

_NODE: Final = ""  # the key of budgets that all peers share


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRefused(Event):
    """A connection or stream from elsewhere was refused because a budget is used up."""

    peer_id: PeerId | None
    address: Multiaddr
    reason: str


class _Budget:
    """Counts uses by key, up to a limit."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._used: Counter[Hashable] = Counter()

    def used(self, key: Hashable = _NODE) -> int:
        return self._used[key]

    @contextlib.contextmanager
    def hold(self, key: Hashable = _NODE) -> Iterator[None]:
        if self._used[key] >= self._limit:
            raise ResourceLimitError(f"the limit of {self._limit} {self._what} is reached")
        self._used[key] += 1
        try:
            yield
        finally:
            self._used[key] -= 1
            if not self._used[key]:
                del self._used[key]


class Budgets:
    """All budgets of a host."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._handshakes = _Budget(settings.max_handshakes, "inbound handshakes at once")
        self._connections = _Budget(settings.max_connections, "connections")
        self._peer_connections = _Budget(
            settings.max_connections_per_peer, "connections with one peer"
        )
        self._inbound_streams = _Budget(
            settings.max_inbound_streams_per_peer, "inbound streams from one peer"
        )
        self._protocol_streams = _Budget(
            settings.max_inbound_streams_per_protocol_per_peer,
            "inbound streams of one protocol from one peer",
        )
        self._max_connections = settings.max_connections

    @property
    def is_full(self) -> bool:
        """Whether no further connection fits until another one ends."""
        return self._connections.used() >= self._max_connections

    @property
    def handshakes(self) -> int:
        """How many inbound handshakes are under way."""
        return self._handshakes.used()

    def inbound_handshake(self) -> contextlib.AbstractContextManager[None]:
        """Charge a connection that has not said yet who it is.

        Raises:
            ResourceLimitError: on entry, when too many are under way.
        """
        return self._handshakes.hold()

    @contextlib.contextmanager
    def connection(self, peer_id: PeerId) -> Iterator[None]:
        """Charge an authenticated connection to the node and to its peer.

        Raises:
            ResourceLimitError: either has too many.
        """
        with self._connections.hold(), self._peer_connections.hold(peer_id):
            yield

    def inbound_stream(self, peer_id: PeerId) -> contextlib.AbstractContextManager[None]:
        """Charge a stream that a peer opened; raises as `inbound_handshake`."""
        return self._inbound_streams.hold(peer_id)

    def protocol_stream(
        self, peer_id: PeerId, protocol: str
    ) -> contextlib.AbstractContextManager[None]:
        """Charge a negotiated stream to its protocol; raises as `inbound_handshake`."""
        return self._protocol_streams.hold((peer_id, protocol))
