"""Experts' states to files and back, with one buffer of memory beside the tensors themselves.

A checkpoint's tensors are written from their own memory and hashed on the way; the file that
results is served from the disk, so that no copy of a state is held for those who fetch it. What is
read goes straight into the memory of the tensors that the expert will go on with.

All functions block; they are meant for a worker thread.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from blake3 import blake3

from p2pnode.config.experts import Codec
from p2pnode.errors import CheckpointError, ProtocolError, StorageError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.replay import KEY_BYTES
from p2pnode.experts.states import ExpertState
from p2pnode.rpc.codecs.names import wire_form
from p2pnode.rpc.codecs.transform import decode, encode
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import buffer_of, empty, meta_of
from p2pnode.swarm.weights.files import StateFile
from p2pnode.swarm.weights.manifest import WEIGHTS, Layout, Manifest, in_state
from p2pnode.wire.uids import Uid

_APPLIED: Final = "replay.applied"  # uint8 of shape (calls, KEY_BYTES)
_UNFINISHED: Final = ".writing"


def write_state(
    directory: Path,
    uid: Uid,
    checkpoint: Checkpoint,
    *,
    complete: bool,
    codec: Codec,
    chunk_bytes: int,
) -> StateFile:
    """Write an expert's state to a file of its name.

    Args:
        directory: where to.
        uid: the expert, its run named by id.
        checkpoint: its state and the calls that it contains.
        complete: whether to write the optimiser's state and the calls, too.
        codec: in which to write its matrices of weights.
        chunk_bytes: the chunk size.

    Raises:
        StorageError: the disk fails or is full; nothing is left of the attempt.
        NonFiniteError: the weights are not finite, and the codec has no place for that.
    """
    tensors = _tensors_of(checkpoint, complete=complete)
    metas = [(name, in_state(name, meta_of(each), codec)) for name, each in tensors]
    layout = Layout(tensors=tuple(metas))
    temporary = directory / _UNFINISHED
    try:
        directory.mkdir(parents=True, exist_ok=True)
        chunks = _write(temporary, layout, [each for _, each in tensors], chunk_bytes)
        state = checkpoint.state
        manifest = Manifest(
            uid=uid,
            steps=state.steps,
            rows=state.rows,
            layer=state.layer,
            optimizer=state.optimizer,
            complete=complete,
            codec=codec,
            layout=layout,
            chunk_bytes=chunk_bytes,
            chunks=tuple(chunks),
        )
        file = StateFile(directory, manifest)
        temporary.rename(file.path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"the state of {uid.name} cannot be written in {directory}"
            f" ({error.strerror or error}); make room there, or choose another --data-dir"
        ) from error
    return file


def read_state(file: StateFile) -> Checkpoint:
    """Read a state; each tensor gets memory of its own.

    Raises:
        StorageError: the disk fails.
        CheckpointError: the state is not one of an expert.
    """
    manifest = file.manifest
    tensors: dict[str, torch.Tensor] = {}
    for (name, meta), offset in zip(manifest.layout.tensors, manifest.layout.offsets, strict=True):
        received, buffer = empty(wire_form(meta))
        file.read_into(buffer, offset)
        try:
            tensors[name] = decode(received, meta)
        except ProtocolError as error:
            raise CheckpointError(
                f"the state of {manifest.uid.name} is damaged: {error}"
            ) from error
    keys = b""
    if manifest.complete:
        applied = tensors.pop(_APPLIED, None)
        if applied is None or meta_of(applied) != TensorMeta("uint8", (len(applied), KEY_BYTES)):
            raise CheckpointError(
                f"the state of {manifest.uid.name} does not list its applied calls"
            )
        keys = bytes(buffer_of(applied))
    return Checkpoint(
        state=ExpertState(
            tensors=tensors,
            steps=manifest.steps,
            rows=manifest.rows,
            layer=manifest.layer,
            optimizer=manifest.optimizer,
        ),
        applied=[keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)],
        complete=manifest.complete,
    )


def _tensors_of(checkpoint: Checkpoint, *, complete: bool) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a state in their order: weights, optimiser, applied calls."""
    tensors = dict(sorted(checkpoint.state.tensors.items()))
    weights = [(name, each) for name, each in tensors.items() if name.startswith(WEIGHTS)]
    if not complete:
        return weights
    others = [(name, each) for name, each in tensors.items() if not name.startswith(WEIGHTS)]
    keys = torch.frombuffer(
        bytearray(b"".join(checkpoint.applied)) or bytearray(KEY_BYTES), dtype=torch.uint8
    ).reshape(-1, KEY_BYTES)
    return [*weights, *others, (_APPLIED, keys[: len(checkpoint.applied)])]


def _write(
    path: Path, layout: Layout, tensors: list[torch.Tensor], chunk_bytes: int
) -> list[bytes]:
    chunks: list[bytes] = []
    digest, room = blake3(), chunk_bytes
    with path.open("wb") as file:
        for piece in _pieces(layout, tensors):
            file.write(piece)
            rest = piece
            while rest:
                part, rest = rest[:room], rest[room:]
                digest.update(part)
                room -= len(part)
                if not room:
                    chunks.append(digest.digest())
                    digest, room = blake3(), chunk_bytes
        if room < chunk_bytes:
            chunks.append(digest.digest())
    return chunks


def _pieces(layout: Layout, tensors: list[torch.Tensor]) -> Iterator[memoryview]:
    """Give the state's bytes in their order, from the tensors' own memory, or each encoded."""
    at = 0
    for (_, meta), offset, tensor in zip(layout.tensors, layout.offsets, tensors, strict=True):
        if offset > at:
            yield memoryview(bytes(offset - at))
        buffer = buffer_of(encode(tensor, meta))
        yield buffer
        at = offset + len(buffer)
