"""What an expert's state is made of: pure.

A state is a sequence of bytes, its tensors one after the other, cut in chunks of equal size. The
manifest says which tensors these are, and the hash of each chunk. The hash of the manifest is the
state's *name*: who has it can fetch the rest from anybody, and verify every chunk.

The manifest is the msgpack list

    [version, uid, steps, rows, layer, optimizer, complete, codec, [[name, dtype, shape]…],
     chunk bytes, hashes of all chunks, joined]

As in safetensors, elements are little-endian in row-major order. Offsets are not sent, since they
follow from the order: each tensor starts at the next multiple of `ALIGNMENT`, and the bytes in
between are zero. Tensors of weights come first, so that these fill the same chunks with and
without the optimiser's.

A state may be in one of the codecs of `p2pnode.rpc.codecs.names`, which tells how far each is off.
Then its matrices of weights are what travels of them there. Everything else is as it is: vectors
are small, and the optimiser's second moments, of which many are close to zero, become zero in most
codecs, and divide steps.

Hashes are BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), since each byte is hashed where it
is made and where it arrives: SHA-256 was the dearest part of a fetch beside encryption. On one core
BLAKE3 hashes 6 GB/s here, SHA-256 1.7 where the processor has instructions for it, and BLAKE2b,
which the rest of this package uses, 0.9.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import msgpack
from blake3 import blake3

from p2pnode.config.experts import Codec
from p2pnode.config.units import KIB, MIB
from p2pnode.errors import InvalidUidError, ProtocolError
from p2pnode.rpc.codecs.names import read_codec, travelling, wire_bytes
from p2pnode.rpc.schema import TensorMeta, read_meta
from p2pnode.wire.packing import unpack
from p2pnode.wire.uids import Uid

VERSION: Final = 3
WEIGHTS: Final = "module."  # how the names of weights begin, in checkpoints too
HASH_BYTES: Final = 32
ALIGNMENT: Final = 64  # what torch aligns its own memory to
MAX_TENSORS: Final = 4096  # of one state; a transformer block with its optimiser's has about 50
MAX_MANIFEST_BYTES: Final = 2 * MIB  # the hashes of 16 GiB, and as many tensors, take half of it
MIN_CHUNK_BYTES: Final = KIB
MAX_CHUNK_BYTES: Final = 4 * MIB
_MAX_TEXT: Final = 256
_MAX_COUNT: Final = 2**53
_FIELDS: Final = (int, str, int, int, str, str, bool, str, list, int, bytes)
_MATRIX: Final = 2  # dimensions, or more


def hash_of(data: bytes | bytearray | memoryview) -> bytes:
    """Return the BLAKE3 hash of some bytes."""
    return blake3(data).digest()


def in_state(name: str, meta: TensorMeta, codec: Codec) -> TensorMeta:
    """Describe a tensor as it lies in a state of this codec: matrices of weights are encoded."""
    if name.startswith(WEIGHTS) and len(meta.shape) >= _MATRIX:
        return travelling(meta, codec)
    return meta


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each tensor lies in a state; the order of `tensors`, and their codecs, say it."""

    tensors: tuple[tuple[str, TensorMeta], ...]

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins, in bytes."""
        ends = itertools.accumulate(
            (wire_bytes(meta) for _, meta in self.tensors), lambda at, size: _aligned(at) + size
        )
        return (0, *map(_aligned, ends))[: len(self.tensors)]

    @functools.cached_property
    def size(self) -> int:
        """The bytes of the whole state."""
        if not self.tensors:
            return 0
        return self.offsets[-1] + wire_bytes(self.tensors[-1][1])

    @property
    def decoded_size(self) -> int:
        """The bytes of its tensors, once they are decoded."""
        return sum(meta.nbytes for _, meta in self.tensors)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of one expert's state.

    Attributes:
        uid: the expert, its run named by id.
        steps: the optimiser steps it has taken, which is what orders versions.
        rows: the rows it was trained on.
        layer: what kind of expert it is.
        optimizer: the name of its optimiser.
        complete: whether the optimiser's state and the applied calls are part of it, or only the
            weights are.
        codec: in which its matrices of weights are.
        layout: its tensors.
        chunk_bytes: of each chunk but the last one, which may be shorter.
        chunks: the hash of each.
    """

    uid: Uid
    steps: int
    rows: int
    layer: str
    optimizer: str
    complete: bool
    codec: Codec
    layout: Layout
    chunk_bytes: int
    chunks: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """The bytes of the whole state."""
        return self.layout.size

    def span(self, index: int) -> tuple[int, int]:
        """Return where a chunk begins, and how many bytes it has."""
        start = index * self.chunk_bytes
        return start, min(self.chunk_bytes, self.size - start)

    def encode(self) -> bytes:
        """Return the manifest's bytes, of which there is one form."""
        packed: bytes = msgpack.packb(
            [
                VERSION,
                str(self.uid),
                self.steps,
                self.rows,
                self.layer,
                self.optimizer,
                self.complete,
                self.codec,
                [[name, meta.dtype, meta.shape] for name, meta in self.layout.tensors],
                self.chunk_bytes,
                b"".join(self.chunks),
            ]
        )
        return packed

    @functools.cached_property
    def name(self) -> bytes:
        """The hash of the manifest, which names the state."""
        return hash_of(self.encode())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a manifest.

        Raises:
            ProtocolError: it is malformed, too large, not in its one form, or of another version.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {len(data)} bytes is too large")
        fields = unpack(data, "a manifest")
        if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
            raise ProtocolError("a manifest must be a list that begins with its version")
        if fields[0] != VERSION:
            raise ProtocolError(
                f"the manifest is of version {fields[0]}, this node reads {VERSION}; update the"
                " older of the two"
            )
        if tuple(map(type, fields)) != _FIELDS:
            raise ProtocolError("a manifest does not have the fields it should")
        manifest = cls._read(fields[1:])
        if manifest.encode() != data:
            raise ProtocolError("a manifest is not in its shortest form")
        return manifest

    @classmethod
    def _read(cls, fields: Sequence[Any]) -> Self:
        uid, steps, rows, layer, optimizer, complete, codec, tensors, chunk_bytes, joined = fields
        if not (0 <= steps < _MAX_COUNT and 0 <= rows < _MAX_COUNT):
            raise ProtocolError("a manifest's steps or rows are out of range")
        if chunk_bytes & (chunk_bytes - 1) or not (
            MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES
        ):
            raise ProtocolError("a manifest's chunk size is not a power of two in range")
        try:
            read_uid = Uid.parse(uid)
        except InvalidUidError as error:
            raise ProtocolError(f"a manifest names no expert: {error}") from error
        read = read_codec(codec)
        layout = Layout(tensors=_read_tensors(tensors, read))
        if len(joined) != -(-layout.size // chunk_bytes) * HASH_BYTES:
            raise ProtocolError("a manifest has more or fewer hashes than chunks")
        return cls(
            uid=read_uid,
            steps=steps,
            rows=rows,
            layer=_text(layer),
            optimizer=_text(optimizer),
            complete=complete,
            codec=read,
            layout=layout,
            chunk_bytes=chunk_bytes,
            chunks=tuple(joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)),
        )


def _read_tensors(data: list[Any], codec: Codec) -> tuple[tuple[str, TensorMeta], ...]:
    if len(data) > MAX_TENSORS:
        raise ProtocolError(f"a state has at most {MAX_TENSORS} tensors")
    found: dict[str, TensorMeta] = {}
    for entry in data:
        if not isinstance(entry, list) or len(entry) != 3:
            raise ProtocolError("a tensor of a state is described by name, dtype and shape")
        name, dtype, shape = entry
        meta = in_state(_text(name), read_meta(dtype, shape), codec)
        if meta.nbytes > _MAX_COUNT:
            raise ProtocolError(f"a tensor of {meta} is too large")
        found[name] = meta
    if len(found) != len(data):
        raise ProtocolError("two tensors of a state have the same name")
    return tuple(found.items())


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ProtocolError(f"a name in a manifest is not a text of at most {_MAX_TEXT} characters")
    return value


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT
