"""The elements of several tensors under consecutive numbers, where they lie in memory."""

import math
from collections.abc import Sequence

import torch

from p2pnode.errors import NonFiniteError, SchemaError
from p2pnode.rpc.staging import to_main_memory
from p2pnode.rpc.tensors import buffer_of, dtype_of, metas_of
from p2pnode.swarm.averaging.parts import Layout, Span


def is_finite(values: torch.Tensor) -> bool:
    """Whether none of the values is NaN or infinite."""
    # The sum tells in nearly all cases, and takes no memory.
    return math.isfinite(values.sum()) or bool(values.isfinite().all())


class Elements:
    """All elements of tensors in main memory, which are contiguous and have one dtype.

    Args:
        tensors: are read and written in place.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._flat = [each.view(-1) for each in tensors]
        self._layout = Layout([each.numel() for each in tensors])

    @property
    def count(self) -> int:
        """How many there are."""
        return self._layout.total

    @property
    def nbytes(self) -> int:
        """The size of all of them in memory."""
        return sum(each.nbytes for each in self._flat)

    def buffers(self, span: Span) -> list[memoryview]:
        """Return the memory of a span, to be sent from or received into."""
        return [buffer_of(each) for each in self._pieces(span)]

    def get(self, span: Span) -> torch.Tensor:
        """Return a span as one tensor; not a copy where it lies in one."""
        pieces = self._pieces(span)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def put(self, span: Span, values: torch.Tensor) -> None:
        """Write a span."""
        at = 0
        for piece in self._pieces(span):
            piece.copy_(values[at : at + len(piece)])
            at += len(piece)

    def are_finite(self) -> bool:
        """Whether none of them is NaN or infinite."""
        return all(map(is_finite, self._flat))

    def _pieces(self, span: Span) -> list[torch.Tensor]:
        return [self._flat[number][start:stop] for number, start, stop in self._layout.pieces(span)]


class Reducible:
    """Tensors that are to be reduced, and room for what becomes of them.

    What is given is not written. Everything is reduced, and travels, as float32, or as float64 if
    one of the tensors is of it.

    Args:
        tensors: floating-point ones of any shape, on any device.
        max_bytes: that they may have.

    Raises:
        SchemaError: there are none, or one cannot be reduced, or all are too large.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], max_bytes: int) -> None:
        for number, each in enumerate(tensors):
            if not each.dtype.is_floating_point:
                raise SchemaError(f"tensor {number} is of {each.dtype}; only floats are reduced")
        self.metas = metas_of(tensors)
        self.precision = "float64" if any(m.dtype == "float64" for m in self.metas) else "float32"
        dtype = dtype_of(self.precision)
        count = sum(math.prod(meta.shape) for meta in self.metas)
        size = count * dtype.itemsize
        if not count or size > max_bytes:
            raise SchemaError(
                f"the tensors of a round have {size} bytes as {self.precision}; there must be more"
                f" than 0, and averaging.max_bytes allows {max_bytes}"
            )
        self._given = list(tensors)
        here = to_main_memory(tensors)
        self.ours = Elements([each.to(dtype).contiguous() for each in here])
        self._results = [torch.empty(each.shape, dtype=dtype) for each in here]
        self.results = Elements(self._results)

    def check(self) -> None:
        """Raise `NonFiniteError` if what is to be reduced holds NaN or infinite values."""
        if not self.ours.are_finite():
            raise NonFiniteError(
                "the tensors to be reduced hold NaN or infinite values; has training diverged?"
            )

    def finished(self) -> list[torch.Tensor]:
        """Return the results with the dtypes and on the devices of what was given."""
        pairs = zip(self._results, self._given, strict=True)
        return [result.to(device=given.device, dtype=given.dtype) for result, given in pairs]
