"""RPCs of which only a part has come: how much of them is kept, and for how long.

An RPC must be whole within a time. When more is kept of all of them than may be, the one whose
time is over first gives way. An honest RPC takes a few round trips, so that is one of those who
stall on purpose, not the one that came last.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Unfinished:
    """What is kept of RPCs that are not whole, from all peers together.

    Args:
        limit: bytes of them.

    Attributes:
        size: bytes kept now.
    """

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._sizes: dict[trio.CancelScope, int] = {}

    @contextmanager
    def wait(self, size: int, deadline: float) -> Iterator[trio.CancelScope]:
        """Wait in the block for more of an RPC, and be cancelled if it may not be kept.

        Args:
            size: bytes that have come.
            deadline: when it must be whole, by trio's clock.
        """
        with trio.CancelScope(deadline=deadline) as scope:
            self._sizes[scope] = size
            self.size += size
            try:
                while self.size > self._limit:
                    self._give_way()
                yield scope
            finally:
                self.size -= self._sizes.pop(scope, 0)

    def _give_way(self) -> None:
        oldest = min(self._sizes, key=lambda scope: scope.deadline)
        self.size -= self._sizes.pop(oldest)
        oldest.cancel()
