"""Torch tensors to the wire's descriptions and buffers, without copies.

This is the lowest module that imports torch. Buffers are views of the tensors' own memory: what
is sent is read from it, and what is received is written into it.
"""

import sys
from collections.abc import Sequence
from typing import Final

import torch

from p2pnode.errors import SchemaError
from p2pnode.rpc.schema import ExpertInfo, TensorMeta, TensorSpec

__all__ = [
    "ExpertInfo",
    "TensorMeta",
    "TensorSpec",
    "buffer_of",
    "dtype_of",
    "empty",
    "meta_of",
    "metas_of",
]

if sys.byteorder != "little":  # the wire's order is that of the memory it is read from
    raise ImportError("tensor calls need a little-endian machine")

_DTYPES: Final = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_SMALL_BYTES: Final = 16 * 1024


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name from the wire."""
    return _DTYPES[name]


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """Describe a tensor.

    Raises:
        SchemaError: its dtype or layout cannot be sent.
    """
    name = _NAMES.get(tensor.dtype)
    if tensor.is_meta:
        raise SchemaError("a tensor on the device meta cannot be sent: it has no data")
    if name is None or tensor.layout is not torch.strided:
        raise SchemaError(
            f"a {str(tensor.layout).removeprefix('torch.')} tensor of {tensor.dtype} cannot be"
            f" sent; convert it to a dense one of {', '.join(_DTYPES)}"
        )
    return TensorMeta(name, tuple(tensor.shape))


def buffer_of(tensor: torch.Tensor) -> memoryview:
    """Return the elements as flat bytes.

    A contiguous tensor in main memory is not copied: the buffer is its memory, and writing to it
    writes the tensor. Any other is copied once; `p2pnode.rpc.staging` fetches several faster.
    """
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu or not tensor.is_contiguous():
        tensor = tensor.cpu().contiguous()
    if not tensor.numel():
        return memoryview(bytearray())
    if tensor.dtype is torch.bfloat16:  # which numpy does not know
        tensor = tensor.view(torch.int16)
    return tensor.numpy().data.cast("B")


def empty(meta: TensorMeta) -> tuple[torch.Tensor, memoryview]:
    """Allocate a tensor, and give its memory to be filled."""
    dtype, size = _DTYPES[meta.dtype], meta.nbytes
    if 0 < size <= _SMALL_BYTES:  # for which torch's allocator takes longer than filling it
        memory = bytearray(size)
        return torch.frombuffer(memory, dtype=dtype).view(meta.shape), memoryview(memory)
    tensor = torch.empty(meta.shape, dtype=dtype)
    return tensor, buffer_of(tensor)


def metas_of(tensors: Sequence[torch.Tensor]) -> tuple[TensorMeta, ...]:
    """Describe several tensors."""
    return tuple(meta_of(tensor) for tensor in tensors)
