"""Checkpoints: one safetensors file for each expert and point in time.

A file holds the module's and the optimiser's tensors, the ids of the backward calls it contains,
and JSON metadata with a digest of all of it. It is written beside its place, flushed to the disk,
and renamed into it, so that a crash at any moment leaves the earlier ones as they were.

A version that was set aside, `kept-<number>.safetensors`, is a file of the same kind that is
neither loaded nor counted among the others: what an expert had learnt here before it went on from
another host's state. Whoever wants it back renames it to the next number.

Files are numbered by a counter of their own, and a number is never used twice. What cannot be
read is left for its owner to look at: it is neither overwritten nor deleted, also when it has the
highest number and the ones before it are used instead.

All functions block; they are meant for a worker thread.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch

from p2pnode.errors import CheckpointError
from p2pnode.experts.replay import KEY_BYTES
from p2pnode.experts.states import ExpertState
from p2pnode.rpc.tensors import buffer_of, meta_of
from p2pnode.wire.uids import Uid

FORMAT: Final = 1
_NAME: Final = re.compile(r"(\d{8,})\.safetensors", re.ASCII)
_ASIDE: Final = re.compile(r"kept-(\d{8,})\.safetensors", re.ASCII)
_UNFINISHED: Final = ".writing"  # the one file that is overwritten, left behind by a crash
_METADATA: Final = "p2pnode"
_APPLIED: Final = "replay.applied"  # uint8 of shape (calls, KEY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An expert's state: what one file holds, or another host gave.

    Attributes:
        state: the weights, and the optimiser's state.
        applied: keys of the backward calls that the state contains, the oldest first.
        complete: whether the optimiser's state and the calls are known; the weights always are.
    """

    state: ExpertState
    applied: Sequence[bytes]
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The newest readable checkpoint of an expert, and the newer ones that are not."""

    path: Path
    checkpoint: Checkpoint
    skipped: Sequence[tuple[Path, str]]  # with the reason


class CheckpointStore:
    """The checkpoints below one directory, a folder for each run and expert.

    Args:
        directory: made when the first checkpoint is written.
        keep: how many readable files of each expert are kept, at least one.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        self._keep = max(1, keep)
        self._readable: dict[Path, bool] = {}  # of files read or written by this process

    def folder(self, uid: Uid) -> Path:
        """Return where an expert's files are; '@' stands for ':', which some systems refuse."""
        return self._directory / uid.run.replace(":", "@") / uid.name

    def load(self, uid: Uid) -> Restored | None:
        """Read the newest checkpoint that is intact; None when there is none at all.

        Raises:
            CheckpointError: there are files, but none can be used.
        """
        skipped: list[tuple[Path, str]] = []
        for path in reversed(self._files(uid)):
            try:
                checkpoint = read_checkpoint(path, uid)
            except CheckpointError as error:
                self._readable[path] = False
                skipped.append((path, str(error)))
                continue
            self._readable[path] = True
            return Restored(path=path, checkpoint=checkpoint, skipped=skipped)
        if skipped:
            raise CheckpointError(
                f"no checkpoint of {uid.name} can be used ({skipped[0][1]}); move the folder"
                f" {self.folder(uid)} away to start afresh, or bring back a copy"
            )
        return None

    def save(self, uid: Uid, checkpoint: Checkpoint) -> Path:
        """Write a new file, then delete the oldest ones beyond those to keep.

        Raises:
            CheckpointError: it cannot be written; the earlier files are as they were.
        """
        folder = self.folder(uid)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = self._files(uid)
            number = 1 + max((_number(path) for path in files), default=0)
            path = folder / f"{number:08}.safetensors"
            _write_atomically(path, _encode(uid, checkpoint))
        except OSError as error:
            raise CheckpointError(
                f"cannot save {uid.name} in {folder}: {error.strerror or error}"
            ) from error
        self._readable[path] = True
        self._delete_oldest(uid, [*files, path])
        return path

    def set_aside(self, uid: Uid, checkpoint: Checkpoint) -> Path:
        """Write a version beside the others, and delete the oldest such ones beyond those to keep.

        Raises:
            CheckpointError: it cannot be written.
        """
        folder = self.folder(uid)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(
                (path for path in folder.iterdir() if _ASIDE.fullmatch(path.name)), key=_number
            )
            number = 1 + max((_number(path) for path in files), default=0)
            path = folder / f"kept-{number:08}.safetensors"
            _write_atomically(path, _encode(uid, checkpoint))
            for old in [*files, path][: -self._keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot set {uid.name} aside in {folder}: {error.strerror or error}"
            ) from error
        return path

    def has(self, uid: Uid) -> bool:
        """Tell whether there is any checkpoint of an expert, intact or not.

        Raises:
            CheckpointError: its folder cannot be listed.
        """
        return bool(self._files(uid))

    def _files(self, uid: Uid) -> list[Path]:
        """List an expert's files, the oldest first.

        Raises:
            CheckpointError: the folder cannot be listed.
        """
        folder = self.folder(uid)
        try:
            found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"cannot list the checkpoints in {folder}: {error.strerror}"
            ) from error
        return sorted(found, key=_number)

    def _delete_oldest(self, uid: Uid, files: Sequence[Path]) -> None:
        kept = 0
        for path in reversed(files):
            if kept < self._keep:
                kept += self._is_readable(path, uid)
            elif self._is_readable(path, uid):
                with contextlib.suppress(OSError):  # it is in nobody's way, and tried again
                    path.unlink()
                    del self._readable[path]

    def _is_readable(self, path: Path, uid: Uid) -> bool:
        if path not in self._readable:
            try:
                read_checkpoint(path, uid)
            except CheckpointError:
                self._readable[path] = False
            else:
                self._readable[path] = True
        return self._readable[path]


def read_checkpoint(path: Path, uid: Uid) -> Checkpoint:
    """Read one file, and check that nothing of it has changed since it was written.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is of another expert.
    """
    try:
        # Not mapped into memory: what was verified must not change while it is in use.
        return _decode(path.read_bytes(), uid)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, OSError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error


def _decode(data: bytes, uid: Uid) -> Checkpoint:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(header["__metadata__"][_METADATA])
    tensors = safetensors.torch.load(data)
    if metadata["format"] != FORMAT or metadata["uid"] != str(uid):
        raise ValueError(f"it holds {metadata['uid']} in format {metadata['format']}")
    if metadata.pop("digest") != _digest(metadata, tensors):
        raise ValueError("its content does not match its digest")
    applied = tensors.pop(_APPLIED).numpy().tobytes()
    return Checkpoint(
        state=ExpertState(
            tensors=tensors,
            steps=int(metadata["steps"]),
            rows=int(metadata["rows"]),
            layer=str(metadata["layer"]),
            optimizer=str(metadata["optimizer"]),
        ),
        applied=[applied[at : at + KEY_BYTES] for at in range(0, len(applied), KEY_BYTES)],
    )


def _encode(uid: Uid, checkpoint: Checkpoint) -> bytes:
    state = checkpoint.state
    applied = np.frombuffer(bytearray().join(checkpoint.applied), np.uint8)
    tensors = {**state.tensors, _APPLIED: torch.from_numpy(applied).reshape(-1, KEY_BYTES)}
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "uid": str(uid),
        "steps": state.steps,
        "rows": state.rows,
        "layer": state.layer,
        "optimizer": state.optimizer,
    }
    metadata["digest"] = _digest(metadata, tensors)
    return safetensors.torch.save(tensors, {_METADATA: json.dumps(metadata, sort_keys=True)})


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash everything but the digest itself; safetensors has no checksum of its own."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {meta_of(tensors[name])}\n".encode())
        digest.update(buffer_of(tensors[name]))
    return digest.hexdigest()


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(_UNFINISHED)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name too must survive a power cut
    finally:
        os.close(directory)


def _number(path: Path) -> int:
    found = _NAME.fullmatch(path.name) or _ASIDE.fullmatch(path.name)
    assert found is not None
    return int(found[1])
