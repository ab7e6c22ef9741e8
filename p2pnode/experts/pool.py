"""Calls waiting for the device, and which of them make the next batch: pure.

Calls that are computed together share a queue: those of one kind, of one expert or one span of
layers, with tensors of one form. Among the queues that are ready, the one whose oldest call is
oldest goes next (as in hivemind; serving the newest, as Learning@home's paper code did, starves). A
batch takes calls of one queue in order of arrival up to a number of rows.

Inputs: `push`, `discard`. Outputs: `next_batch`, `next_time`. Time is an argument.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from p2pnode.errors import OverloadedError
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

Kind = Literal["forward", "backward"]
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
    key: bytes = b""  # of a backward call, for replays
    arrived: float
    deadline: float
    dropped: bool = False  # taken back before it was computed
    outcome: Any = None  # the answer, or the exception that is its failure

    @property
    def name(self) -> str:
        """What is called, for messages."""
        first, last = self.uids[0].name, self.uids[-1].name
        return first if len(self.uids) == 1 else f"{first} to {last}"

    @property
    def amount(self) -> int:
        """What it counts against the size of a batch."""
        return self.rows * self.positions

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
    """Calls of one queue to be computed together, and those found too late to be computed."""

    uids: tuple[Uid, ...]
    kind: Kind
    calls: list[Call]
    late: list[Call]


@dataclass(slots=True)
class _Queue:
    calls: dict[int, Call] = field(default_factory=dict)  # by identity, in order of arrival
    amount: int = 0


class BatchPool:
    """The queues of all experts on one device.

    Args:
        max_rows: of one batch, counted as `Call.amount`; a single call may not have more.
        max_calls: queued for one expert, of all kinds and spans together.
        window: how long a batch waits for more calls before it is ready, in seconds.
    """

    def __init__(self, *, max_rows: int, max_calls: int, window: float) -> None:
        self._max_rows = max_rows
        self._max_calls = max_calls
        self._window = window
        self._queues: dict[_Key, _Queue] = {}  # those not empty
        self._queued: Counter[Uid] = Counter()  # calls that run through each expert

    def __len__(self) -> int:
        """Return how many calls are queued."""
        return sum(len(queue.calls) for queue in self._queues.values())

    def queued(self, uid: Uid) -> int:
        """Return how many calls of an expert are queued."""
        return self._queued[uid]

    def check(self, uids: Iterable[Uid]) -> None:
        """Return if one more call of these experts may be queued.

        Raises:
            OverloadedError: the queues of one of them are full.
        """
        for uid in uids:
            if self._queued[uid] >= self._max_calls:
                raise OverloadedError(
                    f"{self._max_calls} calls of {uid.name} are queued here already; go elsewhere"
                )

    def push(self, call: Call) -> None:
        """Queue a call.

        Raises:
            OverloadedError: the expert's queues are full.
        """
        self.check(call.uids)
        queue = self._queues.setdefault((call.uids, call.kind, call.form), _Queue())
        queue.calls[id(call)] = call
        queue.amount += call.amount
        self._queued.update(call.uids)

    def discard(self, call: Call) -> bool:
        """Drop a call if it is still queued; tells whether it was."""
        if not self._remove(call):
            return False
        call.dropped = True
        return True

    def next_time(self) -> float:
        """Return when the next batch is ready, which may be in the past; infinity when empty."""
        return min(map(self._ready_at, self._queues.values()), default=math.inf)

    def next_batch(self, now: float) -> Batch | None:
        """Take the calls to compute next; None when no batch is ready."""
        ready = [
            (next(iter(queue.calls.values())).arrived, key)
            for key, queue in self._queues.items()
            if self._ready_at(queue) <= now
        ]
        if not ready:
            return None
        key = min(ready, key=lambda entry: entry[0])[1]
        queue = self._queues[key]
        batch = Batch(uids=key[0], kind=key[1], calls=[], late=[])
        amount = 0
        for call in tuple(queue.calls.values()):
            if call.deadline <= now:
                batch.late.append(call)
            elif batch.calls and amount + call.amount > self._max_rows:
                break
            else:
                batch.calls.append(call)
                amount += call.amount
            self._remove(call)
        return batch

    def _remove(self, call: Call) -> bool:
        key = (call.uids, call.kind, call.form)
        queue = self._queues.get(key)
        if queue is None or queue.calls.pop(id(call), None) is None:
            return False
        queue.amount -= call.amount
        if not queue.calls:
            del self._queues[key]
        for uid in call.uids:
            self._queued[uid] -= 1
            if not self._queued[uid]:
                del self._queued[uid]
        return True

    def _ready_at(self, queue: _Queue) -> float:
        oldest = next(iter(queue.calls.values())).arrived
        return oldest if queue.amount >= self._max_rows else oldest + self._window
