"""The versions of hosted experts that a node gives to others: made when asked for, or announced."""

from typing import Protocol

import trio

from p2pnode.config.experts import Codec
from p2pnode.errors import ExpertFailedError, StorageError, TensorTooLargeError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.swarm.weights.manifest import Manifest
from p2pnode.swarm.weights.store import StateStore
from p2pnode.wire.uids import Uid


class SnapshotSource(Protocol):
    """Where the states of experts come from: an `ExpertHost`."""

    def steps(self, uid: Uid) -> int:
        """Return the optimiser steps an expert has taken.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        ...

    async def snapshot(self, uid: Uid, *, complete: bool = True) -> Checkpoint:
        """Copy an expert's state, or its weights alone, between two batches.

        Raises:
            UnknownExpertError: it is not hosted.
            ExpertFailedError: it is not in a state worth keeping.
        """
        ...


class Publisher:
    """Makes a new version of an expert's state when it has stepped, and not too often.

    Args:
        experts: where the states are.
        store: where versions are kept.
    """

    def __init__(self, experts: SnapshotSource, store: StateStore) -> None:
        self._experts = experts
        self._store = store
        self._newest: dict[Uid, dict[tuple[bool, Codec], tuple[Manifest, float]]] = {}
        self._turns: dict[Uid, trio.Lock] = {}

    async def newest(
        self, uid: Uid, *, complete: bool, codec: Codec = "none", exact: bool = False
    ) -> Manifest:
        """Return the newest version of a hosted expert, at most `snapshot_interval` old.

        Args:
            uid: the expert, its run named by id.
            complete: with its optimiser's state and the applied calls.
            codec: of its weights.
            exact: as it is now, and no older.

        Raises:
            UnknownExpertError: it is not hosted.
            TensorTooLargeError: it is larger than `weights.max_state_bytes`.
            ExpertFailedError: it cannot be copied, or written to the disk.
        """
        self._experts.steps(uid)  # or it is not hosted here
        async with self._turn(uid):
            found = self._newest.get(uid, {}).get((complete, codec))
            now = trio.current_time()
            if found is not None and self._store.find(found[0].name) is not None:
                manifest, made_at = found
                is_young = now - made_at < self._store.settings.snapshot_interval
                if manifest.steps == self._experts.steps(uid) or (is_young and not exact):
                    return manifest
            checkpoint = await self._experts.snapshot(uid, complete=complete)
            self._check_size(uid, checkpoint)
            try:
                manifest = await self._store.publish(
                    uid, checkpoint, complete=complete, codec=codec, origin="asked for"
                )
            except StorageError as error:
                raise ExpertFailedError(str(error)) from error
            self._newest.setdefault(uid, {})[complete, codec] = (manifest, now)
            return manifest

    async def publish(
        self, uid: Uid, *, complete: bool, codec: Codec, checkpoint: Checkpoint | None = None
    ) -> Manifest:
        """Make a version that is to be announced; it stays when others are made on demand.

        Args:
            uid: the expert, its run named by id.
            complete: with its optimiser's state and the applied calls.
            codec: of its weights.
            checkpoint: the state; by default that which the expert has now.

        Raises:
            UnknownExpertError: it is not hosted.
            TensorTooLargeError: it is larger than `weights.max_state_bytes`.
            ExpertFailedError: it is not in a state worth keeping.
            NonFiniteError: the checkpoint holds values that the codec has no place for.
            StorageError: the disk fails or is full.
        """
        self._experts.steps(uid)  # or it is not hosted here
        async with self._turn(uid):
            if checkpoint is None:
                checkpoint = await self._experts.snapshot(uid, complete=complete)
            self._check_size(uid, checkpoint)
            return await self._store.publish(
                uid, checkpoint, complete=complete, codec=codec, origin="announced"
            )

    async def forget(self, uid: Uid) -> None:
        """Drop an expert's versions: it is not hosted here any more, or goes on from elsewhere."""
        self._newest.pop(uid, None)
        self._turns.pop(uid, None)
        await self._store.forget(uid)

    def replaced(self, uid: Uid) -> None:
        """Take in that an expert goes on from another state, perhaps with as many steps."""
        self._newest.pop(uid, None)

    def _turn(self, uid: Uid) -> trio.Lock:
        return self._turns.setdefault(uid, trio.Lock())

    def _check_size(self, uid: Uid, checkpoint: Checkpoint) -> None:
        size = sum(each.nbytes for each in checkpoint.state.tensors.values())
        if size > self._store.settings.max_state_bytes:
            raise TensorTooLargeError(
                f"the state of {uid.name} has {size} bytes, more than weights.max_state_bytes"
            )
