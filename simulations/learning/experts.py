"""A layer's experts as one stack of weights, and when they step.

An expert is a feed-forward block with a residual connection, `features -> 4 features -> 4 features
-> features`, with LayerNorm and ReLU after the first two layers. All experts of a layer lie in one
matrix with a row each, and those that a batch uses are computed in one go: a hundred small modules
would spend all their time between the computations.

An expert gathers gradients at once, from whichever trainer they come, and its own optimiser steps
when it was used on `update_inputs` inputs, or in the `update_steps`-th forward pass that began with
the first of them; whether it is due is looked at once, when the next forward pass for training
begins. The gradients are summed, as the published emulation does, not averaged.

The optimiser is Adam in its AMSGrad form (Reddi et al. 2018), with a count of steps of its own for
each expert: the same numbers as `torch.optim.Adam(amsgrad=True)` over each expert alone.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

_BETA_1: Final = 0.9
_BETA_2: Final = 0.999
_EPSILON: Final = 1e-8
_WIDENING: Final = 4


class StackedAdam:
    """AMSGrad over rows of a matrix that step at different times.

    Args:
        weights: (rows, numbers); changed in place.
        learning_rate: of all rows.
    """

    def __init__(self, weights: torch.Tensor, learning_rate: float) -> None:
        self._weights = weights
        self._rate = learning_rate
        self._mean = torch.zeros_like(weights)
        self._square = torch.zeros_like(weights)
        self._largest = torch.zeros_like(weights)
        self.steps = torch.zeros(len(weights), dtype=torch.int64)

    def step(self, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        """Step some rows.

        Args:
            rows: which, each once.
            gradients: of these rows.
        """
        self.steps[rows] += 1
        taken = self.steps[rows].to(torch.float32)[:, None]
        mean = self._mean.index_select(0, rows).lerp_(gradients, 1 - _BETA_1)
        square = self._square.index_select(0, rows).mul_(_BETA_2)
        square.addcmul_(gradients, gradients, value=1 - _BETA_2)
        largest = torch.maximum(self._largest.index_select(0, rows), square)
        self._mean.index_copy_(0, rows, mean)
        self._square.index_copy_(0, rows, square)
        self._largest.index_copy_(0, rows, largest)
        scale = (1 - _BETA_2**taken).sqrt_()
        change = mean.div_(largest.sqrt_().div_(scale).add_(_EPSILON))
        change.mul_(self._rate / (_BETA_1**taken - 1))
        self._weights.index_add_(0, rows, change)


@dataclass(frozen=True, slots=True)
class Use:
    """One forward pass's use of experts, until its gradients are there.

    Attributes:
        experts: those that were used, ascending, (n,).
        weights: their weights as they were then, (n, numbers), leaves of the autograd graph.
    """

    experts: torch.Tensor
    weights: torch.Tensor


class ExpertBank:
    """The experts of one layer.

    Args:
        experts: how many.
        features: the size of what each takes and gives.
        learning_rate: of their optimisers.
        update_inputs: an expert steps when it was used on so many inputs,
        update_steps: or in so many forward passes since its first input.
        chance: decides the first weights.

    Attributes:
        weights: all of them, (experts, numbers).
        gradients: what each has gathered since its last step, likewise.
        inputs: how many inputs each was used on since then.
        passes: in how many forward passes, since then, each had been used by their end.
    """

    def __init__(
        self,
        experts: int,
        features: int,
        *,
        learning_rate: float,
        update_inputs: int,
        update_steps: int,
        chance: torch.Generator,
    ) -> None:
        self._shapes = block_shapes(features)
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.weights = torch.stack([first_weights(features, chance) for _ in range(experts)])
        self.gradients = torch.zeros_like(self.weights)
        self.inputs = torch.zeros(experts, dtype=torch.int64)
        self.passes = torch.zeros(experts, dtype=torch.int64)
        self._update_inputs = update_inputs
        self._update_steps = update_steps
        self._optimizer = StackedAdam(self.weights, learning_rate)

    @property
    def steps(self) -> torch.Tensor:
        """How many steps each expert has taken, (experts,)."""
        return self._optimizer.steps

    def step_due(self) -> None:
        """Step the experts that are due; called once, when a forward pass for training begins."""
        due = (self.inputs >= self._update_inputs) | (self.passes >= self._update_steps)
        rows = due.nonzero().flatten()
        if len(rows):
            self._optimizer.step(rows, self.gradients.index_select(0, rows))
            self.gradients.index_fill_(0, rows, 0.0)
            self.inputs[rows] = 0
            self.passes[rows] = 0

    def count(self, experts: torch.Tensor) -> None:
        """Count a forward pass for training.

        Args:
            experts: those that were used, once for each input, in any shape.
        """
        self.inputs += torch.bincount(experts.flatten(), minlength=len(self.inputs))
        self.passes += self.inputs > 0

    def forward(self, inputs: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, Use]:
        """Compute each input by its expert.

        Args:
            inputs: (n, features), n at least 1.
            experts: which expert takes each, (n,).

        Returns:
            The outputs, (n, features), and what `gather` needs for the gradients.
        """
        used, group, sizes = torch.unique(experts, return_inverse=True, return_counts=True)
        # Each expert's inputs lie in a row of their own, filled up with zeros to the longest one.
        order = group.argsort(stable=True)
        place = torch.empty_like(group)
        place[order] = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
        rows = inputs.new_zeros(len(used), int(sizes.max()), inputs.shape[1])
        rows = rows.index_put((group, place), inputs)
        weights = self.weights.index_select(0, used).requires_grad_()
        parts = [
            part.view(-1, *shape)
            for part, shape in zip(torch.split(weights, self._sizes, 1), self._shapes, strict=True)
        ]
        return block(rows, parts)[group, place], Use(used, weights)

    def gather(self, use: Use, gradient: torch.Tensor) -> None:
        """Add the gradient of a use's weights to what its experts have gathered."""
        self.gradients.index_add_(0, use.experts, gradient)


def block_shapes(features: int) -> list[tuple[int, ...]]:
    """List the shapes of a block's weights, in their order in a row of the stack."""
    wide = _WIDENING * features
    norm = [(1, wide), (1, wide), (1, wide)]  # the bias before it, its scale, its shift
    return [(features, wide), *norm, (wide, wide), *norm, (wide, features), (1, features)]


def first_weights(features: int, chance: torch.Generator) -> torch.Tensor:
    """Return a fresh block, flat; drawn as `torch.nn.Linear` and `LayerNorm` start."""
    wide = _WIDENING * features
    parts: list[torch.Tensor] = []
    for takes, gives in ((features, wide), (wide, wide), (wide, features)):
        bound = 1 / math.sqrt(takes)
        parts += [
            torch.empty(shape).uniform_(-bound, bound, generator=chance)
            for shape in ((takes, gives), (1, gives))
        ]
        if gives == wide:
            parts += [torch.ones(1, wide), torch.zeros(1, wide)]
    return torch.cat([each.flatten() for each in parts])


def block(rows: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    """Compute blocks side by side.

    Args:
        rows: (blocks, n, features).
        parts: the weights, (blocks, *shape) for each of `block_shapes`.

    Returns:
        (blocks, n, features).
    """
    in_, bias_1, scale_1, shift_1, middle, bias_2, scale_2, shift_2, out, bias_3 = parts
    hidden = torch.baddbmm(bias_1, rows, in_)
    hidden = functional.layer_norm(hidden, hidden.shape[-1:]).mul(scale_1).add(shift_1).relu()
    hidden = torch.baddbmm(bias_2, hidden, middle)
    hidden = functional.layer_norm(hidden, hidden.shape[-1:]).mul(scale_2).add(shift_2).relu()
    return rows + torch.baddbmm(bias_3, hidden, out)
