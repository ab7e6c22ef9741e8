"""How fast this node is, from the batches that it computes."""

import math
from dataclasses import dataclass
from typing import Final

from p2pnode.experts.events import BatchComputed
from p2pnode.wire.uids import Uid

# Backward runs forward again, and then the derivatives by inputs and by weights, of which each
# costs about what forward does.
_WORK: Final = {"forward": 1.0, "backward": 3.0}
_MEMORY: Final = 60.0  # seconds of computing; what is older counts half, and so on


@dataclass(slots=True)
class _Tally:
    """Rows through the layers of one block, such as `blocks`, which are built alike."""

    rows: float = 0.0
    seconds: float = 0.0
    weighed: float = 0.0  # rows times the weights they met


class Meter:
    """Counts rows through single layers, and the time they took.

    A batch of a few rows takes nearly the time of a large one: so what is measured is the speed
    under the load there is, and all hosts of a run see about the same one.

    Layers of different blocks need not be alike, and each block is measured for itself. One that
    has computed nothing yet is taken to need its time by its weights, as the others do: in dense
    layers each row meets each weight once.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str], _Tally] = {}
        self._computed = 0.0  # seconds, of all batches
        self._passed = 0.0  # rows that came and went, whatever the layers they ran through
        self._taken = 0.0  # bytes of their tensors as they came,
        self._given = 0.0  # and as they went

    def seconds(self, uid: Uid, weights: int) -> float:
        """Return how long a row takes forward through a layer; 0 before the first batch of any.

        Args:
            uid: the layer.
            weights: how many it has.
        """
        tally = self._blocks.get((uid.run, uid.block))
        if tally is not None:
            return tally.seconds / tally.rows
        weighed = sum(each.weighed for each in self._blocks.values())
        taken = sum(each.seconds for each in self._blocks.values())
        return weights * taken / weighed if weighed else 0.0

    def carried(self, download: float, upload: float) -> float:
        """Return how many rows a second a line carries, a backward pass counted as three forward.

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
        if event.failed or event.seconds <= 0 or not event.rows:
            return
        work = event.rows * _WORK.get(event.kind, 1.0)
        tally = self._blocks.setdefault((event.uid.run, event.uid.block), _Tally())
        tally.rows += work * event.span
        tally.seconds += event.seconds
        tally.weighed += work * event.weights
        self._passed += work
        self._taken += event.bytes_taken
        self._given += event.bytes_given
        if tally.seconds > _MEMORY:
            tally.rows /= 2
            tally.seconds /= 2
            tally.weighed /= 2
        self._computed += event.seconds
        if self._computed > _MEMORY:
            self._computed /= 2
            self._passed /= 2
            self._taken /= 2
            self._given /= 2
