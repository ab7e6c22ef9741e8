"""What a run's units cost, and the room they take: which fit, and what no placement exceeds."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_UNITS: Final = 4096  # as `hosting.max_experts`
_ROUNDING: Final = 1e-9

Stretches = npt.NDArray[np.int64]  # (n, 2): the first layer, and the one after the last


class Units:
    """What a run's units cost, and the room they take.

    Args:
        costs: by unit, the time of a row through it, over that through a usual unit; above 0.
        sizes: by unit, the room it takes, in any measure; 1 or more.
    """

    def __init__(self, costs: Sequence[float], sizes: Sequence[int]) -> None:
        self.costs = np.asarray(costs, dtype=np.float64)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._ends = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        return len(self.costs)

    def cost(self, units: Sequence[int]) -> float:
        """Return what a row through all of these costs."""
        return float(self.costs[list(units)].sum())

    def size(self, units: Sequence[int]) -> int:
        """Return the room that these take."""
        return int(self.sizes[list(units)].sum())

    def stretches(self, room: int, most: int) -> Stretches:
        """List the stretches that fit, in order, and that no longer one holds.

        Args:
            room: what there is.
            most: units at once.
        """
        starts = np.arange(len(self))
        ends = np.searchsorted(self._ends, self._ends[:-1] + room, side="right") - 1
        ends = np.minimum(ends, starts + most)
        is_own = (ends > starts) & (ends > np.concatenate([[0], ends[:-1]]))
        return np.stack([starts[is_own], ends[is_own]], axis=1)

    def most_cost(self, room: int, most: int) -> float:
        """Return a cost that no units that fit exceed: of the dearest ones, the last in part."""
        by_room, left = 0.0, room
        for unit in np.argsort(-self.costs / self.sizes, kind="stable").tolist():
            share = min(1.0, left / int(self.sizes[unit]))
            by_room += share * float(self.costs[unit])
            left -= int(self.sizes[unit])
            if left <= 0:
                break
        return min(by_room, float(np.sort(self.costs)[::-1][:most].sum()))


def bound(total: float, offered: Iterable[tuple[float, float]]) -> float:
    """Return a rate that no arrangement lets all units exceed, in rows a second.

    All units can have the rate t only if the servers suffice for `total * t` in all, and to each
    of its units no server need give more than t.

    Args:
        total: what all units cost.
        offered: speed of each server, and the cost of what it can hold at most.
    """
    servers = [(speed, min(capacity, total)) for speed, capacity in offered]
    # The servers' sum is concave in t, and made of straight pieces that end where one is used up.
    used_up = sorted((speed / capacity, speed, capacity) for speed, capacity in servers)
    speed_left, room = 0.0, sum(capacity for _, capacity in servers)
    if room < total * (1 - _ROUNDING):
        return 0.0
    for rate, speed, capacity in used_up:
        if room < total and speed_left / (total - room) <= rate:
            break
        speed_left += speed
        room -= capacity
    return speed_left / (total - room)
