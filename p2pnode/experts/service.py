"""Hosting: the experts of a node, served from one device and kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, RpcSettings
from p2pnode.errors import (
    CheckpointError,
    ConfigError,
    ExpertFailedError,
    OverloadedError,
    P2PNodeError,
    UnknownExpertError,
)
from p2pnode.events import Event, EventBus
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.batches import Outcome, compute_batch
from p2pnode.experts.checkpoints import Checkpoint, CheckpointStore, Restored
from p2pnode.experts.pool import Batch, BatchPool, Call, Kind
from p2pnode.experts.replay import ReplayLog, replay_key
from p2pnode.experts.runtime import Compute, Runtime, WaitedCall, WorkerThread
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.rpc.server import CallHandler
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_LISTED_FAILURES: Final = 3  # in one sentence; each has an event of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAdded(Event):
    """An expert is hosted from now on; `restored` is the checkpoint it goes on from."""

    uid: Uid
    layer: str
    steps: int
    restored: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchComputed(Event):
    """The device computed calls of one expert together."""

    uid: Uid
    kind: str
    calls: int
    rows: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFailed(Event):
    """A call failed inside its expert."""

    level = "warning"

    uid: Uid
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """An expert was saved."""

    level = "info"

    uid: Uid
    path: Path
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSkipped(Event):
    """A checkpoint was not used, because it is damaged; an earlier one was, and it is kept."""

    level = "warning"

    uid: Uid
    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(Event):
    """An expert could not be saved; it goes on being served."""

    level = "warning"

    uid: Uid
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStatus:
    """What `p2pnode experts` shows of an expert."""

    uid: Uid
    layer: str
    steps: int  # optimiser steps, restored ones included
    rows: int  # trained on, restored ones included
    queued: int  # calls waiting
    saved_at: float | None  # wall-clock seconds of the last save by this process
    restored: bool


@dataclass(slots=True)
class _Hosted:
    backend: ExpertBackend
    info: ExpertInfo
    restored: bool
    saved_steps: int | None  # None before there is a checkpoint
    saved_at: float | None = None
    pending: dict[bytes, WaitedCall] = field(default_factory=dict)  # backward calls not yet settled


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
        self._experts: dict[Uid, _Hosted] = {}
        self._pool = BatchPool(
            max_rows=settings.max_batch_rows,
            max_calls=settings.max_queued_calls,
            window=settings.batch_window,
        )
        self._replay = ReplayLog(
            max_calls=settings.replay_window_calls, max_bytes=settings.replay_window_bytes
        )
        self._runtime = Runtime(self._pool, self._execute, self._settled, compute or WorkerThread())
        self._disk = disk or WorkerThread()
        self._changing = trio.Lock()  # adding and saving, one at a time
        self._draining = False

    @property
    def uids(self) -> list[Uid]:
        """The experts hosted now."""
        return list(self._experts)

    def load(self, uid: Uid) -> int:
        """Return how many calls of an expert are queued, to be announced."""
        return self._pool.queued(uid)

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
            built: list[tuple[_Hosted, Restored | None]] = []
            outputs: tuple[TensorSpec, ...] | None = None
            for uid in wanted:
                restored = await self._read(uid)
                hosted = await self._build(uid, settings, outputs, restored)
                outputs = hosted.info.outputs
                built.append((hosted, restored))
            for hosted, restored in built:
                self._admit(hosted, restored)
        return [status for status in self.status() if status.uid in set(wanted)]

    async def save_all(self) -> None:
        """Save every expert that has changed since it was last saved.

        Raises:
            CheckpointError: some could not be saved; all were tried, each has its event.
        """
        if self._store is None:
            return
        failures: list[str] = []
        async with self._changing:
            for uid, hosted in self._experts.items():
                if hosted.saved_steps == hosted.backend.steps:
                    continue
                try:
                    await self._save(self._store, uid, hosted)
                except (CheckpointError, ExpertFailedError) as error:
                    failures.append(str(error))
                    self._events.emit(CheckpointFailed(uid=uid, reason=str(error)))
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

    async def _save(self, store: CheckpointStore, uid: Uid, hosted: _Hosted) -> None:
        def copy() -> Checkpoint:
            # Between two batches: the steps taken and the ids recorded are the same ones.
            return Checkpoint(state=hosted.backend.state(), applied=self._replay.keys(uid))

        checkpoint = await self._runtime.exclusive(copy)
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
    ) -> _Hosted:
        def build() -> ExpertBackend:
            if self._settings.threads:
                torch.set_num_threads(self._settings.threads)
            backend = build_backend(uid, settings, outputs=outputs)
            if restored is not None:
                backend.load(restored.checkpoint.state)
            return backend

        backend = await self._runtime.exclusive(build)
        return _Hosted(
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

    def _admit(self, hosted: _Hosted, restored: Restored | None) -> None:
        uid = hosted.backend.uid
        for path, reason in () if restored is None else restored.skipped:
            self._events.emit(CheckpointSkipped(uid=uid, path=path, reason=reason))
        self._replay.restore(uid, () if restored is None else restored.checkpoint.applied)
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

    def info(self, uid: Uid) -> ExpertInfo:
        """See `CallHandler`."""
        return self._find(uid).info

    async def forward(
        self, uid: Uid, inputs: Sequence[torch.Tensor], *, deadline: float
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        self._find(uid)
        call = self._new_call(uid, "forward", inputs, deadline=deadline)
        self._runtime.submit(call)
        return await self._runtime.result(call)

    async def backward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        caller: PeerId,
        call_id: bytes,
        deadline: float,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        pending = self._find(uid).pending
        key = replay_key(caller, call_id)
        answer: list[torch.Tensor] | None = self._replay.find(uid, key)
        if answer is not None:
            await trio.lowlevel.checkpoint()
            return answer
        call = pending.get(key)
        if call is None:
            call = self._new_call(
                uid, "backward", inputs, deadline=deadline, gradients=gradients, key=key
            )
            self._runtime.submit(call)
            pending[key] = call
        else:  # a repetition has come while the first is under way: both wait for it
            call.deadline = max(call.deadline, deadline)
        try:
            return await self._runtime.result(call)
        finally:
            if call.dropped:
                pending.pop(key, None)

    def _find(self, uid: Uid) -> _Hosted:
        hosted = self._experts.get(uid)
        if hosted is None:
            raise UnknownExpertError(
                f"this host does not serve {uid.name}; look up who does, its record may be old"
            )
        return hosted

    def _new_call(
        self,
        uid: Uid,
        kind: Kind,
        inputs: Sequence[torch.Tensor],
        *,
        deadline: float,
        gradients: Sequence[torch.Tensor] = (),
        key: bytes = b"",
    ) -> WaitedCall:
        if self._draining:
            raise OverloadedError("the host is shutting down; call another")
        return WaitedCall(
            uid=uid,
            kind=kind,
            rows=len(inputs[0]),
            inputs=inputs,
            gradients=gradients,
            key=key,
            arrived=trio.current_time(),
            deadline=deadline,
        )

    def _execute(self, uid: Uid, calls: Sequence[Call]) -> list[Outcome]:
        return compute_batch(self._experts[uid].backend, calls)

    def _settled(self, batch: Batch, seconds: float) -> None:
        hosted = self._experts[batch.uid]
        failed = 0
        for call in (*batch.late, *batch.calls):
            hosted.pending.pop(call.key, None)
            if isinstance(call.outcome, ExpertFailedError):
                failed += 1
                self._events.emit(ExpertFailed(uid=batch.uid, reason=str(call.outcome)))
            elif call.kind == "backward" and not isinstance(call.outcome, P2PNodeError):
                size = sum(tensor.nbytes for tensor in call.outcome)
                self._replay.record(batch.uid, call.key, call.outcome, size)
        if batch.calls:
            self._events.emit(
                BatchComputed(
                    uid=batch.uid,
                    kind=batch.kind,
                    calls=len(batch.calls),
                    rows=sum(call.rows for call in batch.calls),
                    failed=failed,
                    seconds=seconds,
                )
            )
