"""How fast this node is, from the batches that it computes."""

import math
from typing import Final

from p2pnode.experts.events import BatchComputed

# Backward runs forward again, and then the derivatives by inputs and by weights, of which each
# costs about what forward does.
_WORK: Final = {"forward": 1.0, "backward": 3.0}
_MEMORY: Final = 60.0  # seconds of computing; what is older counts half, and so on


class Meter:
    """Counts rows through single layers, and the time they took.

    A batch of a few rows takes nearly the time of a large one: so what is measured is the speed
    under the load there is, and all hosts of a run see about the same one.
    """

    def __init__(self) -> None:
        self._rows = 0.0
        self._seconds = 0.0
        self._passed = 0.0  # rows that came and went, whatever the layers they ran through
        self._taken = 0.0  # bytes of their tensors as they came,
        self._given = 0.0  # and as they went

    @property
    def speed(self) -> float:
        """Rows forward through one layer in a second of computing; 0 before the first batch."""
        return self._rows / self._seconds if self._seconds > 0 else 0.0

    def carried(self, download: float, upload: float) -> float:
        """Return how many rows a second a line carries, counted as `speed` counts them.

        Tensors count with their bytes in memory: a codec that callers choose makes them smaller.

        Args:
            download: bytes a second that may come; 0 for any number.
            upload: the same of those that may go.

        Returns:
            Infinity where there is no limit, or nothing was measured yet.
        """
        rates = [
            limit * self._passed / size
            for limit, size in ((download, self._taken), (upload, self._given))
            if limit and size
        ]
        return min(rates, default=math.inf)

    def receive(self, event: BatchComputed) -> None:
        """Count a batch; one of which calls failed does not count, as it may have ended early."""
        if event.failed or event.seconds <= 0:
            return
        work = event.rows * _WORK.get(event.kind, 1.0)
        self._rows += work * event.span
        self._seconds += event.seconds
        self._passed += work
        self._taken += event.bytes_taken
        self._given += event.bytes_given
        if self._seconds > _MEMORY:
            self._rows /= 2
            self._seconds /= 2
            self._passed /= 2
            self._taken /= 2
            self._given /= 2
