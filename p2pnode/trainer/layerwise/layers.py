"""The layers of a fully connected classifier of 28 x 28 images, for `hosting.layer`.

A network of n layers is `Entry`, n - 2 times `Hidden`, and `Exit`; `hosting.hidden_dim` is what
passes between them. Networks of one's own are written likewise: one registered class for each kind
of layer, named by `module:Class` or `path/to/file.py:Class`.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from p2pnode.experts.layers import register_layer
from p2pnode.rpc.schema import TensorSpec

PIXELS: Final = 28 * 28
CLASSES: Final = 10


def layer_names(layers: int) -> list[str]:
    """Return what `hosting.layer` is for each layer of a network, in order.

    Raises:
        ValueError: a network that swarms share has two layers or more.
    """
    if layers < 2:
        raise ValueError(f"a network has two layers or more, not {layers}")
    kinds = [Entry, *[Hidden] * (layers - 2), Exit]
    return [f"{__name__}:{kind.__name__}" for kind in kinds]


def pixel_rows(_hidden_dim: int) -> Sequence[TensorSpec]:
    """Describe images: one float32 tensor of shape (rows, PIXELS)."""
    return (TensorSpec("float32", (None, PIXELS)),)


@register_layer("images-entry", inputs=pixel_rows)
class Entry(nn.Module):
    """From pixels to the first hidden activations."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(PIXELS, hidden_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, PIXELS) to (rows, hidden_dim)."""
        return torch.relu(self.linear(x))


@register_layer("images-hidden")
class Hidden(nn.Module):
    """From hidden activations to hidden activations."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, hidden_dim) to the same shape."""
        return torch.relu(self.linear(x))


@register_layer("images-exit")
class Exit(nn.Module):
    """From hidden activations to a score for each class."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, hidden_dim) to (rows, CLASSES)."""
        scores: torch.Tensor = self.linear(x)
        return scores
