"""A mixture-of-experts layer whose experts fail at random, in the two forms that matter.

`as-published` is what the curves of the Learning@home paper came from, which its code shows and its
text does not. `trained-gate` is what a network of volunteers can really do.

*A failed expert* is, as published, replaced by the next best, since failures are known before the
choice; with a trained gate it is dropped: the softmax runs over those of the k that answered.
*The gate's keys* stay, as published, what they were drawn; a trained gate is a part of the trunk.

In both, whether an expert fails is drawn for each sample and expert, afresh in each forward pass,
also in those that evaluate; the gate's input is LayerNorm-ed; keys are normalised along the experts
(each feature's row of keys has length 1), not along the features; and every expert is scored, with
no grid and no beam search. A sample for which no expert answers gets zeros.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from simulations.learning.experts import ExpertBank, Use

AS_PUBLISHED: Final = "as-published"
TRAINED_GATE: Final = "trained-gate"
VARIANTS: Final = (AS_PUBLISHED, TRAINED_GATE)


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts of each sample.

    Attributes:
        experts: (samples, k), the best first.
        scores: of these experts, likewise.
        answered: which of them answer, likewise.
    """

    experts: torch.Tensor
    scores: torch.Tensor
    answered: torch.Tensor

    def weights(self) -> torch.Tensor:
        """Return each expert's part of the mixture: softmax over those that answer; (samples, k).

        Those that do not answer have none, and a sample without answers has only zeros.
        """
        scores = self.scores.masked_fill(~self.answered, -math.inf)
        nobody = ~self.answered.any(dim=1, keepdim=True)
        # A softmax over nothing is NaN, and so is its gradient; zeros in its place have neither.
        return scores.masked_fill(nobody, 0.0).softmax(dim=1) * self.answered


class Gate(nn.Module):
    """Scores the experts, and chooses the best of them.

    Args:
        features: the size of a sample.
        experts: how many there are.
        k_best: how many a sample is sent to.
        variant: one of `VARIANTS`.
        chance: decides the keys.
    """

    def __init__(
        self, features: int, experts: int, k_best: int, variant: str, chance: torch.Generator
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.keys = nn.Parameter(torch.randn(features, experts, generator=chance))
        self._k_best = k_best
        self._replaces = variant == AS_PUBLISHED
        if variant == AS_PUBLISHED:
            self.requires_grad_(requires_grad=False)

    def choose(self, inputs: torch.Tensor, failed: torch.Tensor) -> Choice:
        """Choose experts.

        Args:
            inputs: (samples, features).
            failed: which experts fail for which samples, bool of shape (samples, experts).
        """
        scores = self.norm(inputs) @ functional.normalize(self.keys, dim=1)
        if self._replaces:
            best, experts = scores.masked_fill(failed, -math.inf).topk(self._k_best, dim=1)
            # Where fewer than k are left, the places of the others are taken by failed ones.
            return Choice(experts, best, ~failed.gather(1, experts))
        best, experts = scores.topk(self._k_best, dim=1)
        return Choice(experts, best, ~failed.gather(1, experts))


class Mixture(nn.Module):
    """The layer: a gate, and the experts, which step by themselves.

    Args:
        gate: chooses.
        bank: computes.
        failure_rate: how probable it is that an expert fails for a sample.
        chance: decides who fails.
    """

    def __init__(
        self, gate: Gate, bank: ExpertBank, failure_rate: float, chance: torch.Generator
    ) -> None:
        super().__init__()
        self.gate = gate
        self.bank = bank
        self._failure_rate = failure_rate
        self._chance = chance
        self._use: Use | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mix the answers of each sample's experts; (samples, features) to the same."""
        if self.training:
            self.bank.step_due()
        choice = self.gate.choose(inputs, self._draw_failures(len(inputs)))
        samples, places = choice.answered.nonzero(as_tuple=True)
        mixed = torch.zeros_like(inputs)
        self._use = None
        if len(samples):
            asked = choice.experts[samples, places]
            answers, self._use = self.bank.forward(inputs[samples], asked)
            parts = choice.weights()[samples, places]
            mixed = mixed.index_add(0, samples, answers * parts[:, None])
            if self.training:
                self.bank.count(asked)
        return mixed

    def take_use(self) -> Use | None:
        """Return what the last forward pass used, once; None if it asked nobody."""
        use, self._use = self._use, None
        return use

    def _draw_failures(self, samples: int) -> torch.Tensor:
        shape = (samples, len(self.bank.weights))
        if not self._failure_rate:
            return torch.zeros(shape, dtype=torch.bool)
        return torch.rand(shape, generator=self._chance) < self._failure_rate
