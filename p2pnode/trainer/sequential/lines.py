"""When the next micro-batch of a pass goes to a host: so that it never waits, and never for long.

A host that gets a micro-batch only after it has answered the one before has nothing to do for a
round trip each time. A host that gets several at the same time joins them to one batch: that takes
it as long as all of them one after the other, and the hosts behind it have nothing to do meanwhile.
So of a micro-batch that takes a host `c` seconds, over a round trip of `r`, the next one is sent
some `c` seconds after it, and `1 + r / c`, rounded up, are under way: one computed, the others on
their way, and hardly ever more than one in the queue.

How long a micro-batch takes is seen in each pass anew, since it depends on its rows, and on whether
it is forward or backward. Until the first one is back, it is taken to be as in the last pass of
that kind, and where there was none, no second one is sent.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final

import trio

from p2pnode.wire.peer_id import PeerId

# Of the least time that a micro-batch took: a little less, so that the next one is there in time
# also when it is held up on its way.
_APART: Final = 0.9


class Line:
    """Micro-batches of one pass that are under way to one host.

    Args:
        at_most: how many, however far the host is.
        round_trip: seconds to the host and back.
        guess: seconds that it will take to compute one, if anything is known of that.
    """

    def __init__(self, at_most: int, round_trip: float, guess: float | None = None) -> None:
        self._at_most = at_most
        self._round_trip = round_trip
        self._guess = guess
        self._under_way = 0
        self._seen: float | None = None  # seconds; the least of all
        self._next_at = -math.inf
        self._entrance = trio.StrictFIFOLock()
        self._left = trio.lowlevel.ParkingLot()

    @property
    def computing(self) -> float | None:
        """Seconds that the host takes for one, as far as is known."""
        return self._guess if self._seen is None else self._seen

    @property
    def room(self) -> int:
        """How many may be under way at the same time, as far as is known."""
        computing = self.computing
        if computing is None:
            return 1
        if computing * self._at_most <= self._round_trip:
            return self._at_most
        return min(self._at_most, 1 + math.ceil(self._round_trip / computing))

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wait until it is time to send the next one, and count it until the block ends.

        Yields:
            Whether no other one is under way, so that its time says what the host needs.
        """
        async with self._entrance:
            while self._under_way >= self.room:
                await self._left.park()
            await trio.sleep_until(max(self._next_at, trio.current_time()))
            is_alone = not self._under_way
            self._under_way += 1
            began = trio.current_time()
            self._next_at = began + _APART * (self.computing or 0.0)
        try:
            yield is_alone
            self._receive_answer(trio.current_time() - began)
        finally:
            self._under_way -= 1
            self._left.unpark_all()

    def _receive_answer(self, seconds: float) -> None:
        computing = max(0.0, seconds - self._round_trip)
        if self._seen is None or computing < self._seen:
            self._seen = computing


class Lines:
    """The lines of one pass, shared by its micro-batches.

    Args:
        at_most: micro-batches under way to one host.
        round_trip: seconds to a host and back; 0 where that is not known.
        earlier: what `computing` gave after the last pass of this kind.
    """

    def __init__(
        self,
        at_most: int,
        round_trip: Callable[[PeerId], float],
        earlier: Mapping[PeerId, float] = MappingProxyType({}),
    ) -> None:
        self._at_most = at_most
        self._round_trip = round_trip
        self._earlier = earlier
        self._lines: dict[PeerId, Line] = {}

    def to(self, peer_id: PeerId) -> Line:
        """Return the line to a host."""
        if peer_id not in self._lines:
            guess = self._earlier.get(peer_id)
            self._lines[peer_id] = Line(self._at_most, self._round_trip(peer_id), guess)
        return self._lines[peer_id]

    def computing(self) -> dict[PeerId, float]:
        """Return the seconds that each host takes for a micro-batch, of those where it is known."""
        times = {peer_id: line.computing for peer_id, line in self._lines.items()}
        return {peer_id: seconds for peer_id, seconds in times.items() if seconds is not None}
