"""Which caller may use a device next, and which has had enough for now: pure.

*Fair queueing with measured costs.* What a call costs is known only when it has been computed, so
that callers are charged afterwards. Each has a virtual time, the device seconds it has had, and of
those who wait the one with the least goes next. One that comes, or comes back, starts no earlier
than the device's own virtual time. That runs at the pace at which each of those who want the
device would be served if all were served at once: one device second moves it by 1/n seconds while
there are n of them. So nobody saves time up by staying away, and an endless row of newcomers
cannot hold back one who waits: soon they start after it.

Sources: Demers, Keshav & Shenker 1989, "Analysis and Simulation of a Fair Queueing Algorithm", for
the device's virtual time; Goyal, Vin & Cheng 1996, "Start-time Fair Queuing", for serving by the
time at which a call starts, which does not need to know how long it takes.

*Budgets.* A caller may use the device for so many seconds, which come back evenly over a window of
time. What follows when they are used up is for the pool to say.

The identity of a caller is its peer id. In an open run anyone can have many of those; a run that
cares for shares has members.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class _Spent:
    seconds: float
    at: float


class Shares:
    """The callers of one device, and how much of it each has had.

    Args:
        budget: device seconds a caller may use at once.
        window: seconds over which they come back.
    """

    def __init__(self, *, budget: float, window: float) -> None:
        self._budget = budget
        self._window = window
        self._virtual = 0.0  # the device's own time
        self._times: dict[PeerId, float] = {}  # of those who wait, and of those ahead of it
        self._waiting: dict[PeerId, None] = {}
        self._spent: OrderedDict[PeerId, _Spent] = OrderedDict()  # by the last charge

    def enter(self, caller: PeerId) -> None:
        """Note that a caller has calls queued."""
        self._waiting[caller] = None
        self._times[caller] = max(self._times.get(caller, 0.0), self._virtual)

    def leave(self, caller: PeerId) -> None:
        """Note that a caller has no call queued any more."""
        del self._waiting[caller]
        if not self._waiting:
            self._times.clear()  # an idle device owes nobody anything
        elif self._times[caller] <= self._virtual:
            del self._times[caller]

    def time_of(self, caller: PeerId) -> float:
        """Return a waiting caller's virtual time; the least goes next."""
        return self._times[caller]

    def charge(self, amounts: Mapping[PeerId, int], seconds: float, now: float) -> None:
        """Note that a batch took `seconds` of the device.

        Args:
            amounts: how much of the batch was each caller's; all above 0.
            seconds: the time it took.
            now: when it ended.
        """
        whole = sum(amounts.values())
        wanting = self._waiting.keys() | amounts.keys()
        for caller, amount in amounts.items():
            cost = seconds * amount / whole
            if self._waiting:
                self._times[caller] = self._times.get(caller, self._virtual) + cost
            self._spend(caller, cost, now)
        self._virtual += seconds / len(wanting)
        for caller in tuple(self._times):
            if caller not in self._waiting and self._times[caller] <= self._virtual:
                del self._times[caller]

    def spent(self, caller: PeerId, now: float) -> float:
        """Return what a caller has used of its budget and has not got back, in device seconds."""
        found = self._spent.get(caller)
        if found is None:
            return 0.0
        return max(0.0, found.seconds - (now - found.at) * self._budget / self._window)

    def is_spent(self, caller: PeerId, now: float) -> bool:
        """Tell whether a caller's budget is used up for now."""
        return self.spent(caller, now) >= self._budget

    def _spend(self, caller: PeerId, cost: float, now: float) -> None:
        self._spent[caller] = _Spent(self.spent(caller, now) + cost, now)
        self._spent.move_to_end(caller)
        # Those charged longest ago come first; one who spent much may keep a few behind it, until
        # its budget is back.
        while (oldest := next(iter(self._spent))) != caller and not self.spent(oldest, now):
            del self._spent[oldest]
