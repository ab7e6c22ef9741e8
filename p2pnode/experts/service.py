"""Hosting: the experts of a node, served from its devices and kept on disk."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

import torch
import trio

from p2pnode.config import HostingSettings, RpcSettings
from p2pnode.config.experts import RETUNABLE, OptimizerPolicy
from p2pnode.errors import CheckpointError, ConfigError
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.calls import ServedExperts
from p2pnode.experts.checkpoints import Checkpoint, Restored
from p2pnode.experts.devices import Device, rooms_of, spread
from p2pnode.experts.events import ExpertAdded, ExpertAdopted, ExpertRemoved
from p2pnode.experts.failures import failures
from p2pnode.experts.hosted import ExpertStatus, Hosted
from p2pnode.experts.runtime import Compute
from p2pnode.experts.saving import Keeper
from p2pnode.experts.supervision import Supervisor
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.wire.uids import Uid

_CPU: Final = torch.device("cpu")


class ExpertHost(ServedExperts):
    """Serves experts: joins their calls in batches, steps their optimisers, keeps them on disk.

    Uids have their run's id, not its name. `add` and `save_all` work at any time; calls are
    computed while `run` runs.

    Args:
        settings: how experts are built, batched and saved.
        directory: of the checkpoints, or None to keep none.
        events: where `ExpertAdded` and the others go.
        rpc: the limits told to callers.
        compute: the worker of all devices; by default each has a thread.
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
        self._supervisor = Supervisor(
            settings, events, diagnose=self._diagnose, restart=self._restart
        )
        super().__init__(
            settings,
            events,
            lambda hosted, failed: self._supervisor.receive_outcome(hosted, failed=failed),
            compute,
        )
        self._keeper = Keeper(
            directory, settings.checkpoints_kept, events, copy=self._copy, disk=disk
        )
        self._max_bytes = (rpc or RpcSettings()).max_call_bytes
        self._changing = trio.Lock()  # adding and saving, one at a time
        self._moved: dict[Uid, torch.device] = {}  # where experts belong that left their device

    def status(self) -> list[ExpertStatus]:
        """Describe all experts."""
        return [
            ExpertStatus(
                uid=uid,
                layer=hosted.info.layer,
                steps=hosted.backend.steps,
                rows=hosted.backend.rows,
                queued=self._devices.queued_of(uid),
                saved_at=hosted.saved_at,
                restored=hosted.restored,
                device=hosted.device.name,
                stopped=hosted.stopped,
            )
            for uid, hosted in self._experts.items()
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Compute calls, and save the experts every `checkpoint_interval`, until cancelled.

        Cancelling it neither drains nor saves: call `drain` and `save_all` before.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._devices.run)
            await nursery.start(self._supervisor.run)
            if self._keeper.keeps and self._settings.checkpoint_interval > 0:
                nursery.start_soon(self._save_regularly)
            task_status.started()

    async def drain(self) -> None:
        """Take no more calls, and wait until those taken are answered."""
        self._draining = True
        await self._devices.wait_idle()

    # --- pausing --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more calls until `resume`; those taken are computed."""
        self._paused = True

    async def free_device(self, patience: float) -> None:
        """Move the experts to main memory, once calls have ended or `patience` seconds are over.

        What is still queued then is computed there. Experts on the CPU stay as they are.
        """
        with trio.move_on_after(patience):
            await self._devices.wait_idle()
        async with self._changing:
            leaving = {
                uid: each.backend
                for uid, each in self._experts.items()
                if each.backend.device.type == "cuda"
            }
            if leaving:
                self._moved |= {uid: backend.device for uid, backend in leaving.items()}
                moves = [(backend, _CPU) for backend in leaving.values()]
                await self._devices.exclusive(tuple(leaving), lambda: _move(moves))

    async def resume(self) -> None:
        """Move the experts back to their device, and take calls again, unless it is cancelled.

        Raises:
            torch.OutOfMemoryError: the device has no room for all of them yet; nothing changes.
        """
        async with self._changing:
            back = tuple(uid for uid in self._moved if uid in self._experts)
            if back:
                moves = [(self._experts[uid].backend, self._moved[uid]) for uid in back]
                await self._devices.exclusive(back, lambda: _move(moves))
            self._moved.clear()
        # What runs in a thread is not cancelled: the host may have been paused again meanwhile.
        await trio.lowlevel.checkpoint_if_cancelled()
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
            built = await self._build_all(wanted, settings)
            for hosted, restored in built:
                self._admit(hosted, restored)
        return [status for status in self.status() if status.uid in set(wanted)]

    async def kept(self, uids: Sequence[Uid]) -> list[Uid]:
        """Return those of `uids`, hosted or not, that have checkpoints here.

        Raises:
            CheckpointError: they cannot be looked for.
        """
        return await self._keeper.kept(uids)

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
            await self._devices.wait_idle(hosted.uid for hosted in leaving)
            async with self._changing:
                await self._keeper.save(leaving)
                # A step that several hosts take together may come while the disk is slow.
                while self._keeper.keeps and any(
                    each.changed and not each.stopped for each in leaving
                ):
                    await self._keeper.save(leaving)
                for hosted in leaving:
                    del self._experts[hosted.uid]
                    hosted.removed = True
                    hosted.device.held -= hosted.backend.size
                    self._replay.replace(hosted.uid, ())
                    self._events.emit(ExpertRemoved(uid=hosted.uid, steps=hosted.backend.steps))
        finally:
            for hosted in leaving:
                hosted.leaving = False

    def settings(self, uid: Uid) -> HostingSettings:
        """Return what an expert was built with, its run's description included.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        (hosted,) = self._find(uid)
        return hosted.settings

    def weights(self, uid: Uid) -> int:
        """Return how many weights an expert has.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        (hosted,) = self._find(uid)
        return hosted.backend.weights

    def size_with(self, uid: Uid, settings: HostingSettings) -> int:
        """Return the bytes that an expert would use with other options of its optimiser.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        (hosted,) = self._find(uid)
        return hosted.backend.size_with(settings)

    async def retune(self, uid: Uid, settings: HostingSettings) -> None:
        """Let an expert learn with other options from the next batch on.

        Args:
            uid: the expert.
            settings: those it has, with other values of `RETUNABLE` ones.

        Raises:
            UnknownExpertError: it is not hosted.
            ConfigError: another setting differs, for which it would have to be built anew.
            ExpertFailedError: its device has no room for what they need; nothing has changed.
        """
        (hosted,) = self._find(uid)
        fixed = sorted(
            each.name
            for each in fields(settings)
            if each.name not in RETUNABLE
            and getattr(settings, each.name) != getattr(hosted.settings, each.name)
        )
        if fixed:
            raise ConfigError(
                f"{uid.name} was built with another {fixed[0]}; start the node again to build it"
                " anew"
            )
        async with self._changing:  # one that is being restarted is built with its settings
            (hosted,) = self._find(uid)
            async with self._devices.between_batches([uid]) as compute:
                before = hosted.backend.size  # with momentum it is larger than without
                await compute(lambda: hosted.backend.retune(settings))
                hosted.device.held += hosted.backend.size - before
                hosted.settings = settings

    async def snapshot(self, uid: Uid, *, complete: bool = True) -> Checkpoint:
        """Copy an expert between two batches.

        Args:
            uid: the expert.
            complete: with its optimiser's state and the ids of the calls applied to it, or only
                its weights.

        Raises:
            UnknownExpertError: it is not hosted.
            ExpertFailedError: it is not in a state worth keeping.
        """
        (hosted,) = self._find(uid)
        return await self._copy(hosted, complete=complete)

    async def adopt(
        self,
        uid: Uid,
        checkpoint: Checkpoint,
        *,
        optimizer: OptimizerPolicy = "adopt",
        keep_own: bool = False,
    ) -> None:
        """Let a hosted expert go on from another state, from the next batch on.

        The calls that the state contains count as applied, and no others: a call that is queued
        here, and was applied there, is not applied again. Of weights alone nobody knows which calls
        they contain; then those that were applied here count on, so that none is applied twice.

        Args:
            uid: the expert.
            checkpoint: the state.
            optimizer: whether its optimiser's state is adopted with the weights, or the own one is
                kept, or begun anew.
            keep_own: whether what it has learnt here is set aside on the disk first, unless the
                state contains it.

        Raises:
            UnknownExpertError: it is not hosted.
            CheckpointError: what was learnt here cannot be set aside, or the state is of another
                kind of expert, or is to be adopted with an optimiser's state that it does not
                hold; nothing has changed.
        """
        if optimizer == "adopt" and not checkpoint.complete:
            raise CheckpointError(
                f"the weights of {uid.name} came without their optimiser's state; set"
                " hosting.optimizer_policy to keep or reset, or have them published with it"
            )
        async with self._changing:
            (hosted,) = self._find(uid)
            async with self._devices.between_batches([uid]) as compute:
                before = hosted.backend.steps
                if keep_own and self._has_own(hosted, checkpoint):
                    own = Checkpoint(
                        state=await compute(hosted.backend.state), applied=self._replay.keys(uid)
                    )
                    await self._keeper.set_aside(uid, own)
                await compute(lambda: hosted.backend.load(checkpoint.state, optimizer))
                # No await from here on: weights and ids belong together.
                hosted.saved_steps = None
                if checkpoint.complete:
                    self._replay.replace(uid, checkpoint.applied)
        self._events.emit(ExpertAdopted(uid=uid, steps_before=before, steps=hosted.backend.steps))

    def _has_own(self, hosted: Hosted, checkpoint: Checkpoint) -> bool:
        """Tell whether an expert has learnt something that a state does not contain."""
        if not hosted.backend.steps or hosted.backend.broken:
            return False
        keys = self._replay.keys(hosted.uid)
        return not keys or keys[-1] not in checkpoint.applied

    async def save_all(self) -> None:
        """Save every expert that has changed since it was last saved.

        Raises:
            CheckpointError: some could not be saved; all were tried, each has its event.
        """
        async with self._changing:
            await self._keeper.save(self._experts.values())

    async def _save_regularly(self) -> None:
        while True:
            await trio.sleep(self._settings.checkpoint_interval)
            try:
                await self.save_all()
            except CheckpointError:
                continue  # each expert had its event; the next round tries again

    async def _copy(self, hosted: Hosted, *, complete: bool = True) -> Checkpoint:
        def copy() -> Checkpoint:
            # Between two batches: the steps taken and the ids recorded are the same ones.
            return Checkpoint(
                state=hosted.backend.state(complete=complete),
                applied=self._replay.keys(hosted.uid) if complete else (),
                complete=complete,
            )

        return await self._devices.exclusive([hosted.uid], copy)

    async def _build_all(
        self, uids: Sequence[Uid], settings: HostingSettings
    ) -> list[tuple[Hosted, Restored | None]]:
        """Build experts of one kind, each where most room is left, neighbours together."""
        devices = self._devices.named(settings.device)
        rooms = [0]
        if len(devices) > 1:
            rooms = await devices[0].runtime.exclusive(lambda: rooms_of(devices))
        places = [max(range(len(devices)), key=lambda number: (rooms[number], -number))]
        built: list[tuple[Hosted, Restored | None]] = []
        for number, uid in enumerate(uids):
            restored = await self._keeper.read(uid)
            outputs = built[0][0].info.outputs if built else None
            device = devices[places[number]]
            hosted = await self._build(uid, settings, device, outputs, restored)
            built.append((hosted, restored))
            if not number:  # now it is known how large they are
                counts = spread(len(uids), hosted.backend.size, rooms)
                order = sorted(range(len(devices)), key=lambda at: at != places[0])
                places = [at for at in order for _ in range(counts[at])]
        return built

    async def _build(
        self,
        uid: Uid,
        settings: HostingSettings,
        device: Device,
        outputs: tuple[TensorSpec, ...] | None,
        restored: Restored | None,
    ) -> Hosted:
        settings = replace(settings, device=device.name)
        backend = await device.runtime.exclusive(
            lambda: self._build_backend(uid, settings, outputs, restored)
        )
        return Hosted(
            backend=backend,
            settings=settings,
            device=device,
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

    def _build_backend(
        self,
        uid: Uid,
        settings: HostingSettings,
        outputs: tuple[TensorSpec, ...] | None,
        restored: Restored | None,
    ) -> ExpertBackend:
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        backend = build_backend(uid, settings, outputs=outputs)
        if restored is not None:
            backend.load(restored.checkpoint.state)
        return backend

    # --- experts at fault -------------------------------------------------------------------------

    async def _diagnose(self, hosted: Hosted) -> str:
        if hosted.removed:
            return ""
        return await hosted.device.runtime.exclusive(hosted.backend.diagnose)

    async def _restart(self, hosted: Hosted) -> None:
        def build() -> ExpertBackend:
            broken.release(f"{uid.name} was given up")  # a full device has no room for both
            with failures([broken], "its restart"):
                return self._build_backend(uid, settings, hosted.info.outputs, restored)

        uid, broken = hosted.uid, hosted.backend
        async with self._changing:
            if hosted.removed:
                return
            settings = hosted.settings
            if uid in self._moved:  # the machine's owner has the device until `resume`
                settings = replace(settings, device=_CPU.type)
            restored = await self._keeper.read(uid)
            async with self._devices.between_batches([uid]) as compute:
                hosted.backend = await compute(build)
                # No await from here on: weights and ids belong together.
                self._replay.replace(uid, () if restored is None else restored.checkpoint.applied)
                hosted.saved_steps = None if restored is None else hosted.backend.steps
                hosted.restored = restored is not None
        self._keeper.tell_skipped(uid, restored)

    def _admit(self, hosted: Hosted, restored: Restored | None) -> None:
        uid = hosted.backend.uid
        self._keeper.tell_skipped(uid, restored)
        self._replay.replace(uid, () if restored is None else restored.checkpoint.applied)
        self._experts[uid] = hosted
        hosted.device.held += hosted.backend.size
        self._events.emit(
            ExpertAdded(
                uid=uid,
                layer=hosted.info.layer,
                steps=hosted.backend.steps,
                restored=None if restored is None else restored.path,
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
