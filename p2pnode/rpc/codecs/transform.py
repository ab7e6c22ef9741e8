"""Tensors to what travels of them, and back, on whatever device they are on.

`names` says what each codec does. Large tensors are taken in parts, so that what is worked on
stays in the processor's cache, and little memory is used beside the result.
"""

from collections.abc import Iterator
from typing import Final

import torch

from p2pnode.errors import NonFiniteError, ProtocolError
from p2pnode.rpc.codecs.names import BLOCK, SCALE_BYTES, blocks_in
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import dtype_of

_PART_BLOCKS: Final = 64  # 1 MiB of float32; parts of 0.2 to 4 MiB are equally fast
_LEVELS: Final = 127
_LARGEST: Final = torch.finfo(torch.float32).max
_ROUGHLY: Final = torch.tensor(_LARGEST / _LEVELS, dtype=torch.float32)  # may be rounded up
_MAX_SCALE: Final = torch.nextafter(_ROUGHLY, torch.zeros_like(_ROUGHLY)).item()
_CASTS: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def encode(tensor: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """Return a tensor whose elements, in row-major order, are what travels.

    With the codec `none` it is the tensor itself.

    Raises:
        NonFiniteError: it holds NaN or infinite values, which the codec has no place for.
    """
    if meta.codec == "none":
        return tensor
    with torch.no_grad():
        flat = tensor.detach().contiguous().view(-1)
        if meta.codec == "blockwise-int8":
            return _quantise(flat)
        return _narrow(flat, _CASTS[meta.codec])


def decode(received: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """Turn what travelled, in its `wire_form`, back into the tensor.

    With the codec `none` it is `received` itself.

    Raises:
        ProtocolError: a block's scale is not one.
    """
    if meta.codec == "none":
        return received
    dtype = dtype_of(meta.dtype)
    if meta.codec == "blockwise-int8":
        return _dequantise(received, dtype).view(meta.shape)
    return received.to(dtype).view(meta.shape)


def _narrow(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    largest = torch.finfo(dtype).max
    narrowed = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    step = _PART_BLOCKS * BLOCK
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        low, high = torch.aminmax(part)
        if not (low >= -largest and high <= largest):  # also where there is a NaN
            part = torch.where(part.isinf(), part, part.clamp(-largest, largest))
        narrowed[start : start + step] = part
    return narrowed


def _quantise(flat: torch.Tensor) -> torch.Tensor:
    packed = torch.empty(
        blocks_in(len(flat)) * SCALE_BYTES + len(flat), dtype=torch.uint8, device=flat.device
    )
    scales, codes = _split(packed)
    for blocks, target, scale in _parts(flat, codes, scales):
        low, high = torch.aminmax(blocks, dim=1)
        magnitude = torch.maximum(-low, high).to(torch.float64)
        if not magnitude.isfinite().all():
            raise NonFiniteError(
                "a tensor to be sent holds NaN or infinite values, which the codec blockwise-int8"
                " has no place for; has training diverged?"
            )
        scale.copy_((magnitude / _LEVELS).clamp_(max=_MAX_SCALE))
        divisor = torch.where(scale > 0, scale, 1)  # else all that rounds to no scale becomes 0
        scaled = (blocks / divisor[:, None]).round_()
        target.copy_(scaled.clamp_(-_LEVELS, _LEVELS))
    return packed


def _dequantise(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    scales, codes = _split(packed)
    if not ((scales >= 0) & (scales <= _MAX_SCALE)).all():
        raise ProtocolError("a block's scale is not a finite number of at least 0")
    flat = torch.empty(codes.shape, dtype=dtype, device=packed.device)
    for target, blocks, scale in _parts(flat, codes, scales):
        torch.mul(blocks, scale[:, None], out=target)
    return flat


def _split(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales and the codes that lie in `packed`."""
    # Of n bytes every whole block takes BLOCK + SCALE_BYTES, and so does the last with its rest.
    size = -(-len(packed) // (BLOCK + SCALE_BYTES)) * SCALE_BYTES
    return packed[:size].view(torch.float32), packed[size:].view(torch.int8)


def _parts(
    first: torch.Tensor, second: torch.Tensor, scales: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Give matching parts of two flat tensors as rows of blocks, with the blocks' scales."""
    whole = len(first) // BLOCK
    for start in range(0, whole, _PART_BLOCKS):
        end = min(start + _PART_BLOCKS, whole)
        span = slice(start * BLOCK, end * BLOCK)
        yield first[span].view(-1, BLOCK), second[span].view(-1, BLOCK), scales[start:end]
    if whole * BLOCK < len(first):  # the last block is shorter
        rest = slice(whole * BLOCK, None)
        yield first[rest].view(1, -1), second[rest].view(1, -1), scales[whole:]
