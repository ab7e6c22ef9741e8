"""The device loop: one worker computes one batch after the other.

Whatever touches an expert's weights runs through `Runtime`, one piece at a time: batches, and
`exclusive` work such as building or copying for a checkpoint. A batch's outcomes are settled
before the next piece starts, so such a copy always matches what has been answered.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import trio

from p2pnode.errors import DeadlineExceededError, P2PNodeError, PausedError
from p2pnode.experts.batches import Outcome
from p2pnode.experts.pool import Batch, BatchPool, Call
from p2pnode.experts.quick_work import QuickWork
from p2pnode.wire.uids import Uid

T = TypeVar("T")


class Compute(Protocol):
    """How work that blocks is run: in a thread, or inline where time is virtual."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; when cancelled, first wait until it is done."""
        ...


class WorkerThread:
    """Runs one piece of work at a time in a thread."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def __call__(self, work: Callable[[], T]) -> T:
        """See `Compute`."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


async def compute_inline(work: Callable[[], T]) -> T:
    """Run the work on the spot: for tests and simulations on a virtual clock."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass(eq=False, slots=True, kw_only=True)
class WaitedCall(Call):
    """A call with tasks that wait for its outcome."""

    waiters: int = 0
    room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def settle(self, outcome: Any) -> None:
        """Set the outcome, and wake those who wait."""
        Call.settle(self, outcome)  # `super` does not work in a dataclass with slots
        self.room.unpark_all()


class Runtime:
    """Feeds one device from its pool.

    Args:
        pool: where calls wait.
        execute: computes a batch's calls, in the worker.
        on_settled: told of each batch whose calls have just been settled, and the seconds the
            worker took.
        compute: the worker.
        turns_of: the turns of all devices that hold some of these experts, in one order for all
            runtimes, where there are several devices; a batch needs them all.
        quick: what is computed without the worker, at once if the device is idle; None for
            nothing.
    """

    def __init__(
        self,
        pool: BatchPool,
        execute: Callable[[Sequence[Uid], Sequence[Call]], list[Outcome]],
        on_settled: Callable[[Batch, float], None],
        compute: Compute,
        *,
        turns_of: Callable[[Sequence[Uid]], Sequence[trio.StrictFIFOLock]] | None = None,
        quick: QuickWork | None = None,
    ) -> None:
        self.turn = trio.StrictFIFOLock()
        self._pool = pool
        self._execute = execute
        self._on_settled = on_settled
        self.compute = compute
        self._turns_of = turns_of or (lambda _: (self.turn,))
        self._quick = quick
        self._arrival = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()  # until a call is settled or dropped
        self._computing: Batch | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Compute batches until cancelled."""
        task_status.started()
        while True:
            now = trio.current_time()
            if (ready_at := self._pool.next_time()) > now:
                await self._wait_for_calls(ready_at)
                continue
            async with contextlib.AsyncExitStack() as held:
                await held.enter_async_context(self.turn)
                now = trio.current_time()
                for call in self._pool.take_late(now):
                    self._settle_late(call)
                batch = self._pool.next_batch(now)
                if batch is None:
                    continue
                if self._includes(batch) and len(self._turns_of(batch.uids)) == 1:
                    self._compute_at_once(batch)
                else:
                    await self._compute_batch(batch, held)

    def submit(self, call: Call) -> None:
        """Queue a call, or compute it at once if that is quick and the device is idle.

        Raises:
            OverloadedError: its expert's queues are full.
        """
        if self._is_quick(call):
            self._compute_at_once(Batch(uids=call.uids, kind=call.kind, calls=[call]))
            return
        self._pool.push(call)
        self._arrival.set()

    async def result(self, call: WaitedCall) -> list[torch.Tensor]:
        """Wait for a call's answer; a queued call whose last waiter is cancelled is dropped.

        Raises:
            CallError: as the call was settled.
        """
        call.waiters += 1
        try:
            if not call.settled:  # else it was quick: whoever answers it lets others have a turn
                await call.room.park()
        finally:
            call.waiters -= 1
            if not call.waiters and self._pool.discard(call):
                call.inputs = call.gradients = ()
                self._progress.unpark_all()
        outcome: list[torch.Tensor] | P2PNodeError = call.outcome
        if isinstance(outcome, P2PNodeError):
            raise type(outcome)(*outcome.args) from outcome  # one for each who waits
        return outcome

    async def exclusive(self, work: Callable[[], T]) -> T:
        """Run `work` in the worker, between two batches."""
        async with self.turn:
            return await self.compute(work)

    async def wait_idle(self, uids: Iterable[Uid] | None = None) -> None:
        """Wait until no call, or none of these experts, is queued or being computed."""
        await trio.lowlevel.checkpoint()
        wanted = None if uids is None else tuple(uids)
        while self._is_busy(wanted):
            await self._progress.park()

    def _is_busy(self, uids: Sequence[Uid] | None) -> bool:
        computing = () if self._computing is None else self._computing.uids
        if uids is None:
            return bool(computing) or len(self._pool) > 0
        return any(self._pool.queued(uid) or uid in computing for uid in uids)

    async def _wait_for_calls(self, ready_at: float) -> None:
        self._arrival = trio.Event()
        with trio.move_on_at(ready_at):
            await self._arrival.wait()

    def _settle_late(self, call: Call) -> None:
        call.settle(
            DeadlineExceededError(
                f"the deadline of a {call.kind} call of {call.name} passed while it was queued;"
                " allow more time or call another host"
            )
        )
        self._progress.unpark_all()

    def _includes(self, work: Call | Batch) -> bool:
        return self._quick is not None and self._quick.includes(work.uids, work.kind, work.amount)

    def _is_quick(self, call: Call) -> bool:
        return (
            self._includes(call)
            and not len(self._pool)
            and not any(turn.locked() for turn in self._turns_of(call.uids))
        )

    def _compute_at_once(self, batch: Batch) -> None:
        seconds, outcomes = self._timed(batch)
        self._settle(batch, outcomes, seconds, seconds)

    def _timed(self, batch: Batch) -> tuple[float, list[Outcome]]:
        """Compute a batch; also in a worker, so the clock is not trio's."""
        began = time.perf_counter()
        outcomes = self._execute(batch.uids, batch.calls)
        return time.perf_counter() - began, outcomes

    def _settle(
        self, batch: Batch, outcomes: Sequence[Outcome], computing: float, seconds: float
    ) -> None:
        """Give a batch's calls their outcomes; those without one were not computed."""
        for call, outcome in zip(batch.calls, outcomes, strict=False):
            call.settle(outcome)
        for call in batch.calls[len(outcomes) :]:
            call.settle(PausedError("the host is shutting down; call another"))
        if outcomes and self._quick is not None:
            self._quick.note(batch, computing)
        self._pool.charge(batch, seconds, trio.current_time())
        self._on_settled(batch, seconds)
        self._progress.unpark_all()

    async def _compute_batch(self, batch: Batch, held: contextlib.AsyncExitStack) -> None:
        self._computing = batch
        began = trio.current_time()
        computing, outcomes = 0.0, list[Outcome]()
        try:
            turns = self._turns_of(batch.uids)
            if len(turns) > 1:
                await held.aclose()  # whoever holds one turn must not wait for an earlier one
                for turn in turns:
                    await held.enter_async_context(turn)
            began = trio.current_time()
            computing, outcomes = await self.compute(lambda: self._timed(batch))
        finally:
            self._computing = None
            self._settle(batch, outcomes, computing, trio.current_time() - began)
