"""The experts of a host as those who call them meet them."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import trio

from p2pnode.config import HostingSettings
from p2pnode.errors import (
    AlreadyAppliedError,
    CallError,
    ExpertFailedError,
    P2PNodeError,
    PausedError,
    StaleUpdateError,
    UnknownExpertError,
)
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.batches import Outcome, compute_batch
from p2pnode.experts.devices import Device, Devices
from p2pnode.experts.events import BatchComputed, ExpertFailed
from p2pnode.experts.hosted import Hosted, info_of
from p2pnode.experts.pool import Batch, Call, Kind
from p2pnode.experts.replay import ReplayLog, replay_key
from p2pnode.experts.row_limits import RowLimits
from p2pnode.experts.runtime import Compute, WaitedCall
from p2pnode.experts.sessions.compute import CachedStep, compute_steps
from p2pnode.rpc.age import Age
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.server import CallHandler
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

T = TypeVar("T")


class ServedExperts(CallHandler):
    """Answers the calls of experts: queues them, and applies each backward call at most once.

    Args:
        settings: how calls are queued and batched.
        events: where `BatchComputed` and `ExpertFailed` go.
        on_outcome: told of each computed call's expert, and whether it failed.
        compute: the worker of all devices; by default each has a thread.
    """

    def __init__(
        self,
        settings: HostingSettings,
        events: EventBus,
        on_outcome: Callable[[Hosted, bool], None],
        compute: Compute | None,
    ) -> None:
        self._settings = settings
        self._events = events
        self._on_outcome = on_outcome
        self._experts: dict[Uid, Hosted] = {}
        self._limits = RowLimits(settings.max_batch_rows)
        self._devices = Devices(
            settings,
            self._limits,
            execute=self._execute,
            on_settled=self._settled,
            device_of=self._device_of,
            compute=compute,
        )
        self._replay = ReplayLog(
            max_calls=settings.replay_window_calls, max_bytes=settings.replay_window_bytes
        )
        self._draining = False
        self._paused = False

    @property
    def uids(self) -> list[Uid]:
        """The experts hosted now."""
        return list(self._experts)

    @property
    def queued(self) -> int:
        """How many calls wait for a device."""
        return self._devices.queued

    def steps(self, uid: Uid) -> int:
        """Return the optimiser steps an expert has taken.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        (hosted,) = self._find(uid)
        return hosted.backend.steps

    def info(self, uid: Uid, span: int = 1) -> ExpertInfo:
        """See `CallHandler`."""
        return info_of(self._find(uid, span))

    def check(self, uid: Uid, span: int = 1, *, caller: PeerId) -> None:
        """See `CallHandler`."""
        self._find_open(uid, span)
        self._experts[uid].device.pool.check(uid.span(span), caller, trio.current_time())

    async def forward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        deadline: float,
        age: Age | None = None,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        self._find_open(uid, span)
        runtime = self._experts[uid].device.runtime
        call = self._new_call("forward", uid.span(span), caller, inputs, deadline=deadline, age=age)
        runtime.submit(call)
        return await runtime.result(call)

    async def backward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        call_id: bytes,
        deadline: float,
        age: Age | None = None,
        wants_gradients: bool = True,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        uids = uid.span(span)
        key = replay_key(caller, call_id)
        try:
            return await self._apply(
                uids,
                inputs,
                gradients,
                key=key,
                caller=caller,
                deadline=deadline,
                age=age,
                wants_gradients=wants_gradients,
            )
        except UnknownExpertError:  # whoever serves it now knows what was applied
            raise
        except CallError as error:
            if not self._replay.knows(uids, key):
                raise
            # Another host would step again, so nobody else is to be asked.
            raise AlreadyAppliedError(
                f"this backward call of {uid.name} was applied already, and its gradients cannot be"
                f" computed again ({error}); go on with the next step"
            ) from error

    async def _apply(
        self,
        uids: tuple[Uid, ...],
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        key: bytes,
        caller: PeerId,
        deadline: float,
        age: Age | None,
        wants_gradients: bool,
    ) -> list[torch.Tensor]:
        uid, span = uids[0], len(uids)
        while True:
            found = self._find(uid, span)
            runtime = found[0].device.runtime
            answer: list[torch.Tensor] | None = self._replay.find(uids, key)
            if answer is not None:
                await trio.lowlevel.checkpoint()
                return answer
            pending = [each.pending[key] for each in found if key in each.pending]
            earlier = next((call for call in pending if not call.settled), None)
            if earlier is None or earlier.uids == uids:
                break
            with contextlib.suppress(CallError):  # of a span that overlaps with this one
                await self._experts[earlier.uids[0]].device.runtime.result(earlier)
        if earlier is None:
            self._find_open(uid, span)
            call = self._new_call(
                "backward",
                uids,
                caller,
                inputs,
                deadline=deadline,
                gradients=gradients,
                key=key,
                age=age,
                wants_gradients=wants_gradients,
            )
            runtime.submit(call)
            for hosted in found:
                hosted.pending[key] = call
        else:  # a repetition has come while the first is under way: both wait for it
            call = earlier
            call.deadline = max(call.deadline, deadline)
        try:
            return await runtime.result(call)
        finally:
            if call.dropped or call.settled:
                self._forget_pending(call)

    async def step(
        self, uid: Uid, step: CachedStep, *, span: int, caller: PeerId, deadline: float
    ) -> list[torch.Tensor]:
        """Run a step of an inference session when its turn comes; cancelling gives it up.

        Args:
            uid: the first block.
            step: what is computed; with those of other sessions that wait at the same time.
            span: how many blocks.
            caller: who calls.
            deadline: on trio's clock; work that cannot start before is dropped.

        Raises:
            CallError: as the step failed, or because the host takes no more work.
        """
        self._find_open(uid, span)
        runtime = self._experts[uid].device.runtime
        call = WaitedCall(
            uids=uid.span(span),
            kind="step",
            caller=caller,
            rows=step.hidden.shape[0],
            positions=step.hidden.shape[1],
            inputs=(step,),
            size=step.hidden.nbytes,
            arrived=trio.current_time(),
            deadline=deadline,
        )
        runtime.submit(call)
        return await runtime.result(call)

    async def compute(self, uid: Uid, span: int, work: Callable[[Sequence[ExpertBackend]], T]) -> T:
        """Run `work` on a span of experts in the device's worker, when its turn comes.

        It waits for the batch that is being computed, and for others who wait so, not for batches
        that are queued.

        Raises:
            UnknownExpertError: one of the experts is not hosted.
            PausedError: the host is shutting down, or paused.
        """
        self._find_open(uid, span)
        async with self._devices.between_batches(uid.span(span)) as compute:
            found = self._find_open(uid, span)
            return await compute(lambda: work([hosted.backend for hosted in found]))

    async def part(
        self,
        uid: Uid,
        work: Callable[[ExpertBackend], list[torch.Tensor]],
        *,
        rows: int,
        positions: int,
        caller: PeerId,
        deadline: float,
    ) -> list[torch.Tensor]:
        """Compute some rows of a call that is split, when their turn comes; cancelling gives up.

        Args:
            uid: the expert.
            work: computes them, in the device's worker.
            rows: how many.
            positions: of each row.
            caller: who calls.
            deadline: on trio's clock; work that cannot start before is dropped.

        Raises:
            CallError: as `work` failed, or because the host takes no more work.
        """
        self._find_open(uid, 1)
        runtime = self._experts[uid].device.runtime
        call = WaitedCall(
            uids=(uid,),
            kind="part",
            caller=caller,
            rows=rows,
            positions=positions,
            inputs=(work,),
            arrived=trio.current_time(),
            deadline=deadline,
        )
        runtime.submit(call)
        return await runtime.result(call)

    async def step_once(self, uid: Uid, work: Callable[[ExpertBackend], None], key: bytes) -> bool:
        """Let `work` step an expert's optimiser between two batches, if it has not yet done so.

        Args:
            uid: the expert.
            work: takes the step, in the device's worker.
            key: by which the step counts as applied from then on, like a backward call.

        Returns:
            Whether the step was taken now, and not earlier.

        Raises:
            UnknownExpertError: the expert is not hosted.
            ExpertFailedError: `work` failed.
        """
        self._find(uid)
        async with self._devices.between_batches([uid]) as compute:
            (hosted,) = self._find(uid)
            if self._replay.knows([uid], key):
                return False
            try:
                await compute(lambda: work(hosted.backend))
            except ExpertFailedError:
                self._on_outcome(hosted, True)
                raise
            # No await from here on: weights and ids belong together.
            self._replay.remember(uid, key)
            self._on_outcome(hosted, False)
            return True

    def was_applied(self, uid: Uid, key: bytes) -> bool:
        """Tell whether the step or the backward call of this key is part of an expert's state."""
        return self._replay.knows([uid], key)

    def _new_call(
        self,
        kind: Kind,
        uids: tuple[Uid, ...],
        caller: PeerId,
        inputs: Sequence[torch.Tensor],
        *,
        deadline: float,
        gradients: Sequence[torch.Tensor] = (),
        key: bytes = b"",
        age: Age | None = None,
        wants_gradients: bool = True,
    ) -> WaitedCall:
        shapes = [tuple(each.shape) for each in inputs]
        return WaitedCall(
            uids=uids,
            kind=kind,
            caller=caller,
            rows=shapes[0][0],
            positions=self._experts[uids[0]].info.positions_of(shapes),
            form=tuple(shape[1:] for shape in shapes),
            inputs=inputs,
            gradients=gradients,
            wants_gradients=wants_gradients,
            key=key,
            age=age,
            size=sum(each.nbytes for each in (*inputs, *gradients)),
            arrived=trio.current_time(),
            deadline=deadline,
        )

    def _find(self, uid: Uid, span: int = 1) -> list[Hosted]:
        found = []
        for each in uid.span(span):
            hosted = self._experts.get(each)
            if hosted is None:
                raise self._unknown(each)
            found.append(hosted)
        return found

    def _find_open(self, uid: Uid, span: int) -> list[Hosted]:
        """Find experts that take more work."""
        found = self._find(uid, span)
        if self._draining:
            raise PausedError("the host is shutting down; call another")
        if self._paused:
            raise PausedError("the host is paused by its owner; call another")
        for hosted in found:
            if hosted.leaving:
                raise self._unknown(hosted.uid)
            if hosted.stopped:
                raise self._out_of_service(hosted)
        return found

    def _unknown(self, uid: Uid) -> UnknownExpertError:
        return UnknownExpertError(
            f"this host does not serve {uid.name}; look up who does, its record may be old"
        )

    def _out_of_service(self, hosted: Hosted) -> ExpertFailedError:
        return ExpertFailedError(
            f"{hosted.uid.name} is out of service here until it is restarted; call another host"
            f" ({hosted.stopped})"
        )

    def _device_of(self, uid: Uid) -> Device:
        return self._experts[uid].device

    def _forget_pending(self, call: Call) -> None:
        for uid in call.uids:
            hosted = self._experts.get(uid)
            if hosted is not None and hosted.pending.get(call.key) is call:
                del hosted.pending[call.key]

    def _execute(self, uids: Sequence[Uid], calls: Sequence[Call]) -> list[Outcome]:
        found = [self._experts[uid] for uid in uids]
        chain = [hosted.backend for hosted in found]
        stopped = next((hosted for hosted in found if hosted.stopped), None)
        if stopped is not None:
            return [self._out_of_service(stopped) for _ in calls]
        if calls[0].kind == "part":
            return [_computed_part(call, found[0].backend) for call in calls]
        if calls[0].kind == "step":
            return compute_steps(chain, [step for call in calls for step in call.inputs])
        decided = [self._decided(uids, call, chain) for call in calls]
        fresh = [call for call, outcome in zip(calls, decided, strict=True) if outcome is None]
        computed = iter(compute_batch(chain, fresh, self._limits) if fresh else ())
        return [next(computed) if outcome is None else outcome for outcome in decided]

    def _decided(
        self, uids: Sequence[Uid], call: Call, chain: Sequence[ExpertBackend]
    ) -> Outcome | None:
        """Settle a call whose turn has come, unless it is one like all others."""
        if call.age is not None:
            call.age.receive([backend.steps for backend in chain])
        if call.key and (applied := self._replay.applied(uids, call.key)):
            # Its answer is lost, or is at the host that a state adopted meanwhile comes from. By
            # weights that have stepped since, the gradients are as good as any other stale ones.
            rest = [each for each in chain if each.uid not in applied]
            (outcome,) = compute_batch(chain, [call], self._limits, stepping=rest)
            return outcome
        if call.age is not None and call.age.is_stale:
            return StaleUpdateError(
                f"{call.name} has taken {call.age.staleness} steps since the forward pass of"
                f" these samples, more than {call.age.bound}; the update is dropped"
            )
        return None

    def _settled(self, batch: Batch, seconds: float) -> None:
        uid = batch.uids[0]
        failed, rows, taken, given = 0, 0, 0, 0
        for call in batch.calls:
            rows += call.rows
            taken += call.size
            if call.key:
                self._forget_pending(call)
            if isinstance(call.outcome, ExpertFailedError):
                failed += 1
                self._events.emit(ExpertFailed(uid=uid, reason=str(call.outcome)))
            if isinstance(call.outcome, list | ExpertFailedError):
                for each in batch.uids:
                    self._on_outcome(self._experts[each], isinstance(call.outcome, Exception))
            if isinstance(call.outcome, P2PNodeError):
                continue
            size = sum(tensor.nbytes for tensor in call.outcome)
            given += size
            if call.kind == "backward":
                self._replay.record(batch.uids, call.key, call.outcome, size)
        self._events.emit(
            BatchComputed(
                uid=uid,
                span=len(batch.uids),
                kind=batch.kind,
                calls=len(batch.calls),
                rows=rows,
                failed=failed,
                seconds=seconds,
                weights=sum(self._experts[each].backend.weights for each in batch.uids),
                bytes_taken=taken,
                bytes_given=given,
            )
        )


def _computed_part(call: Call, expert: ExpertBackend) -> Outcome:
    """Compute one part; each keeps what the others must not touch, so they are not joined."""
    (work,) = call.inputs
    try:
        answer: list[torch.Tensor] = work(expert)
    except CallError as error:
        return type(error)(str(error))  # without the frames, which hold tensors
    return answer
