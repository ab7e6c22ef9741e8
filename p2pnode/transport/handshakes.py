"""The inbound handshakes under way, of a host or of a transport that has some of its own."""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator


class Handshakes:
    """Counts them; when there are too many, one gives way to a new one.

    To refuse the new one would let anybody shut everybody out, at the cost of a few connections
    that say nothing. A handshake takes a few round trips, so the oldest is the likeliest to be
    going nowhere; and it is taken from whoever has the most under way.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._under_way: dict[object, tuple[Hashable, Callable[[], object]]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._under_way)

    @contextlib.contextmanager
    def hold(self, origin: Hashable, give_way: Callable[[], object]) -> Iterator[None]:
        """Count one while the block runs.

        Args:
            origin: where it comes from, without its port.
            give_way: called when it has to make room for another one; it counts no longer.
        """
        if len(self._under_way) >= self.limit:
            self._drop_one()
        key = object()
        self._under_way[key] = (origin, give_way)
        try:
            yield
        finally:
            self._under_way.pop(key, None)

    def end_all(self) -> None:
        """Have all give way."""
        while self._under_way:
            _, (_, give_way) = self._under_way.popitem()
            give_way()

    def _drop_one(self) -> None:
        crowds = Counter(origin for origin, _ in self._under_way.values())
        key = max(self._under_way, key=lambda each: crowds[self._under_way[each][0]])
        _, give_way = self._under_way.pop(key)
        give_way()
