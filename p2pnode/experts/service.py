"""Hosting: the experts of a node, served from one device and kept on disk."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, RpcSettings
from p2pnode.errors import (
    AlreadyAppliedError,
    CallError,
    CheckpointError,
    ConfigError,
    ExpertFailedError,
    OverloadedError,
    P2PNodeError,
    PausedError,
    UnknownExpertError,
)
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.batches import Outcome, compute_batch
from p2pnode.experts.checkpoints import Checkpoint, CheckpointStore, Restored
from p2pnode.experts.events import (
    BatchComputed,
    CheckpointFailed,
    CheckpointSaved,
    CheckpointSkipped,
    ExpertAdded,
    ExpertAdopted,
    ExpertFailed,
    ExpertRemoved,
)
from p2pnode.experts.hosted import ExpertStatus, Hosted, info_of
from p2pnode.experts.pool import Batch, BatchPool, Call, Kind
from p2pnode.experts.replay import ReplayLog, replay_key
from p2pnode.experts.row_limits import RowLimits
from p2pnode.experts.runtime import Compute, Runtime, WaitedCall, WorkerThread
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.rpc.server import CallHandler
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

T = TypeVar("T")

_LISTED_FAILURES: Final = 3  # in one sentence; each has an event of its own
_CPU: Final = torch.device("cpu")


class ExpertHost(CallHandler):
    """Serves experts: joins their calls in batches, steps their optimisers, keeps them on disk.

    Uids have their run's id, not its name. `add` and `save_all` work at any time; calls are
    computed while `run` runs.

    Args:
        settings: how experts are built, batched and saved.
        directory: of the checkpoints, or None to keep none.
        events: where `ExpertAdded` and the others go.
        rpc: the limits told to callers.
        compute: the device's worker, a thread by default.
        disk: the worker that reads and writes checkpoints, a thread by default.
    """

    def __init__(
        self,
        settings: HostingSettings,
        directory: Path | None,
        events: EventBus,
        *,
        rpc: RpcSettings | None = None,
        compute: Compute | None = None,
        disk: Compute | None = None,
    ) -> None:
        self._settings = settings
        self._store = (
            None
            if directory is None
            else CheckpointStore(directory, keep=settings.checkpoints_kept)
        )
        self._events = events
        self._max_bytes = (rpc or RpcSettings()).max_call_bytes
        self._experts: dict[Uid, Hosted] = {}
        self._limits = RowLimits(settings.max_batch_rows)
        self._pool = BatchPool(settings, self._limits)
        self._replay = ReplayLog(
            max_calls=settings.replay_window_calls, max_bytes=settings.replay_window_bytes
        )
        self._runtime = Runtime(self._pool, self._execute, self._settled, compute or WorkerThread())
        self._disk = disk or WorkerThread()
        self._changing = trio.Lock()  # adding and saving, one at a time
        self._draining = False
        self._paused = False
        self._moved: dict[Uid, torch.device] = {}  # where experts belong that left their device

    @property
    def uids(self) -> list[Uid]:
        """The experts hosted now."""
        return list(self._experts)

    @property
    def queued(self) -> int:
        """How many calls wait for the device."""
        return len(self._pool)

    def steps(self, uid: Uid) -> int:
        """Return the optimiser steps an expert has taken.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        (hosted,) = self._find(uid)
        return hosted.backend.steps

    def status(self) -> list[ExpertStatus]:
        """Describe all experts."""
        return [
            ExpertStatus(
                uid=uid,
                layer=hosted.info.layer,
                steps=hosted.backend.steps,
                rows=hosted.backend.rows,
                queued=self._pool.queued(uid),
                saved_at=hosted.saved_at,
                restored=hosted.restored,
            )
            for uid, hosted in self._experts.items()
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Compute calls, and save the experts every `checkpoint_interval`, until cancelled.

        Cancelling it neither drains nor saves: call `drain` and `save_all` before.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._runtime.run)
            if self._store is not None and self._settings.checkpoint_interval > 0:
                nursery.start_soon(self._save_regularly)
            task_status.started()

    async def drain(self) -> None:
        """Take no more calls, and wait until those taken are answered."""
        self._draining = True
        await self._runtime.wait_idle()

    # --- pausing --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more calls until `resume`; those taken are computed."""
        self._paused = True

    async def free_device(self, patience: float) -> None:
        """Move the experts to main memory, once calls have ended or `patience` seconds are over.

        What is still queued then is computed there. Experts on the CPU stay as they are.
        """
        with trio.move_on_after(patience):
            await self._runtime.wait_idle()
        async with self._changing:
            leaving = [
                (uid, each.backend)
                for uid, each in self._experts.items()
                if each.backend.device.type == "cuda"
            ]
            if leaving:
                self._moved |= {uid: backend.device for uid, backend in leaving}
                await self._runtime.exclusive(lambda: _move([(b, _CPU) for _, b in leaving]))

    async def resume(self) -> None:
        """Move the experts back to their device, and take calls again.

        Raises:
            torch.OutOfMemoryError: the device has no room for all of them yet; nothing changes.
        """
        async with self._changing:
            back = [
                (self._experts[uid].backend, device)
                for uid, device in self._moved.items()
                if uid in self._experts
            ]
            if back:
                await self._runtime.exclusive(lambda: _move(back))
            self._moved.clear()
        self._paused = False

    # --- experts and checkpoints ----------------------------------------------------------------

    async def add(
        self, uids: Sequence[Uid], settings: HostingSettings | None = None
    ) -> list[ExpertStatus]:
        """Host more experts, each from its newest intact checkpoint, or else with fresh weights.

        Args:
            uids: the experts; those hosted already stay as they are.
            settings: how to build them; by default as the others.

        Returns:
            The status of those that were not hosted before. All of them are, or none.

        Raises:
            ConfigError: the layer cannot be built, or there would be too many experts.
            CheckpointError: an expert has checkpoints, but none can be used.
        """
        settings = settings or self._settings
        async with self._changing:
            wanted = [uid for uid in dict.fromkeys(uids) if uid not in self._experts]
            if len(wanted) + len(self._experts) > self._settings.max_experts:
                raise ConfigError(
                    f"{len(wanted) + len(self._experts)} experts exceed hosting.max_experts,"
                    f" which is {self._settings.max_experts}"
                )
            built: list[tuple[Hosted, Restored | None]] = []
            outputs: tuple[TensorSpec, ...] | None = None
            for uid in wanted:
                restored = await self._read(uid)
                hosted = await self._build(uid, settings, outputs, restored)
                outputs = hosted.info.outputs
                built.append((hosted, restored))
            for hosted, restored in built:
                self._admit(hosted, restored)
        return [status for status in self.status() if status.uid in set(wanted)]

    async def remove(self, uids: Iterable[Uid]) -> None:
        """Stop hosting some experts, once their queued calls are answered and they are saved.

        New calls are refused from the beginning on. When cancelled, all of them stay.

        Raises:
            UnknownExpertError: one is not hosted; nothing has changed.
            CheckpointError: one could not be saved; all of them stay.
        """
        leaving = [hosted for uid in dict.fromkeys(uids) for hosted in self._find(uid)]
        for hosted in leaving:
            hosted.leaving = True
        try:
            await self._runtime.wait_idle(hosted.uid for hosted in leaving)
            async with self._changing:
                if self._store is not None:
                    for hosted in leaving:
                        if hosted.changed:
                            await self._save_or_tell(self._store, hosted)
                for hosted in leaving:
                    del self._experts[hosted.uid]
                    self._replay.replace(hosted.uid, ())
                    self._events.emit(ExpertRemoved(uid=hosted.uid, steps=hosted.backend.steps))
        finally:
            for hosted in leaving:
                hosted.leaving = False

    async def snapshot(self, uid: Uid) -> Checkpoint:
        """Copy an expert between two batches, with the ids of the calls applied to it.

        Raises:
            UnknownExpertError: it is not hosted.
            ExpertFailedError: it is not in a state worth keeping.
        """
        (hosted,) = self._find(uid)
        return await self._copy(hosted)

    async def adopt(self, uid: Uid, checkpoint: Checkpoint) -> None:
        """Let a hosted expert go on from another state, from the next batch on.

        The calls that the state contains count as applied, and no others: a call that is queued
        here, and was applied there, is not applied again.

        Raises:
            UnknownExpertError: it is not hosted.
            CheckpointError: the state is of another kind of expert; nothing has changed.
        """
        async with self._changing, self._runtime.between_batches() as compute:
            (hosted,) = self._find(uid)
            before = hosted.backend.steps
            await compute(lambda: hosted.backend.load(checkpoint.state))
            # No await from here on: weights and ids belong together.
            hosted.saved_steps = None
            self._replay.replace(uid, checkpoint.applied)
        self._events.emit(ExpertAdopted(uid=uid, steps_before=before, steps=hosted.backend.steps))

    async def save_all(self) -> None:
        """Save every expert that has changed since it was last saved.

        Raises:
            CheckpointError: some could not be saved; all were tried, each has its event.
        """
        if self._store is None:
            return
        failures: list[str] = []
        async with self._changing:
            for hosted in self._experts.values():
                if not hosted.changed:
                    continue
                try:
                    await self._save_or_tell(self._store, hosted)
                except CheckpointError as error:
                    failures.append(str(error))
        if failures:
            listed = "; ".join(failures[:_LISTED_FAILURES])
            raise CheckpointError(f"{len(failures)} experts could not be saved: {listed}")

    async def _save_regularly(self) -> None:
        while True:
            await trio.sleep(self._settings.checkpoint_interval)
            try:
                await self.save_all()
            except CheckpointError:
                continue  # each expert had its event; the next round tries again

    async def _copy(self, hosted: Hosted) -> Checkpoint:
        def copy() -> Checkpoint:
            # Between two batches: the steps taken and the ids recorded are the same ones.
            return Checkpoint(state=hosted.backend.state(), applied=self._replay.keys(hosted.uid))

        return await self._runtime.exclusive(copy)

    async def _save_or_tell(self, store: CheckpointStore, hosted: Hosted) -> None:
        try:
            await self._save(store, hosted)
        except (CheckpointError, ExpertFailedError) as error:
            self._events.emit(CheckpointFailed(uid=hosted.uid, reason=str(error)))
            raise CheckpointError(str(error)) from error

    async def _save(self, store: CheckpointStore, hosted: Hosted) -> None:
        uid, checkpoint = hosted.uid, await self._copy(hosted)
        path = await self._disk(lambda: store.save(uid, checkpoint))
        hosted.saved_steps = checkpoint.state.steps
        hosted.saved_at = wall_time()
        self._events.emit(CheckpointSaved(uid=uid, path=path, steps=checkpoint.state.steps))

    async def _read(self, uid: Uid) -> Restored | None:
        store = self._store
        return None if store is None else await self._disk(lambda: store.load(uid))

    async def _build(
        self,
        uid: Uid,
        settings: HostingSettings,
        outputs: tuple[TensorSpec, ...] | None,
        restored: Restored | None,
    ) -> Hosted:
        def build() -> ExpertBackend:
            if self._settings.threads:
                torch.set_num_threads(self._settings.threads)
            backend = build_backend(uid, settings, outputs=outputs)
            if restored is not None:
                backend.load(restored.checkpoint.state)
            return backend

        backend = await self._runtime.exclusive(build)
        return Hosted(
            backend=backend,
            info=ExpertInfo(
                layer=backend.layer.name,
                inputs=backend.inputs,
                outputs=backend.outputs,
                keywords=backend.layer.keywords,
                max_rows=self._settings.max_batch_rows,
                max_bytes=self._max_bytes,
            ),
            restored=restored is not None,
            saved_steps=None if restored is None else backend.steps,
        )

    def _admit(self, hosted: Hosted, restored: Restored | None) -> None:
        uid = hosted.backend.uid
        for path, reason in () if restored is None else restored.skipped:
            self._events.emit(CheckpointSkipped(uid=uid, path=path, reason=reason))
        self._replay.replace(uid, () if restored is None else restored.checkpoint.applied)
        self._experts[uid] = hosted
        self._events.emit(
            ExpertAdded(
                uid=uid,
                layer=hosted.info.layer,
                steps=hosted.backend.steps,
                restored=None if restored is None else restored.path,
            )
        )

    # --- calls ----------------------------------------------------------------------------------

    def info(self, uid: Uid, span: int = 1) -> ExpertInfo:
        """See `CallHandler`."""
        return info_of(self._find(uid, span))

    def check(self, uid: Uid, span: int = 1, *, caller: PeerId) -> None:
        """See `CallHandler`."""
        self._find_open(uid, span)
        self._pool.check(uid.span(span), caller, trio.current_time())

    async def forward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        deadline: float,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        self.check(uid, span, caller=caller)
        call = self._new_call("forward", uid.span(span), caller, inputs, deadline=deadline)
        self._runtime.submit(call)
        return await self._runtime.result(call)

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
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        uids = uid.span(span)
        key = replay_key(caller, call_id)
        while True:
            found = self._find(uid, span)
            answer: list[torch.Tensor] | None = self._replay.find(uids, key)
            if answer is not None:
                await trio.lowlevel.checkpoint()
                return answer
            pending = [each.pending[key] for each in found if key in each.pending]
            earlier = next((call for call in pending if not call.settled), None)
            if earlier is None or earlier.uids == uids:
                break
            with contextlib.suppress(CallError):  # of a span that overlaps with this one
                await self._runtime.result(earlier)
        if earlier is None:
            self.check(uid, span, caller=caller)
            call = self._new_call(
                "backward", uids, caller, inputs, deadline=deadline, gradients=gradients, key=key
            )
            self._runtime.submit(call)
            for hosted in found:
                hosted.pending[key] = call
        else:  # a repetition has come while the first is under way: both wait for it
            call = earlier
            call.deadline = max(call.deadline, deadline)
        try:
            return await self._runtime.result(call)
        finally:
            if call.dropped or call.settled:
                self._forget_pending(call)

    async def compute(self, uid: Uid, span: int, work: Callable[[Sequence[ExpertBackend]], T]) -> T:
        """Run `work` on a span of experts in the device's worker, when its turn comes.

        It waits for the batch that is being computed, and for others who wait so, not for batches
        that are queued.

        Raises:
            UnknownExpertError: one of the experts is not hosted.
            OverloadedError, PausedError: the host is shutting down, or paused.
        """
        async with self._runtime.between_batches() as compute:
            found = self._find_open(uid, span)
            return await compute(lambda: work([hosted.backend for hosted in found]))

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
    ) -> WaitedCall:
        shapes = [tuple(each.shape) for each in inputs]
        return WaitedCall(
            uids=uids,
            kind=kind,
            caller=caller,
            rows=len(inputs[0]),
            positions=self._experts[uids[0]].info.positions_of(shapes),
            form=tuple(shape[1:] for shape in shapes),
            inputs=inputs,
            gradients=gradients,
            key=key,
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
            raise OverloadedError("the host is shutting down; call another")
        if self._paused:
            raise PausedError("the host is paused by its owner; call another")
        for hosted in found:
            if hosted.leaving:
                raise self._unknown(hosted.uid)
        return found

    def _unknown(self, uid: Uid) -> UnknownExpertError:
        return UnknownExpertError(
            f"this host does not serve {uid.name}; look up who does, its record may be old"
        )

    def _forget_pending(self, call: Call) -> None:
        for uid in call.uids:
            hosted = self._experts.get(uid)
            if hosted is not None and hosted.pending.get(call.key) is call:
                del hosted.pending[call.key]

    def _execute(self, uids: Sequence[Uid], calls: Sequence[Call]) -> list[Outcome]:
        # A state that was adopted while a call was queued may contain it.
        applied = {call.key for call in calls if call.key and self._replay.knows(uids, call.key)}
        chain = [self._experts[uid].backend for uid in uids]
        fresh = [call for call in calls if call.key not in applied]
        computed = iter(compute_batch(chain, fresh, self._limits) if fresh else ())
        return [
            AlreadyAppliedError(
                f"this backward call of {call.name} was applied at another host, and its answer is"
                " not kept here; go on with the next step"
            )
            if call.key in applied
            else next(computed)
            for call in calls
        ]

    def _settled(self, batch: Batch, seconds: float) -> None:
        uid = batch.uids[0]
        failed = 0
        for call in batch.calls:
            self._forget_pending(call)
            if isinstance(call.outcome, ExpertFailedError):
                failed += 1
                self._events.emit(ExpertFailed(uid=uid, reason=str(call.outcome)))
            elif call.kind == "backward" and not isinstance(call.outcome, P2PNodeError):
                size = sum(tensor.nbytes for tensor in call.outcome)
                self._replay.record(batch.uids, call.key, call.outcome, size)
        self._events.emit(
            BatchComputed(
                uid=uid,
                span=len(batch.uids),
                kind=batch.kind,
                calls=len(batch.calls),
                rows=sum(call.rows for call in batch.calls),
                failed=failed,
                seconds=seconds,
            )
        )


def _move(moves: Sequence[tuple[ExpertBackend, torch.device]]) -> None:
    """Move all experts or none; what they leave behind is given back to the system."""
    origins = [(backend, backend.device) for backend, _ in moves]
    try:
        for backend, device in moves:
            backend.move(device)
    except torch.OutOfMemoryError:
        for backend, device in origins:
            backend.move(device)
        raise
    finally:
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
