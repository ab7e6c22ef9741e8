"""What makes two runs of one seed the same: the scheduler's order, the clock, the wall clock.

trio shuffles the tasks that are due at once, so that nobody comes to depend on their order. It
seeds that shuffle, and sorts the tasks beforehand, when told to by the two private names used here;
hypothesis and pytest-trio tell it by the same ones.

Time is a `VirtualClock`: it stands still while any task can run, and jumps to what is next when
none can. What the hash of a text decides (the order of a set) no code of ours may show; the tests
run scenarios under several values of PYTHONHASHSEED to hold that.
"""

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

import trio._core._run as scheduler  # see above: there is no public name for it

from p2pnode.testing.timers import VirtualClock

# 1 January 2030, 00:00 UTC: what `p2pnode.clock.wall_time` says when a simulation starts. Any fixed
# moment does; one ahead of us shows whatever compares it with the real clock.
EPOCH: Final = 1_893_456_000.0

_SORTED: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"  # trio declares it final, and has it set

# Simulations allocate much and free little: looking for garbage as often as Python does by default
# takes a quarter of their time, and frees as much. Young objects are looked at after so many.
_GARBAGE_THRESHOLDS: Final = (100_000, 20, 100)


def virtual_clock() -> VirtualClock:
    """Return a clock that starts at 0 and jumps to what is next whenever all tasks wait."""
    return VirtualClock()


@contextlib.contextmanager
def seeded_scheduler(seed: int, *, ends_process: bool = False) -> Iterator[None]:
    """Make the order in which trio runs tasks depend on `seed` alone, while the block runs.

    Args:
        seed: what the order depends on.
        ends_process: whether the process will soon end. Then what the block leaves is never looked
            through for garbage, which would take minutes after ten thousand nodes.
    """
    allowed = getattr(scheduler, _SORTED)
    state = scheduler._r.getstate()  # noqa: SLF001  # see above
    setattr(scheduler, _SORTED, True)
    scheduler._r.seed(seed)  # noqa: SLF001  # see above
    thresholds = gc.get_threshold()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    try:
        yield
    finally:
        if ends_process:
            gc.freeze()
        gc.set_threshold(*thresholds)
        setattr(scheduler, _SORTED, allowed)
        scheduler._r.setstate(state)  # noqa: SLF001  # see above
