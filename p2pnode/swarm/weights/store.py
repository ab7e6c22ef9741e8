"""The states that a node has on disk: those it gives, and those it fetches.

Of each expert the last few versions are kept of each origin: those that were asked for, those that
were announced, and those of others. So what a swarm was told of stays, whatever is fetched and
rejected meanwhile. What somebody is just reading or fetching stays, too; all others are deleted. A
state that was not fetched to its end stays over a restart, and is gone on with. Chunks that an
earlier version of the same expert has, too, are copied from there.

`StateStore` belongs to the event loop; what blocks runs in the worker it is given.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from p2pnode.config import WeightsSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import ProtocolError, StorageError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.runtime import Compute, WorkerThread
from p2pnode.swarm.weights.files import MANIFEST_SUFFIX, StateFile
from p2pnode.swarm.weights.manifest import Manifest, hash_of
from p2pnode.swarm.weights.packing import read_state, write_state
from p2pnode.wire.uids import Uid

Origin = Literal["asked for", "announced", "fetched"]


@dataclass(slots=True, kw_only=True)
class StoredState:
    """One state on disk, whole or in part; `have` is the set of its chunks that are there."""

    file: StateFile
    have: int
    number: int  # rises with each state stored
    origin: Origin = "fetched"
    users: int = 0
    grown: trio.Event = field(default_factory=trio.Event)  # set when there are more chunks

    @property
    def manifest(self) -> Manifest:
        """What the state is made of."""
        return self.file.manifest

    def add(self, chunks: int) -> None:
        """Take in that more chunks are there."""
        self.have |= chunks
        self.grown.set()
        self.grown = trio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether no chunk is missing."""
        return self.have == (1 << len(self.manifest.chunks)) - 1


class StateStore:
    """States below one directory, which is this store's alone.

    Args:
        directory: made when the first state is stored.
        settings: how many versions are kept, and the chunk size.
        disk: the worker, a thread by default.
    """

    def __init__(
        self, directory: Path, settings: WeightsSettings, *, disk: Compute | None = None
    ) -> None:
        self.settings = settings
        self._directory = directory
        self._disk = disk or WorkerThread()
        self._states: dict[bytes, StoredState] = {}
        self._numbers = itertools.count(1)
        self._admitted = trio.Event()  # of the next new state

    async def open(self) -> None:
        """Take over what an earlier process has not fetched to its end; delete the rest.

        Raises:
            StorageError: the directory cannot be read.
        """
        for manifest in await self._disk(self._scan):
            self._add(StateFile(self._directory, manifest), 0, "fetched")

    async def close(self) -> None:
        """Delete what is whole, as it can be made again."""
        for name, state in list(self._states.items()):
            if state.is_whole:
                del self._states[name]
                await self._disk(state.file.delete)

    def find(self, name: bytes) -> StoredState | None:
        """Return a state by its name, if it is here."""
        return self._states.get(name)

    @contextlib.contextmanager
    def using(self, state: StoredState) -> Iterator[None]:
        """Keep a state while the block runs, whatever newer versions come."""
        state.users += 1
        try:
            yield
        finally:
            state.users -= 1

    async def publish(
        self, uid: Uid, checkpoint: Checkpoint, *, complete: bool, codec: Codec, origin: Origin
    ) -> Manifest:
        """Store an expert's state, to be given to others.

        Raises:
            StorageError: the disk fails or is full.
            NonFiniteError: it holds values that the codec has no place for.
        """
        file = await self._disk(
            lambda: write_state(
                self._directory,
                uid,
                checkpoint,
                complete=complete,
                codec=codec,
                chunk_bytes=self.settings.chunk_bytes,
            )
        )
        await self._admit(file, (1 << len(file.manifest.chunks)) - 1, origin)
        return file.manifest

    async def begin(self, manifest: Manifest) -> StoredState:
        """Make room for a state that is to be fetched, and fill in what is here already.

        Raises:
            StorageError: the disk fails or is full; nothing is left of the attempt.
        """
        found = self._states.get(manifest.name)
        if found is not None and found.have:
            return found
        others = [each.file for each in self._states.values() if each.manifest.uid == manifest.uid]
        file = StateFile(self._directory, manifest)
        have = await self._disk(lambda: _fill_in(file, others))
        return await self._admit(file, have, "fetched")

    async def wait_for_more(self, name: bytes, beyond: int) -> None:
        """Wait until there are more than so many chunks of a state."""
        while True:
            state = self._states.get(name)
            if state is not None and state.have.bit_count() > beyond:
                return
            await (self._admitted if state is None else state.grown).wait()

    async def read_into(self, state: StoredState, index: int, buffer: memoryview) -> None:
        """Read a chunk into a buffer of its size.

        Raises:
            StorageError: the disk fails.
        """
        start, _ = state.manifest.span(index)
        if state.file.read_cached(buffer, start):
            await trio.lowlevel.checkpoint()
        else:
            await self._disk(lambda: state.file.read_into(buffer, start))

    async def check_and_write(
        self, state: StoredState, arrived: Sequence[tuple[int, Sequence[int], memoryview]]
    ) -> list[bool]:
        """Write chunks to their places, if they are what they should be; tells which ones are.

        Args:
            state: the state.
            arrived: each chunk's number, its places, and its bytes. What has no place any more is
                neither written nor looked at.

        Raises:
            StorageError: the disk fails or is full.
        """

        def check_and_write() -> list[bool]:
            verdicts = []
            for index, places, data in arrived:
                verdicts.append(not places or hash_of(data) == state.manifest.chunks[index])
                if places and verdicts[-1]:
                    state.file.write(places, data)
            return verdicts

        return await self._disk(check_and_write)

    async def load(self, state: StoredState) -> Checkpoint:
        """Read a whole state.

        Raises:
            StorageError: the disk fails.
            CheckpointError: it is not an expert's state.
        """
        return await self._disk(lambda: read_state(state.file))

    async def forget(self, uid: Uid) -> None:
        """Delete an expert's states, but those in use."""
        await self._delete([each for each in self._states.values() if each.manifest.uid == uid])

    async def drop(self, state: StoredState) -> None:
        """Delete one state, unless it is in use."""
        await self._delete([state])

    async def _admit(self, file: StateFile, have: int, origin: Origin) -> StoredState:
        state = self._add(file, have, origin)
        versions = [each for each in self._states.values() if _kind(each) == _kind(state)]
        versions.sort(key=lambda each: each.number)
        await self._delete(versions[: -self.settings.versions_kept])
        return state

    def _add(self, file: StateFile, have: int, origin: Origin) -> StoredState:
        number = next(self._numbers)
        state = self._states.get(file.manifest.name)
        if state is None:
            state = StoredState(file=file, have=have, number=number, origin=origin)
            self._states[file.manifest.name] = state
            self._admitted.set()
            self._admitted = trio.Event()
            return state
        state.add(have)  # made anew, while others may be reading it
        state.number = number
        if state.origin != "announced":
            state.origin = origin
        return state

    async def _delete(self, states: list[StoredState]) -> None:
        for state in states:
            if not state.users and self._states.get(state.manifest.name) is state:
                del self._states[state.manifest.name]
                with trio.CancelScope(shield=True):  # or nobody would know of the file any more
                    await self._disk(state.file.delete)

    def _scan(self) -> list[Manifest]:
        """Return the manifests of unfinished states; whole ones have none beside them."""
        found: list[Manifest] = []
        kept: set[Path] = set()
        try:
            for path in sorted(self._directory.glob(f"*{MANIFEST_SUFFIX}")):
                with contextlib.suppress(ProtocolError):
                    manifest = Manifest.decode(path.read_bytes())
                    file = StateFile(self._directory, manifest)
                    if file.manifest_path == path and file.path.exists():
                        found.append(manifest)
                        kept |= {file.path, path}
            for path in self._directory.glob("*"):
                if path not in kept:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot read {self._directory} ({error.strerror}); give this user access to it"
            ) from error
        return found


def _kind(state: StoredState) -> tuple[Uid, bool, Codec, Origin]:
    manifest = state.manifest
    return manifest.uid, manifest.complete, manifest.codec, state.origin


def _fill_in(file: StateFile, others: list[StateFile]) -> int:
    """Take what the file itself holds, and what the other ones do; returns the set of chunks."""
    is_left = file.path.exists()
    file.allocate()
    have = file.verify() if is_left else 0
    places: dict[bytes, list[int]] = {}
    for index, digest in enumerate(file.manifest.chunks):
        if not have >> index & 1:
            places.setdefault(digest, []).append(index)
    for other in others:
        if other.path == file.path:
            continue
        for index, digest in enumerate(other.manifest.chunks):
            if digest not in places:
                continue
            with contextlib.suppress(StorageError):  # another one may have it, or it is fetched
                data = other.read(index)
                if hash_of(data) == digest:
                    wanted = places.pop(digest)
                    file.write(wanted, data)
                    have |= sum(1 << place for place in wanted)
    return have
