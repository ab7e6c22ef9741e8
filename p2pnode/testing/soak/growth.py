"""Whether a daemon holds more than it did, by what it says of itself between waves: pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WARM_UP: Final = 0.25  # of the waves, in which caches fill up to their bounds
TOLERATED: Final = 0.02  # of memory, between what its medians early and late may differ


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon held while nobody called.

    Attributes:
        memory: resident, in bytes.
        tasks: of trio, in the whole process.
        files: open file descriptors.
    """

    memory: float
    tasks: float
    files: float


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Return what has grown, and by how much; empty when nothing has.

    Tasks and file descriptors may not grow at all: the fewest of the last waves are compared with
    the most after the warm-up, so that a connection that is just ending in one sample is no leak.
    Memory is compared by the medians of the first and the last third after the warm-up.

    Args:
        samples: one after each wave, at least four.
    """
    late = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(late) // 3)
    first, last = late[:third], late[-third:]
    found: dict[str, float] = {}
    for what in ("tasks", "files"):
        before = max(getattr(each, what) for each in first)
        after = min(getattr(each, what) for each in last)
        if after > before:
            found[what] = after - before
    before = statistics.median(each.memory for each in first)
    after = statistics.median(each.memory for each in last)
    if after > before * (1 + TOLERATED):
        found["memory"] = after - before
    return found
