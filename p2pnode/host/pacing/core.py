"""Spreading something over time so that a rate holds: pure.

What passes is paid for by waiting, in the order in which it is asked for. Something urgent need
not wait in that queue, but is paid for all the same: whatever comes behind it waits longer. Only
when urgent things alone have used up `LEAD` seconds in advance do they wait, too, so that the rate
holds in any case.
"""

from typing import Final

LEAD: Final = 1.0  # seconds that urgent things may be ahead of the rate
CHUNKS_A_SECOND: Final = 20  # of those who ask for as much as they can: nobody waits for long


class Pace:
    """Spreads bytes, or seconds of work, over time.

    Args:
        rate: so much in a second; 0 for no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = float("-inf")

    def chunk(self, most: int) -> int:
        """How much to ask for at once, so that others need not wait for long."""
        return min(most, max(1, int(self._rate / CHUNKS_A_SECOND))) if self._rate else most

    def reserve(self, size: float, now: float, *, urgent: bool = False) -> float:
        """Return when `size` may pass."""
        if not self._rate:
            return now
        begin = max(self._free_at, now)
        self._free_at = begin + size / self._rate
        return max(begin - LEAD, now) if urgent else begin

    def give_back(self, size: float) -> None:
        """Take back what was reserved, and did not pass after all."""
        if self._rate:
            self._free_at -= size / self._rate
