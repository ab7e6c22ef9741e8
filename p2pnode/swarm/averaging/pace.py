"""How long members may be silent, by how soon the others spoke: pure.

What half of a group does within a second will not take one more member half a minute. So once half
of those that are waited for are done, the rest has a few times as long as these took, and a least
time besides. A slow swarm gets the time it needs, and one silent machine costs a fast one little.
The few times make up for members that do not begin at the same moment; the least time is for what
one of them may have to wait for itself.
"""

from typing import Final

LATE: Final = 3.0  # times what half of the others took


class Pace:
    """When those that are still waited for are late.

    Args:
        others: how many there were to wait for.
        now: when waiting began.
        least: seconds that the rest has beyond that.
        most: seconds that nobody has more of.
    """

    def __init__(self, others: int, now: float, *, least: float, most: float) -> None:
        self._half = (others + 1) // 2
        self._began = now
        self._least = least
        self._most = most
        self._took = 0.0
        self._done = 0

    def receive_done(self, now: float) -> None:
        """One more of them is done."""
        self._done += 1
        if self._done == self._half:
            self._took = max(0.0, now - self._began)

    @property
    def seconds(self) -> float:
        """How long the rest has, from the beginning on."""
        if self._done < self._half:
            return self._most
        return min(LATE * self._took + self._least, self._most)

    @property
    def limit(self) -> float:
        """The time at which the rest is late."""
        return self._began + self.seconds
