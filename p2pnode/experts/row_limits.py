"""How large a batch the device's memory takes, learnt from the ones it did not take: pure.

A batch that ran out of memory is split, and from then on its expert gets batches of the size that
fitted. Memory comes and goes, with other experts and the owner's own programs: a limit that has
been used to the full for a while without harm doubles, until it is none.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from p2pnode.wire.uids import Uid

GROWS_AFTER: Final = 32  # full batches in a row; a failure costs about one batch's time
MAX_REMEMBERED: Final = 4096  # chains of experts; as many as a host may serve by default


@dataclass(slots=True)
class _Limit:
    rows: int
    full_batches: int = 0


class RowLimits:
    """The rows that chains of experts can take at once, where there is less than the most.

    Args:
        max_rows: the most of any batch.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._limits: OrderedDict[tuple[Uid, ...], _Limit] = OrderedDict()

    def of(self, uids: tuple[Uid, ...]) -> int:
        """Return how many rows a batch of this chain may have, at least one."""
        found = self._limits.get(uids)
        return self._max_rows if found is None else found.rows

    def failed(self, uids: tuple[Uid, ...], rows: int) -> None:
        """Note that so many rows did not fit; from now on half of them are tried."""
        self._limits[uids] = _Limit(max(1, min(rows // 2, self.of(uids))))
        self._limits.move_to_end(uids)
        if len(self._limits) > MAX_REMEMBERED:
            self._limits.popitem(last=False)

    def worked(self, uids: tuple[Uid, ...], rows: int) -> None:
        """Note that so many rows fitted."""
        found = self._limits.get(uids)
        if found is None or 2 * rows <= found.rows:  # too small to show anything
            return
        found.full_batches += 1
        if found.full_batches >= GROWS_AFTER:
            found.rows, found.full_batches = 2 * found.rows, 0
            if found.rows >= self._max_rows:
                del self._limits[uids]
