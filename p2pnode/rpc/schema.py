"""What tensors an expert takes and gives, and the checks both sides make before any is moved.

Pure: dtypes are named, and nothing here needs torch. Dimension 0 of every tensor counts rows
(samples), is free, and is the same for all tensors of a call; concurrent calls are joined along
it. Of the other dimensions, those that a schema fixes have that size. One that it leaves free up to
a limit, such as the length of a sequence, has one size in all tensors of a call.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from p2pnode.config.experts import Codec
from p2pnode.errors import ProtocolError, SchemaError, TensorTooLargeError

ITEM_BYTES: Final = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "bool": 1,
}
MAX_DIMENSIONS: Final = 8  # numpy and torch take more; no expert here has needed more
MAX_TENSORS: Final = 64  # of one call, inputs and gradients together
_MAX_SIZE: Final = 2**40  # of one dimension: far above any byte limit, far below overflow
_MAX_TEXT: Final = 256
_MAX_KNOWN: Final = 64  # shapes that are remembered of each expert


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Dtype and shape of one tensor, and how it travels."""

    dtype: str
    shape: tuple[int, ...]
    codec: Codec = "none"

    @property
    def nbytes(self) -> int:
        """The size of its elements in bytes; `p2pnode.rpc.codecs.names` has that on the wire."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def __str__(self) -> str:
        """Return the meta for an error message, as in `float32 of shape (8, 64)`."""
        return f"{self.dtype} of shape ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True, slots=True)
class UpTo:
    """A dimension of a spec that each call may choose, from 1 to a limit."""

    limit: int

    def __post_init__(self) -> None:
        if not 0 < self.limit <= _MAX_SIZE:
            raise SchemaError(f"a dimension cannot be free up to {self.limit}")

    def __str__(self) -> str:
        return f"up to {self.limit}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape that a tensor must have; the first dimension is None, any number of rows."""

    dtype: str
    shape: tuple[int | UpTo | None, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise SchemaError(f"the dtype {self.dtype!r} is none of {', '.join(ITEM_BYTES)}")
        rows, *rest = self.shape or (0,)
        if rows is not None or len(rest) >= MAX_DIMENSIONS or None in rest:
            raise SchemaError(f"the shape {self.shape} must be (None, …) with sizes behind")

    @classmethod
    def of(cls, meta: TensorMeta) -> Self:
        """Return the spec that `meta` fits with any number of rows."""
        return cls(meta.dtype, (None, *meta.shape[1:]))

    def accepts(self, meta: TensorMeta) -> bool:
        """Tell whether a tensor fits."""
        return (
            meta.dtype == self.dtype
            and len(meta.shape) == len(self.shape)
            and all(
                1 <= size <= wanted.limit if isinstance(wanted, UpTo) else size == wanted
                for size, wanted in zip(meta.shape[1:], self.shape[1:], strict=True)
            )
        )

    @property
    def free(self) -> tuple[int, ...]:
        """The dimensions besides the rows that each call may choose."""
        return tuple(at for at, size in enumerate(self.shape) if isinstance(size, UpTo))

    def with_rows(self, rows: int, sizes: Mapping[int, int] | None = None) -> TensorMeta:
        """Return what a tensor of so many rows looks like.

        Args:
            rows: the first dimension.
            sizes: of the free ones, by dimension.
        """
        behind = (
            (sizes or {})[at] if isinstance(size, UpTo) else size or 0
            for at, size in enumerate(self.shape[1:], 1)
        )
        return TensorMeta(self.dtype, (rows, *behind))

    def __str__(self) -> str:
        """Return the spec for an error message, as in `float32 of shape (rows, 64)`."""
        return f"{self.dtype} of shape ({', '.join(('rows', *map(str, self.shape[1:])))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertInfo:
    """An expert's schema and its host's limits, as the `info` call answers."""

    layer: str
    inputs: tuple[TensorSpec, ...]  # positional ones first, then those of `keywords`, in order
    outputs: tuple[TensorSpec, ...]
    keywords: tuple[str, ...] = ()
    max_rows: int  # of one call; where dimensions are free, each of their positions counts as one
    max_bytes: int  # of the tensors of one request
    # Inputs that were found to fit, with what they give: calls repeat, and checking takes longer.
    _known: dict[tuple[TensorMeta, ...], tuple[int, list[TensorMeta]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        known = {at for spec in self.inputs for at in spec.free}
        if not known.issuperset(at for spec in self.outputs for at in spec.free):
            raise SchemaError("an output has a free dimension that no input has")

    def check_inputs(self, inputs: Sequence[TensorMeta]) -> int:
        """Check a forward call's tensors.

        Returns:
            The number of rows.

        Raises:
            SchemaError: count, dtype or shape are not what the expert takes.
            TensorTooLargeError: there are more rows or bytes than the host takes in one call.
        """
        return self.check_forward(inputs)[0]

    def check_forward(self, inputs: Sequence[TensorMeta]) -> tuple[int, list[TensorMeta]]:
        """Check as `check_inputs` does; returns the number of rows, and what is answered."""
        key = tuple(inputs)
        if (known := self._known.get(key)) is not None:
            return known
        _check("input", self._input_names(), self.inputs, inputs)
        rows = _check_sizes("input", self.inputs, inputs)
        self._check_amount(inputs, inputs)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        found = self._known[key] = rows, self.outputs_of(inputs)
        return found

    def check_gradients(self, inputs: Sequence[TensorMeta], gradients: Sequence[TensorMeta]) -> int:
        """Check a backward call's inputs and gradients of the outputs.

        Returns:
            The number of rows.

        Raises:
            SchemaError: count, dtype or shape do not fit.
            TensorTooLargeError: there are more rows or bytes than the host takes in one call.
        """
        _check("input", self._input_names(), self.inputs, inputs)
        names = [str(number) for number in range(len(self.outputs))]
        _check("gradient of output", names, self.outputs, gradients)
        both = (*inputs, *gradients)
        rows = _check_sizes("input and gradient", (*self.inputs, *self.outputs), both)
        self._check_amount(inputs, both)
        return rows

    def outputs_of(self, inputs: Sequence[TensorMeta]) -> list[TensorMeta]:
        """Return what a forward call with these inputs answers; they must fit."""
        sizes = _free_sizes(self.inputs, [meta.shape for meta in inputs])
        return [spec.with_rows(inputs[0].shape[0], sizes) for spec in self.outputs]

    def positions_of(self, shapes: Sequence[Sequence[int]]) -> int:
        """Return how many positions each row of inputs of these shapes has; they must fit."""
        return math.prod(_free_sizes(self.inputs, shapes).values())

    def to_wire(self) -> dict[str, Any]:
        """Return the info for msgpack or JSON."""
        return {
            "layer": self.layer,
            "inputs": _specs_to_wire(self.inputs),
            "outputs": _specs_to_wire(self.outputs),
            "keywords": list(self.keywords),
            "max_rows": self.max_rows,
            "max_bytes": self.max_bytes,
        }

    @classmethod
    def from_wire(cls, data: Any) -> Self:
        """Read what `to_wire` gave.

        Raises:
            ProtocolError: it is malformed.
        """
        try:
            return cls(
                layer=_text(data["layer"]),
                inputs=_specs(data["inputs"]),
                outputs=_specs(data["outputs"]),
                keywords=tuple(_text(name) for name in _bounded(data["keywords"])),
                max_rows=_size(data["max_rows"]),
                max_bytes=_size(data["max_bytes"]),
            )
        except (KeyError, TypeError, ValueError, SchemaError) as error:
            raise ProtocolError(f"an expert's description is malformed: {error}") from error

    def _input_names(self) -> list[str]:
        positional = len(self.inputs) - len(self.keywords)
        return [*map(str, range(positional)), *self.keywords]

    def _check_amount(self, inputs: Sequence[TensorMeta], tensors: Sequence[TensorMeta]) -> None:
        positions = self.positions_of([meta.shape for meta in inputs])
        amount = inputs[0].shape[0] * positions
        if amount > self.max_rows:
            what = "rows" if positions == 1 else "positions"
            raise TensorTooLargeError(
                f"{amount} {what} in one call; this host takes at most {self.max_rows}, so split"
                " them"
            )
        size = sum(tensor.nbytes for tensor in tensors)
        if size > self.max_bytes:
            raise TensorTooLargeError(
                f"{size} bytes of tensors in one call; this host takes at most {self.max_bytes},"
                " so send fewer rows at once"
            )


def read_meta(dtype: Any, shape: Any) -> TensorMeta:
    """Check a tensor's dtype and shape as they came from the wire.

    Raises:
        ProtocolError: the dtype is unknown, or the shape is not one.
    """
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ProtocolError(f"the dtype {shown(dtype)} is none of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"a shape must be a list of at most {MAX_DIMENSIONS} sizes")
    try:
        return TensorMeta(dtype, tuple(map(_size, shape)))
    except ValueError as error:
        raise ProtocolError(f"a shape is malformed: {error}") from error


def shown(value: Any) -> str:
    """Write a value from the wire for an error message; a deeply nested one has no `repr`."""
    return repr(value)[:32] if isinstance(value, str | int) else f"a {type(value).__name__}"


def _check(
    what: str, names: Sequence[str], specs: Sequence[TensorSpec], tensors: Sequence[TensorMeta]
) -> None:
    if len(tensors) != len(specs):
        raise SchemaError(f"the expert takes {len(specs)} {what} tensors, not {len(tensors)}")
    for name, spec, tensor in zip(names, specs, tensors, strict=True):
        if not spec.accepts(tensor):
            raise SchemaError(f"{what} {name} must be {spec}, not {tensor}")


def _check_sizes(what: str, specs: Sequence[TensorSpec], tensors: Sequence[TensorMeta]) -> int:
    """Check that tensors, each of which fits its spec, agree; return the number of rows."""
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) != 1:
        raise SchemaError(f"the {what} tensors have different numbers of rows: {sorted(rows)}")
    count = rows.pop()
    if count == 0:
        raise SchemaError(f"the {what} tensors have no rows; send at least one")
    sizes = _free_sizes(specs, [tensor.shape for tensor in tensors])
    for spec, tensor in zip(specs, tensors, strict=True):
        for at in spec.free:
            if tensor.shape[at] != sizes[at]:
                raise SchemaError(
                    f"dimension {at} of the {what} tensors is {tensor.shape[at]} in one and"
                    f" {sizes[at]} in another; they must agree"
                )
    return count


def _free_sizes(specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return the sizes that a call has chosen, by dimension."""
    return {at: shape[at] for spec, shape in zip(specs, shapes, strict=True) for at in spec.free}


def _specs_to_wire(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    return [
        [
            spec.dtype,
            *({"max": size.limit} if isinstance(size, UpTo) else size for size in spec.shape),
        ]
        for spec in specs
    ]


def _specs(data: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for dtype, *shape in _bounded(data):
        if not shape or shape[0] is not None:
            raise ValueError("the first dimension of a spec must be free")
        specs.append(TensorSpec(_text(dtype), (None, *map(_size_or_limit, shape[1:]))))
    if not specs:
        raise ValueError("an expert has at least one input and one output")
    return tuple(specs)


def _bounded(data: Any) -> list[Any]:
    if not isinstance(data, list) or len(data) > MAX_TENSORS:
        raise ValueError(f"not a list of at most {MAX_TENSORS} items")
    return data


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise ValueError(f"{shown(value)} is not a size")
    return value


def _size_or_limit(value: Any) -> int | UpTo:
    if isinstance(value, dict):
        return UpTo(_size(value.get("max")))
    return _size(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"not a printable text of at most {_MAX_TEXT} characters")
    return value
