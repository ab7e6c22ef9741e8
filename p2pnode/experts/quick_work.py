"""Which calls take less time than telling a worker thread of them: pure.

A thread is told in a tenth of a millisecond or two, and as much passes until its answer is seen. A
call that is known to take less is better computed where it has come; the network waits for it no
longer than for any other turn of the loop.
"""

from collections import OrderedDict
from typing import Final

from p2pnode.experts.pool import Batch, Kind
from p2pnode.wire.uids import Uid

MAX_REMEMBERED: Final = 8192  # chains of experts, forward and backward


class QuickWork:
    """What has been quick so far.

    Args:
        limit: seconds that work may take and still be called quick.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._amounts: OrderedDict[tuple[tuple[Uid, ...], Kind], int] = OrderedDict()

    def includes(self, uids: tuple[Uid, ...], kind: Kind, amount: int) -> bool:
        """Tell whether as much or more of it was quick, and nothing as small slow since."""
        return amount <= self._amounts.get((uids, kind), 0)

    def note(self, batch: Batch, seconds: float) -> None:
        """Note how long the computation of a batch took, without any waiting."""
        key = batch.uids, batch.kind
        known = self._amounts.pop(key, 0)
        if seconds <= self._limit:
            known = max(known, batch.amount)
        elif batch.amount <= known:
            known = 0
        if known:
            self._amounts[key] = known
            if len(self._amounts) > MAX_REMEMBERED:
                self._amounts.popitem(last=False)
