"""The codecs of tensors on the wire, what each costs in bytes, and how far it is off; pure.

| codec | bytes an element | error of an element x |
|---|---|---|
| `none` | as its dtype | 0 |
| `float16` | 2 | at most 2^-11 of it, or 2^-25 where that is more; beyond ±65504: ±65504 |
| `bfloat16` | 2 | at most 2^-8 of it, or 2^-134; beyond ±3.39e38: ±3.39e38 |
| `blockwise-int8` | 1, and 4 a block | at most 1/254 of the block's largest magnitude |

A caller picks one codec for a call, and each tensor of the call, and of its answer, travels in it
if that makes it smaller; otherwise as it is (`codec_for`). So integers and bools are never changed.
A reader takes no other choice.

`float16` and `bfloat16` round to nearest, ties to even. Infinities and NaN stay what they are, and
what is finite stays finite: a number too large is brought down to the largest one there is.

`blockwise-int8` cuts the elements, in row-major order, into blocks of `BLOCK` (the last one may be
shorter). The wire carries the scale of each block, little-endian float32, then one int8 for each
element, scale times int8 being the element. The scale is the block's largest magnitude over 127,
so that the int8 -128 does not occur. The bound is exact up to float32's own rounding (2^-22 of the
largest magnitude, or 2^-142), and an element is rounded to the tensor's dtype at last. float64
beyond float32's range is brought down to its largest number. NaN and infinities have no place:
such a tensor is refused by its sender.

Sources: Dettmers et al. 2022 (8-bit optimisers by block-wise quantisation), section 2, for blocks;
symmetric linear codes as in Jacob et al. 2018, section 2.1, without a zero point.
"""

import math
from dataclasses import replace
from typing import Any, Final

from p2pnode.config.experts import CODECS, Codec
from p2pnode.errors import ConfigError, ProtocolError
from p2pnode.rpc.schema import ITEM_BYTES, TensorMeta, shown

BLOCK: Final = 4096  # elements that share a scale: its 4 bytes cost 0.1 %
SCALE_BYTES: Final = 4
_FLOATS: Final = frozenset({"bfloat16", "float16", "float32", "float64"})
_CAST_BYTES: Final = 2  # of float16 and bfloat16


def wire_form(meta: TensorMeta) -> TensorMeta:
    """Describe what travels of a tensor as a tensor of its own."""
    if meta.codec == "none":
        return meta
    count = math.prod(meta.shape)
    if meta.codec == "blockwise-int8":
        return TensorMeta("uint8", (blocks_in(count) * SCALE_BYTES + count,))
    return TensorMeta(meta.codec, (count,))


def wire_bytes(meta: TensorMeta) -> int:
    """Return how many bytes of a tensor travel."""
    return wire_form(meta).nbytes


def held_bytes(meta: TensorMeta) -> int:
    """Return what it takes to decode a tensor: its bytes, and those that travel if they differ."""
    return meta.nbytes if meta.codec == "none" else meta.nbytes + wire_bytes(meta)


def blocks_in(count: int) -> int:
    """Return how many blocks `count` elements make."""
    return -(-count // BLOCK)


def codec_for(wanted: Codec, dtype: str) -> Codec:
    """Return in which codec a tensor of `dtype` travels when the caller wants `wanted`."""
    if dtype not in _FLOATS:
        return "none"
    if wanted in {"float16", "bfloat16"} and ITEM_BYTES[dtype] <= _CAST_BYTES:
        return "none"
    return wanted


def travelling(meta: TensorMeta, wanted: Codec) -> TensorMeta:
    """Describe a tensor as it travels when the caller wants `wanted`."""
    codec = codec_for(wanted, meta.dtype)
    return meta if codec == meta.codec else replace(meta, codec=codec)


def find_codec(name: str) -> Codec:
    """Return the codec that a user named.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; use one of {', '.join(CODECS)}")
    return name


def read_codec(value: Any, dtype: str | None = None) -> Codec:
    """Check a codec as it came from the wire.

    Args:
        value: what came.
        dtype: of the tensor that travels in it; None for a codec that is wanted.

    Raises:
        ProtocolError: it is not known here, or tensors of this dtype do not travel in it.
    """
    if not isinstance(value, str) or value not in CODECS:
        raise ProtocolError(
            f"the codec {shown(value)} is not known here; use one of {', '.join(CODECS)}"
        )
    if dtype is not None and codec_for(value, dtype) != value:
        raise ProtocolError(f"a tensor of {dtype} does not travel as {value}")
    return value
