"""Calls waiting for the device, and which of them make the next batch: pure.

Calls that are computed together share a queue: those of one kind, of one expert or one span of
layers, with tensors of one form. A batch is led by one call, and filled from its queue:

1. *Fair between callers.* Of the callers who have calls that are ready, the one who has had least
   of the device goes next (see `shares`), whatever the number of its calls, and of its calls the
   oldest. So no caller starves: as long as it waits, the others' times grow, and its own does not.
   Serving the newest call, as Learning@home's paper code did, starves; serving the oldest, as
   hivemind does, gives the device to whoever sends the most.
2. *Deadlines.* A call that would be late if it waited for one more batch of the usual length goes
   ahead, the most urgent first; but only while its caller is at most `urgent_lead` device seconds
   ahead of the one whose turn it is. So urgency is borrowed, and never worth more than that.
3. *Company.* The rest of the batch is filled from the leader's queue with calls of all callers by
   deficit round robin (Shreedhar & Varghese 1996), counted in rows: a large call waits until its
   caller's turns add up to it, and small calls of others are not held back by it.

Inputs: `push`, `discard`, `charge`. Outputs: `take_late`, `next_batch`, `next_time`. Time is an
argument.
"""

import heapq
import itertools
import math
import operator
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from p2pnode.config import HostingSettings
from p2pnode.errors import OverloadedError
from p2pnode.experts.row_limits import RowLimits
from p2pnode.experts.shares import Shares
from p2pnode.rpc.age import Age
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_PACE_SMOOTHING: Final = 0.2  # weight of the newest batch in the usual length of one
_KEPT_FREE: Final = 1 / 8  # of an expert's queue, of whoever has more than half of it
_STALE_DEADLINES: Final = 64  # entries of calls that are gone, kept in a heap beyond the others

# The last two are of an inference session, and of a call that is split over several hosts.
Kind = Literal["forward", "backward", "step", "part"]
_Key = tuple[tuple[Uid, ...], Kind, tuple[tuple[int, ...], ...]]


@dataclass(eq=False, slots=True, kw_only=True)
class Call:
    """One call of an expert, or of a span of layers, from its arrival until it is settled."""

    uids: tuple[Uid, ...]  # what it runs through, one after the other
    kind: Kind
    caller: PeerId
    rows: int
    positions: int = 1  # of each row: more than one where rows are sequences
    form: tuple[tuple[int, ...], ...] = ()  # its inputs' shapes behind the rows
    inputs: Sequence[Any]
    gradients: Sequence[Any] = ()
    wants_gradients: bool = True  # of its inputs, in a backward call; forward has outputs anyway
    key: bytes = b""  # of a backward call, for replays
    age: Age | None = None  # told which weights compute it
    arrived: float
    deadline: float
    dropped: bool = False  # taken back before it was computed
    size: int = 0  # bytes of its tensors
    outcome: Any = None  # the answer, or the exception that is its failure

    @property
    def amount(self) -> int:
        """What it counts against the size of a batch."""
        return self.rows * self.positions

    @property
    def name(self) -> str:
        """What is called, for messages."""
        first, last = self.uids[0].name, self.uids[-1].name
        return first if len(self.uids) == 1 else f"{first} to {last}"

    @property
    def settled(self) -> bool:
        """Whether the outcome is there."""
        return self.outcome is not None

    def settle(self, outcome: Any) -> None:
        """Set the outcome, and let go of the tensors."""
        self.outcome = outcome
        self.inputs = self.gradients = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Calls of one queue to be computed together."""

    uids: tuple[Uid, ...]
    kind: Kind
    calls: list[Call]

    @property
    def amount(self) -> int:
        """What its calls count together."""
        return sum(call.amount for call in self.calls)


@dataclass(slots=True)
class _Queue:
    calls: dict[int, Call] = field(default_factory=dict)  # by identity, in order of arrival
    by_caller: dict[PeerId, dict[int, Call]] = field(default_factory=dict)
    amount: int = 0


@dataclass(slots=True)
class _Caller:
    calls: dict[int, Call] = field(default_factory=dict)  # of all queues, in order of arrival
    # By deadline; some of the calls are gone, or have got more time.
    deadlines: list[tuple[float, int, Call]] = field(default_factory=list)
    queued: Counter[Uid] = field(default_factory=Counter)  # calls that run through each expert

    @property
    def oldest(self) -> Call:
        return next(iter(self.calls.values()))


class BatchPool:
    """The queues of all experts on one device.

    Args:
        settings: how much fits in a batch and a queue, and what callers may use.
        limits: what the device's memory has shown to be too much for a batch.
    """

    def __init__(self, settings: HostingSettings, limits: RowLimits | None = None) -> None:
        self._settings = settings
        self._window = settings.batch_window
        self._limits = limits or RowLimits(settings.max_batch_rows)
        self._shares = Shares(
            budget=settings.device_seconds_per_peer, window=settings.device_window
        )
        self._queues: dict[_Key, _Queue] = {}  # those not empty
        self._callers: dict[PeerId, _Caller] = {}  # those with calls
        self._full: dict[_Key, None] = {}  # queues that have a whole batch
        self._queued: Counter[Uid] = Counter()  # calls that run through each expert
        self._numbers = itertools.count()
        self._pace = 0.0  # seconds of a usual batch
        self._earliest = math.inf  # no deadline is before it

    def __len__(self) -> int:
        """Return how many calls are queued."""
        return sum(len(queue.calls) for queue in self._queues.values())

    def queued(self, uid: Uid) -> int:
        """Return how many calls of an expert are queued."""
        return self._queued[uid]

    def check(self, uids: Iterable[Uid], caller: PeerId, now: float) -> None:
        """Return if one more call of these experts may be queued.

        Raises:
            OverloadedError: the queues of one of them are full; or others wait, and the caller has
                used up its share of the queues or of the device.
        """
        mine = self._callers.get(caller)
        for uid in uids:
            self._check_room(uid, mine)
        most = self._settings.max_queued_calls_per_peer
        if mine is not None and len(mine.calls) >= most and self._others_wait(caller, now):
            raise OverloadedError(
                f"{most} calls of yours are queued here and others wait; go elsewhere"
            )
        if self._shares.is_spent(caller, now) and self._others_wait(caller, now):
            raise OverloadedError(
                "you have used your share of this device for now and others wait; go elsewhere"
            )

    def push(self, call: Call) -> None:
        """Queue a call; what its caller may use was checked before its tensors were received.

        Raises:
            OverloadedError: the queues of one of its experts are full.
        """
        if call.kind != "step":  # sessions are few, and a refusal would cost all that they keep
            for uid in call.uids:
                self._check_room(uid, self._callers.get(call.caller))
        key = (call.uids, call.kind, call.form)
        queue = self._queues.setdefault(key, _Queue())
        queue.calls[id(call)] = call
        queue.by_caller.setdefault(call.caller, {})[id(call)] = call
        queue.amount += call.amount
        if queue.amount >= self._most(call):
            self._full[key] = None
        caller = self._callers.get(call.caller)
        if caller is None:
            caller = self._callers[call.caller] = _Caller()
            self._shares.enter(call.caller)
        caller.calls[id(call)] = call
        self._earliest = min(self._earliest, call.deadline)
        heapq.heappush(caller.deadlines, (call.deadline, next(self._numbers), call))
        self._queued.update(call.uids)
        caller.queued.update(call.uids)

    def discard(self, call: Call) -> bool:
        """Drop a call if it is still queued; tells whether it was."""
        if not self._remove(call):
            return False
        call.dropped = True
        return True

    def take_late(self, now: float) -> list[Call]:
        """Take out the calls whose deadline has passed."""
        late: list[Call] = []
        if now < self._earliest:
            return late
        for caller in tuple(self._callers.values()):
            while (call := self._most_urgent(caller)) is not None and call.deadline <= now:
                self._remove(call)
                late.append(call)
        self._find_earliest()
        return late

    def next_time(self) -> float:
        """Return when the next batch is ready, which may be in the past; infinity when empty."""
        if not self._window:  # all of them are ready
            return next((each.oldest.arrived for each in self._callers.values()), math.inf)
        times = [caller.oldest.arrived + self._window for caller in self._callers.values()]
        times += [next(iter(self._queues[key].calls.values())).arrived for key in self._full]
        return min(times, default=math.inf)

    def next_batch(self, now: float) -> Batch | None:
        """Take the calls to compute next; None when no batch is ready."""
        leader = self._leader(now)
        if leader is None:
            return None
        queue = self._queues[leader.uids, leader.kind, leader.form]
        batch = Batch(uids=leader.uids, kind=leader.kind, calls=self._fill(queue, leader))
        for call in batch.calls:
            self._remove(call)
        return batch

    def charge(self, batch: Batch, seconds: float, now: float) -> None:
        """Note what a batch has cost, to its callers' account."""
        amounts: dict[PeerId, int] = {}
        for call in batch.calls:
            amounts[call.caller] = amounts.get(call.caller, 0) + call.amount
        self._shares.charge(amounts, seconds, now)
        self._pace += _PACE_SMOOTHING * (seconds - self._pace)

    def _check_room(self, uid: Uid, caller: "_Caller | None") -> None:
        limit, queued = self._settings.max_queued_calls, self._queued[uid]
        if queued >= limit:
            raise OverloadedError(
                f"{limit} calls of {uid.name} are queued here already; go elsewhere"
            )
        kept_free = int(limit * _KEPT_FREE)  # or else nobody else could ever show that they wait
        if queued >= limit - kept_free and caller is not None and 2 * caller.queued[uid] > queued:
            raise OverloadedError(
                f"{queued} calls of {uid.name} are queued here already, most of them yours, and"
                " the last places are for others; go elsewhere"
            )

    def _leader(self, now: float) -> Call | None:
        waiting = []
        for peer_id, caller in self._callers.items():
            call: Call | None = caller.oldest
            if self._window:
                ready = (each for each in caller.calls.values() if self._is_ready(each, now))
                call = next(ready, None)
            if call is not None:
                waiting.append((self._shares.time_of(peer_id), call.arrived, call))
        if not waiting:
            return None
        time, _, call = min(waiting, key=operator.itemgetter(0, 1))
        return self._urgent(time + self._settings.urgent_lead, now) or call

    def _urgent(self, latest: float, now: float) -> Call | None:
        """Return the call that must go ahead, if any, of a caller whose time allows it."""
        found: Call | None = None
        soon = now + 2 * self._pace
        if soon < self._earliest:
            return None
        self._find_earliest()
        for peer_id, caller in self._callers.items():
            call = self._most_urgent(caller)
            if (
                call is not None
                and call.deadline < soon
                and self._shares.time_of(peer_id) <= latest
                and (found is None or call.deadline < found.deadline)
            ):
                found = call
        return found

    def _fill(self, queue: _Queue, leader: Call) -> list[Call]:
        """Choose a batch's calls by deficit round robin, the leader and its caller first."""
        limit = self._most(leader)
        chosen, amount = [leader], leader.amount
        waiting = {
            peer_id: deque(call for call in calls.values() if call is not leader)
            for peer_id, calls in queue.by_caller.items()
        }
        quantum = max(1, limit // len(waiting))
        credit = dict.fromkeys(waiting, 0)
        credit[leader.caller] = -leader.amount
        turns = deque([leader.caller, *(each for each in waiting if each != leader.caller)])
        while turns:
            peer_id = turns.popleft()
            calls = waiting[peer_id]
            credit[peer_id] += quantum
            while calls and calls[0].amount <= min(credit[peer_id], limit - amount):
                call = calls.popleft()
                credit[peer_id] -= call.amount
                amount += call.amount
                chosen.append(call)
            if calls and calls[0].amount <= limit - amount:
                turns.append(peer_id)
        return chosen

    def _most(self, call: Call) -> int:
        """Return how much calls of this kind may come to in a batch; one alone may be more."""
        limit = self._limits.of(call.uids)
        return min(limit, self._settings.max_step_rows) if call.kind == "backward" else limit

    def _is_ready(self, call: Call, now: float) -> bool:
        key = (call.uids, call.kind, call.form)
        oldest = next(iter(self._queues[key].calls.values()))
        return oldest.arrived + self._window <= now or key in self._full

    def _others_wait(self, peer_id: PeerId, now: float) -> bool:
        """Tell whether another caller has waited for longer than is usual on a busy device."""
        since = now - self._settings.tolerated_wait
        return any(
            caller.oldest.arrived <= since
            for other, caller in self._callers.items()
            if other != peer_id
        )

    def _find_earliest(self) -> None:
        calls = (self._most_urgent(caller) for caller in self._callers.values())
        self._earliest = min((call.deadline for call in calls if call), default=math.inf)

    def _most_urgent(self, caller: _Caller) -> Call | None:
        """Return the call with the earliest deadline."""
        heap = caller.deadlines
        while heap:
            deadline, _, call = heap[0]
            if id(call) not in caller.calls:
                heapq.heappop(heap)
            elif call.deadline > deadline:  # a repetition of it brought more time
                heapq.heapreplace(heap, (call.deadline, next(self._numbers), call))
            else:
                return call
        return None

    def _remove(self, call: Call) -> bool:
        key = (call.uids, call.kind, call.form)
        queue = self._queues.get(key)
        if queue is None or queue.calls.pop(id(call), None) is None:
            return False
        queue.amount -= call.amount
        of_caller = queue.by_caller[call.caller]
        del of_caller[id(call)]
        if not of_caller:
            del queue.by_caller[call.caller]
        if queue.amount < self._most(call):
            self._full.pop(key, None)
        if not queue.calls:
            del self._queues[key]
            self._full.pop(key, None)
        self._remove_from_caller(call)
        for uid in call.uids:
            self._queued[uid] -= 1
            if not self._queued[uid]:
                del self._queued[uid]
        return True

    def _remove_from_caller(self, call: Call) -> None:
        caller = self._callers[call.caller]
        del caller.calls[id(call)]
        caller.queued.subtract(call.uids)
        if not caller.calls:
            del self._callers[call.caller]
            self._shares.leave(call.caller)
        elif len(caller.deadlines) > 2 * len(caller.calls) + _STALE_DEADLINES:
            caller.deadlines = [
                (each.deadline, next(self._numbers), each) for each in caller.calls.values()
            ]
            heapq.heapify(caller.deadlines)
