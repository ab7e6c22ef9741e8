"""Links between a machine and the rest of the network, by the names people give them."""

import math
from dataclasses import dataclass
from typing import Final

MBIT: Final = 1_000_000 / 8  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkGrade:
    """What one machine's own link is like; both ends of a way add theirs.

    Attributes:
        up: bytes a second that leave the machine.
        down: bytes a second that reach it.
        delay: seconds that the link adds, one way.
        jitter: seconds added on top on average, exponentially distributed.
        loss: the share of packets that is lost on it.
    """

    up: float = math.inf
    down: float = math.inf
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0


IDEAL: Final = LinkGrade()

GRADES: Final = {
    "lan": LinkGrade(up=1000 * MBIT, down=1000 * MBIT, delay=0.0001),
    "fibre": LinkGrade(up=100 * MBIT, down=300 * MBIT, delay=0.002, jitter=0.0005, loss=0.0001),
    "dsl": LinkGrade(up=10 * MBIT, down=50 * MBIT, delay=0.010, jitter=0.002, loss=0.001),
    "mobile": LinkGrade(up=10 * MBIT, down=30 * MBIT, delay=0.030, jitter=0.010, loss=0.01),
    "satellite": LinkGrade(up=5 * MBIT, down=50 * MBIT, delay=0.270, jitter=0.010, loss=0.01),
    "absurd": LinkGrade(up=0.25 * MBIT, down=1 * MBIT, delay=0.5, jitter=0.25, loss=0.1),
}
