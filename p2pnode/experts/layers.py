"""The kinds of expert a host can build, by name.

Names come from the host's own command line or settings, never from the network: a peer asks for a
uid, and what class answers is this machine's business.

A layer is a builder, called with `hidden_dim`, and the schema of its inputs. Three rules make it
fit to be served, for any class:

- rows do not see each other (no batch statistics), since concurrent calls are joined along
  dimension 0 and split again;
- the same input gives the same output until the next optimiser step (no dropout), since backward
  runs forward again instead of keeping activations;
- the inputs stay as they are (nothing in place at the entrance): a batch that does not fit the
  device's memory is computed again from them, in smaller parts.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

import torch
from torch import nn

from p2pnode.errors import ConfigError, SchemaError
from p2pnode.rpc.schema import TensorSpec

TRANSFORMER_SEQUENCE: Final = 128  # tokens of one row; hivemind's transformer layer has as many
_MAX_HEADS: Final = 16  # Learning@home's transformer block has 16 heads at d=1024

Builder = Callable[[int], nn.Module]
Inputs = Callable[[int], Sequence[TensorSpec]]
B = TypeVar("B", bound=Builder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One kind of expert.

    Attributes:
        name: what `--layer` calls it.
        build: makes a module for a hidden dimension.
        inputs: its tensors for a hidden dimension, positional ones first.
        keywords: names of the last of `inputs` that are passed by keyword.
    """

    name: str
    build: Builder
    inputs: Inputs
    keywords: tuple[str, ...] = ()


_LAYERS: Final[dict[str, Layer]] = {}


def hidden_rows(hidden_dim: int) -> Sequence[TensorSpec]:
    """Describe the usual input: one float32 tensor of shape (rows, hidden_dim)."""
    return (TensorSpec("float32", (None, hidden_dim)),)


def hidden_sequences(hidden_dim: int) -> Sequence[TensorSpec]:
    """Describe a sequence: one float32 tensor of shape (rows, TRANSFORMER_SEQUENCE, hidden_dim)."""
    return (TensorSpec("float32", (None, TRANSFORMER_SEQUENCE, hidden_dim)),)


def register_layer(
    name: str, *, inputs: Inputs = hidden_rows, keywords: Sequence[str] = ()
) -> Callable[[B], B]:
    """Give a class, or a function that builds a module, a name for `--layer`.

    Args:
        name: the name; registering another class under a taken name is a mistake.
        inputs: the input tensors for a hidden dimension.
        keywords: names of the last of them that are passed by keyword.

    Raises:
        ConfigError: the name is taken.
    """

    def register(build: B) -> B:
        if name in _LAYERS:
            raise ConfigError(f"a layer named {name!r} is registered already; choose another name")
        _LAYERS[name] = Layer(name=name, build=build, inputs=inputs, keywords=tuple(keywords))
        return build

    return register


def find_layer(name: str) -> Layer:
    """Return a registered layer, or load `module:Class` or `path/to/file.py:Class`.

    A class loaded that way is built with `hidden_dim`; it takes float32 rows of that size, unless
    its module registers it with other inputs. The layer is named by the class alone: each host of a
    run has the file where it likes, and may move it.

    Raises:
        ConfigError: nothing has that name.
    """
    if name in _LAYERS:
        return _LAYERS[name]
    source, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(
            f"unknown layer {name!r}; use one of {', '.join(sorted(_LAYERS))}, or one of"
            " your own, as module:Class or path/to/file.py:Class"
        )
    module = _load_module(source)
    build = getattr(module, attribute, None)
    if not callable(build):
        raise ConfigError(f"{source} has no class {attribute!r} to build experts from")
    for layer in _LAYERS.values():
        if layer.build is build:
            return layer
    return Layer(name=attribute, build=build, inputs=hidden_rows)


def _load_module(source: str) -> ModuleType:
    try:
        if source.endswith(".py"):
            return _load_file(Path(source))
        here = str(Path.cwd())
        sys.path.append(here)  # a console script does not look where the user stands
        try:
            return importlib.import_module(source)
        finally:
            sys.path.remove(here)
    except ConfigError:
        raise
    except Exception as error:  # it is somebody's code
        raise ConfigError(
            f"cannot load layers from {source!r}: {type(error).__name__}: {error}"
        ) from error


def _load_file(path: Path) -> ModuleType:
    name = f"p2pnode_layers_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path.resolve()):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # as Python's own import does it
        del sys.modules[name]
        raise
    return module


@register_layer("ffn")
class FeedForward(nn.Module):
    """Learning@home's expert: x + FFN(x) with two hidden layers of 4·d, LayerNorm and ReLU.

    Source: Ryabinin & Gusev 2020, "Towards Crowdsourced Training of Large Neural Networks using
    Decentralized Mixture-of-Experts", section 4.1: 1024 → 4096 → 4096 → 1024.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        wide = 4 * hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, wide),
            nn.LayerNorm(wide),
            nn.ReLU(inplace=True),
            nn.Linear(wide, wide),
            nn.LayerNorm(wide),
            nn.ReLU(inplace=True),
            nn.Linear(wide, hidden_dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, hidden_dim) to the same shape."""
        y: torch.Tensor = x + self.layers(x)
        return y


@register_layer("linear")
def _linear(hidden_dim: int) -> nn.Module:
    return nn.Linear(hidden_dim, hidden_dim)


@register_layer("transformer", inputs=hidden_sequences)
def _transformer(hidden_dim: int) -> nn.Module:
    heads = next(n for n in (_MAX_HEADS, 8, 4, 2, 1) if hidden_dim % n == 0)
    return nn.TransformerEncoderLayer(
        hidden_dim, heads, dim_feedforward=2 * hidden_dim, dropout=0.0, batch_first=True
    )


@register_layer("nop")
class Nop(nn.Module):
    """Returns its input: for measuring everything around the computation."""

    def __init__(self, _hidden_dim: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, of any shape."""
        return x


def check_input_specs(layer: Layer, hidden_dim: int) -> tuple[TensorSpec, ...]:
    """Return the layer's inputs for a hidden dimension.

    Raises:
        ConfigError: the layer does not take this hidden dimension.
    """
    try:
        specs = tuple(layer.inputs(hidden_dim))
    except SchemaError as error:
        raise ConfigError(f"the layer {layer.name} has no valid inputs: {error}") from error
    if hidden_dim < 1 or not specs or len(layer.keywords) > len(specs):
        raise ConfigError(f"the layer {layer.name} cannot be built with hidden_dim={hidden_dim}")
    return specs
