"""How fast one peer's messages are taken in; pure."""

import math


class Pace:
    """So many a second, and so many more at once after a quiet time.

    Source: the virtual scheduling algorithm (ITU-T I.371, GCRA), which is a token bucket that
    keeps one number.

    Args:
        per_second: how many may come in the long run.
        burst: how many may come at once.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._step = 1 / per_second
        self._slack = burst * self._step
        self._due = -math.inf

    def take(self, now: float) -> float:
        """Count one; returns how many seconds to wait before the next."""
        self._due = max(self._due, now - self._slack) + self._step
        return max(self._due - now, 0.0)
