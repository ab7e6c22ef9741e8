"""Experts on the disk of their host: read when they are added, written when they have learnt."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from p2pnode.clock import wall_time
from p2pnode.errors import CheckpointError, ExpertFailedError
from p2pnode.events import EventBus
from p2pnode.experts.checkpoints import Checkpoint, CheckpointStore, Restored
from p2pnode.experts.events import (
    CheckpointFailed,
    CheckpointSaved,
    CheckpointSkipped,
    VersionSetAside,
)
from p2pnode.experts.hosted import Hosted
from p2pnode.experts.runtime import Compute, WorkerThread
from p2pnode.wire.uids import Uid

_LISTED_FAILURES: Final = 3  # in one sentence; each has an event of its own


class Keeper:
    """Keeps experts below a directory.

    Args:
        directory: of the checkpoints, or None to keep none.
        keep: how many of each expert.
        events: where `CheckpointSaved` and the others go.
        copy: copies an expert between two batches.
        disk: the worker that reads and writes; a thread by default.
    """

    def __init__(
        self,
        directory: Path | None,
        keep: int,
        events: EventBus,
        *,
        copy: Callable[[Hosted], Awaitable[Checkpoint]],
        disk: Compute | None,
    ) -> None:
        self._store = None if directory is None else CheckpointStore(directory, keep=keep)
        self._events = events
        self._copy = copy
        self._disk = disk or WorkerThread()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._store is not None

    async def read(self, uid: Uid) -> Restored | None:
        """Read an expert's newest intact checkpoint; None where there is none.

        Raises:
            CheckpointError: there are some, but none can be used.
        """
        store = self._store
        return None if store is None else await self._disk(lambda: store.load(uid))

    async def set_aside(self, uid: Uid, checkpoint: Checkpoint) -> None:
        """Keep a version of an expert that is about to go on from another state.

        Raises:
            CheckpointError: it cannot be written.
        """
        store = self._store
        if store is None:
            return
        path = await self._disk(lambda: store.set_aside(uid, checkpoint))
        self._events.emit(VersionSetAside(uid=uid, path=path, steps=checkpoint.state.steps))

    async def kept(self, uids: Sequence[Uid]) -> list[Uid]:
        """Return those of `uids` of which there are checkpoints.

        Raises:
            CheckpointError: a folder cannot be listed.
        """
        store = self._store
        return [] if store is None else await self._disk(lambda: list(filter(store.has, uids)))

    def tell_skipped(self, uid: Uid, restored: Restored | None) -> None:
        """Tell of the checkpoints that were newer, but are damaged."""
        for path, reason in () if restored is None else restored.skipped:
            self._events.emit(CheckpointSkipped(uid=uid, path=path, reason=reason))

    async def save(self, experts: Iterable[Hosted]) -> None:
        """Save those of these experts that have changed since they were last saved.

        One that is out of service has nothing that is worth keeping.

        Raises:
            CheckpointError: some could not be saved; all were tried, each has its event.
        """
        store = self._store
        if store is None:
            return
        failures: list[str] = []
        for hosted in experts:
            if not hosted.changed or hosted.stopped:
                continue
            try:
                await self._save(store, hosted)
            except (CheckpointError, ExpertFailedError) as error:
                failures.append(str(error))
                self._events.emit(CheckpointFailed(uid=hosted.uid, reason=str(error)))
        if failures:
            listed = "; ".join(failures[:_LISTED_FAILURES])
            raise CheckpointError(f"{len(failures)} experts could not be saved: {listed}")

    async def _save(self, store: CheckpointStore, hosted: Hosted) -> None:
        uid, checkpoint = hosted.uid, await self._copy(hosted)
        path = await self._disk(lambda: store.save(uid, checkpoint))
        hosted.saved_steps = checkpoint.state.steps
        hosted.saved_at = wall_time()
        self._events.emit(CheckpointSaved(uid=uid, path=path, steps=checkpoint.state.steps))
