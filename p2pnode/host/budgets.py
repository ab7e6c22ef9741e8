"""How much of this node one peer, and all peers together, may use.

Pure bookkeeping: every use is held as a context manager, so that nothing is ever left charged.
What exceeds a budget is refused before anything is decoded or allocated for it.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
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


class _Handshakes:
    """The inbound handshakes under way; when there are too many, one gives way to a new one.

    To refuse the new one would let anybody shut everybody out, at the cost of a few connections
    that say nothing. A handshake takes a few round trips, so the oldest is the likeliest to be
    going nowhere; and it is taken from whoever has the most under way.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: dict[object, tuple[Hashable, Callable[[], object]]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._under_way)

    @contextlib.contextmanager
    def hold(self, origin: Hashable, give_way: Callable[[], object]) -> Iterator[None]:
        if len(self._under_way) >= self._limit:
            self._drop_one()
        key = object()
        self._under_way[key] = (origin, give_way)
        try:
            yield
        finally:
            self._under_way.pop(key, None)

    def _drop_one(self) -> None:
        crowds = Counter(origin for origin, _ in self._under_way.values())
        key = max(self._under_way, key=lambda each: crowds[self._under_way[each][0]])
        _, give_way = self._under_way.pop(key)
        give_way()


class Budgets:
    """All budgets of a host."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._handshakes = _Handshakes(settings.max_handshakes)
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
        return len(self._handshakes)

    def inbound_handshake(
        self, origin: Hashable, give_way: Callable[[], object]
    ) -> contextlib.AbstractContextManager[None]:
        """Charge a connection that has not said yet who it is.

        Args:
            origin: where it comes from, without its port.
            give_way: called when it has to make room for another one; it is no longer charged.
        """
        return self._handshakes.hold(origin, give_way)

    @contextlib.contextmanager
    def connection(self, peer_id: PeerId) -> Iterator[None]:
        """Charge an authenticated connection to the node and to its peer.

        Raises:
            ResourceLimitError: either has too many.
        """
        with self._connections.hold(), self._peer_connections.hold(peer_id):
            yield

    def inbound_stream(self, peer_id: PeerId) -> contextlib.AbstractContextManager[None]:
        """Charge a stream that a peer opened.

        Raises:
            ResourceLimitError: on entry, when the peer has too many.
        """
        return self._inbound_streams.hold(peer_id)

    def protocol_stream(
        self, peer_id: PeerId, protocol: str
    ) -> contextlib.AbstractContextManager[None]:
        """Charge a negotiated stream to its protocol; raises as `inbound_stream`."""
        return self._protocol_streams.hold((peer_id, protocol))
