"""RPCs of which only a part has come: how much of them is kept, and for how long.

An RPC must be whole within a time. When more is kept of all of them than may be, the one gives way
that has held the most for the longest. An honest RPC is small, or takes a few round trips, so that
is one of those who stall on purpose, and neither the one that came last nor the first one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from p2pnode.errors import ProtocolError, ResourceLimitError
from p2pnode.host import Stream

READ_BYTES: Final = 64 * 1024


class Unfinished:
    """What is kept of RPCs that are not whole, from all peers together.

    Args:
        limit: bytes of them.
        timeout: seconds from an RPC's first byte to its last.

    Attributes:
        size: bytes kept now.
    """

    def __init__(self, limit: int, timeout: float) -> None:
        self.size = 0
        self._limit = limit
        self._timeout = timeout
        self._sizes: dict[trio.CancelScope, int] = {}

    def deadline(self) -> float:
        """Return when an RPC that begins now must be whole."""
        return trio.current_time() + self._timeout

    async def receive(self, stream: Stream, kept: int, deadline: float) -> bytes | bytearray:
        """Read on; returns no bytes at the end of the stream.

        Args:
            stream: what a peer sends RPCs on.
            kept: bytes of an RPC that have come already.
            deadline: when that RPC must be whole.

        Raises:
            ProtocolError: the rest of the RPC did not come, or not in time.
            ResourceLimitError: too much is kept, and this RPC has to give way.
            StreamResetError: the peer reset the stream.
        """
        if not kept:
            return await stream.receive_some(READ_BYTES)
        data: bytes | bytearray = b""
        with self._keep(kept, deadline) as scope:
            data = await stream.receive_some(READ_BYTES)
        if scope.cancelled_caught:
            if trio.current_time() < deadline:
                raise ResourceLimitError("too much was kept of RPCs that are not whole")
            raise ProtocolError(f"an RPC took longer than {self._timeout:g} s")
        if not data:
            raise ProtocolError("the stream ended inside an RPC")
        return data

    @contextmanager
    def _keep(self, size: int, deadline: float) -> Iterator[trio.CancelScope]:
        """Count what is kept while the block waits, which is cancelled if it may not be kept."""
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
        latest = self.deadline()  # of what begins now
        worst = max(self._sizes, key=lambda each: self._sizes[each] * (latest - each.deadline))
        self.size -= self._sizes.pop(worst)
        worst.cancel()
