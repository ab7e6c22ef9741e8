"""The examples of one participant: those it trains on, and those it scores weights by."""

import hashlib
from dataclasses import dataclass

import torch

from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs, (n, …) as the first layer takes them, and their classes, int64 of shape (n,)."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        """Count them."""
        return len(self.targets)

    def take(self, rows: torch.Tensor) -> "Examples":
        """Return some of them."""
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, slots=True)
class Part:
    """What one participant has: its own data, of which a hold-out is never trained on.

    Neither is the test set that a run is judged by in the end.

    Raises:
        ConfigError: a part is empty, or inputs and targets do not fit each other.
    """

    train: Examples
    held_out: Examples

    def __post_init__(self) -> None:
        """Check the parts."""
        for name, each in (("train", self.train), ("held-out", self.held_out)):
            if not len(each) or len(each.inputs) != len(each):
                raise ConfigError(f"the {name} part needs as many inputs as classes, at least one")

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the hold-out, classes after inputs."""
        tensors = (self.held_out.inputs, self.held_out.targets)
        found = hashlib.sha256()
        for each in tensors:
            found.update(each.contiguous().numpy().tobytes())
        return found.digest()


def split(everything: Examples, number: int, parts: int, *, held_out: float) -> Part:
    """Cut out one participant's part of examples that are in random order already.

    Args:
        everything: the same on all machines, or one's own where `parts` is 1.
        number: of the part, from 0.
        parts: how many there are.
        held_out: the share of the part that is never trained on, between 0 and 1.

    Raises:
        ConfigError: there is no such part, or it has too few examples to be divided.
    """
    if not 0 <= number < parts:
        raise ConfigError(f"of {parts} parts there is no number {number}; they count from 0")
    own = everything.take(torch.arange(number, len(everything), parts))
    count = round(held_out * len(own))
    rows = torch.arange(len(own))
    return Part(own.take(rows[count:]), own.take(rows[:count]))


class Batches:
    """An endless row of examples, each pass over them in a new order; the seed decides all.

    Args:
        examples: what is drawn from.
        seed: of the order.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self._examples = examples
        self._random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self, size: int) -> Examples:
        """Return the next `size` examples."""
        while len(self._order) < size:
            again = torch.randperm(len(self._examples), generator=self._random)
            self._order = torch.cat([self._order, again])
        chosen, self._order = self._order[:size], self._order[size:]
        return self._examples.take(chosen)
