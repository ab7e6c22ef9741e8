"""A machine's bandwidth: bytes queue behind each other, in each direction by itself. Pure."""

import math
from bisect import bisect_right


class Uplink:
    """What leaves a machine, in the order in which it is sent.

    Attributes:
        sent: bytes, since the beginning.
    """

    __slots__ = ("_free_at", "_rate", "sent")

    def __init__(self, rate: float) -> None:
        self.sent = 0
        self._rate = rate
        self._free_at = -math.inf

    def pass_through(self, size: int, now: float) -> float:
        """Return when the last of `size` bytes, ready at `now`, has gone through."""
        self.sent += size
        if self._rate == math.inf:
            return now
        self._free_at = max(self._free_at, now) + size / self._rate
        return self._free_at


class Downlink:
    """What reaches a machine, from senders near and far.

    Bytes are booked when they are sent, which is not the order in which they arrive: a piece from
    afar must not hold up one from nearby that is here long before it. So the link's busy times
    are kept, and each piece takes the idle ones from its arrival on.
    """

    __slots__ = ("_ends", "_rate", "_starts")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._starts: list[float] = []  # of the busy times, which neither overlap nor touch
        self._ends: list[float] = []

    def pass_through(self, size: int, arrival: float, now: float) -> float:
        """Return when the last of `size` bytes that arrive at `arrival` has gone through."""
        if self._rate == math.inf:
            return arrival
        self._forget(now)
        starts, ends = self._starts, self._ends
        left = size / self._rate
        first = index = bisect_right(ends, arrival)
        at = start = arrival
        if index < len(starts) and starts[index] <= arrival:  # in the midst of a busy time
            start, at = starts[index], ends[index]
            index += 1
        while index < len(starts) and at + left >= starts[index]:
            left -= starts[index] - at
            at = ends[index]
            index += 1
        end = at + left
        starts[first:index] = [start]
        ends[first:index] = [end]
        return end

    def _forget(self, now: float) -> None:
        past = bisect_right(self._ends, now)
        del self._starts[:past], self._ends[:past]
