"""How fast this node's device is, from the batches that it computes."""

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

    @property
    def speed(self) -> float:
        """Rows forward through one layer in a second of computing; 0 before the first batch."""
        return self._rows / self._seconds if self._seconds > 0 else 0.0

    def receive(self, event: BatchComputed) -> None:
        """Count a batch; one of which calls failed does not count, as it may have ended early."""
        if event.failed or event.seconds <= 0:
            return
        self._rows += event.rows * event.span * _WORK.get(event.kind, 1.0)
        self._seconds += event.seconds
        if self._seconds > _MEMORY:
            self._rows /= 2
            self._seconds /= 2
