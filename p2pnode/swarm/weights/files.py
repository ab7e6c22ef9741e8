"""A state on disk: its bytes as the manifest lays them out, some chunks perhaps still missing.

All of it blocks, and is meant for a worker thread. What is on a disk is not believed: a file that
was left behind is read again, and only chunks whose hash is right count.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from p2pnode.errors import StorageError
from p2pnode.swarm.weights.manifest import Manifest, hash_of

STATE_SUFFIX: Final = ".state"
MANIFEST_SUFFIX: Final = ".manifest"


class StateFile:
    """One state's file, named by the state's name, below a directory.

    Args:
        directory: where it is.
        manifest: what the state is made of.

    All methods raise `StorageError` when the disk fails, or is full.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.path = directory / (manifest.name.hex() + STATE_SUFFIX)
        self.manifest_path = self.path.with_suffix(MANIFEST_SUFFIX)

    def allocate(self) -> None:
        """Reserve the file's place on the disk, so that a full one is met before any transfer.

        What is in the file stays. The manifest is written beside it, for a later `verify`.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._opened(os.O_RDWR | os.O_CREAT) as descriptor:
                if hasattr(os, "posix_fallocate") and self.manifest.size:
                    os.posix_fallocate(descriptor, 0, self.manifest.size)
                os.ftruncate(descriptor, self.manifest.size)
            self.manifest_path.write_bytes(self.manifest.encode())
        except OSError as error:
            self.delete()
            raise self._failure("written", error) from error

    def verify(self) -> int:
        """Read all of the file; returns the set of chunks that are what they should be."""
        found = 0
        for index, digest in enumerate(self.manifest.chunks):
            if hash_of(self.read(index)) == digest:
                found |= 1 << index
        return found

    def read(self, index: int) -> bytes:
        """Return a chunk's bytes; fewer of them where the file has been cut off."""
        start, size = self.manifest.span(index)
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                return os.pread(descriptor, size, start)
        except OSError as error:
            raise self._failure("read", error) from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on."""
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                done = 0
                while done < len(buffer):
                    got = os.preadv(descriptor, [buffer[done:]], offset + done)
                    if not got:
                        break
                    done += got
        except OSError as error:
            raise self._failure("read", error) from error
        if done < len(buffer):
            raise StorageError(f"{self.path} is shorter than it should be; fetch the state again")

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` from the system's memory; tells whether all of it was there.

        It never waits for a disk, so that it needs no thread. Where the system cannot promise that,
        or the file cannot be read, the answer is no.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return False
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                return os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT) == len(buffer)
        except OSError:
            return False

    def write(self, places: Iterable[int], data: bytes | bytearray | memoryview) -> None:
        """Write a chunk's bytes to all its places."""
        try:
            with self._opened(os.O_WRONLY) as descriptor:
                for place in places:
                    start, _ = self.manifest.span(place)
                    _write_all(descriptor, memoryview(data), start)
        except OSError as error:
            raise self._failure("written", error) from error

    def delete(self) -> None:
        """Remove the file, as far as that is possible."""
        for path in (self.path, self.manifest_path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _failure(self, what: str, error: OSError) -> StorageError:
        return StorageError(
            f"the state of {self.manifest.uid.name} cannot be {what} in {self.path.parent}"
            f" ({error.strerror or error}); make room there, or choose another --data-dir"
        )


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
