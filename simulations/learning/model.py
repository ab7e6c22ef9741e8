"""What is trained: a classifier of some blocks, each dense or a mixture of experts.

It takes an image by a linear layer, passes it through the blocks, and classifies it by LayerNorm
and a linear layer. Everything but the experts is the *trunk*, which the trainers step, without the
keys of a frozen gate.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from simulations.learning.data import CLASSES, Images
from simulations.learning.experts import ExpertBank, block, block_shapes, first_weights
from simulations.learning.mixture import Gate, Mixture

DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a classifier is made of.

    Attributes:
        variant: `DENSE`, or one of `mixture.VARIANTS`.
        features: the size of what passes between blocks; of a dense classifier twice as much, as
            published, where both cost about the same.
        blocks: how many.
        experts: of each block.
        k_best: how many experts a sample is sent to.
        failure_rate: how probable it is that an expert fails for a sample.
        learning_rate: of the trunk and of the experts.
        update_inputs: see `ExpertBank`.
        update_steps: likewise.
    """

    variant: str
    features: int
    blocks: int
    experts: int
    k_best: int
    failure_rate: float
    learning_rate: float
    update_inputs: int
    update_steps: int


class DenseBlock(nn.Module):
    """One expert's block as an ordinary module, part of the trunk."""

    def __init__(self, features: int, chance: torch.Generator) -> None:
        super().__init__()
        flat = first_weights(features, chance)
        shapes = block_shapes(features)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.parts = nn.ParameterList(
            part.view(1, *shape).clone()
            for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the block; (samples, features) to the same."""
        return block(inputs[None], list(self.parts))[0]


class Classifier:
    """A classifier with its trunk's optimiser.

    Args:
        shape: what it is made of.
        pixels: of an image.
        chance: decides the first weights.
        failures: decides which experts fail.
    """

    def __init__(
        self, shape: Shape, pixels: int, *, chance: torch.Generator, failures: torch.Generator
    ) -> None:
        dense = shape.variant == DENSE
        features = 2 * shape.features if dense else shape.features
        blocks: list[nn.Module] = []
        for _ in range(shape.blocks):
            if dense:
                blocks.append(DenseBlock(features, chance))
                continue
            bank = ExpertBank(
                shape.experts,
                features,
                learning_rate=shape.learning_rate,
                update_inputs=shape.update_inputs,
                update_steps=shape.update_steps,
                chance=chance,
            )
            gate = Gate(features, shape.experts, shape.k_best, shape.variant, chance)
            blocks.append(Mixture(gate, bank, shape.failure_rate, failures))
        self._net = nn.Sequential(
            _linear(pixels, features, chance),
            *blocks,
            nn.LayerNorm(features),
            _linear(features, CLASSES, chance),
        )
        self.mixtures = [each for each in blocks if isinstance(each, Mixture)]
        self.trunk = [each for each in self._net.parameters() if each.requires_grad]
        # One fused kernel: for small models several times faster than a loop.
        self._optimizer = torch.optim.Adam(
            self.trunk, lr=shape.learning_rate, amsgrad=True, fused=True
        )

    def gradients(self, batch: Images) -> tuple[float, list[torch.Tensor | None]]:
        """Compute a batch forward and backward; the experts gather their gradients at once.

        Returns:
            The loss, and the trunk's gradients in the order of `trunk`, for `apply`; None where
            the loss does not depend on them.
        """
        self._net.train()
        loss = functional.cross_entropy(self._net(batch.pixels), batch.digits)
        uses = [(each.bank, each.take_use()) for each in self.mixtures]
        leaves = [use.weights for _, use in uses if use is not None]
        found = torch.autograd.grad(loss, [*self.trunk, *leaves], allow_unused=True)
        gathered = iter(found[len(self.trunk) :])
        for bank, use in uses:
            if use is not None and (gradient := next(gathered)) is not None:
                bank.gather(use, gradient)
        return float(loss.detach()), list(found[: len(self.trunk)])

    def apply(self, gradients: list[torch.Tensor | None]) -> None:
        """Step the trunk."""
        for parameter, gradient in zip(self.trunk, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    @torch.no_grad()
    def evaluate(self, images: Images) -> tuple[float, float]:
        """Return the part of the images that are classified right, and their mean loss."""
        self._net.eval()
        scores = self._net(images.pixels)
        right = int((scores.argmax(dim=1) == images.digits).sum())
        return right / len(images.digits), float(functional.cross_entropy(scores, images.digits))


def _linear(takes: int, gives: int, chance: torch.Generator) -> nn.Linear:
    """Return a linear layer as torch starts it, from our own source of chance."""
    layer = nn.Linear(takes, gives)
    bound = takes**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=chance)
        layer.bias.uniform_(-bound, bound, generator=chance)
    return layer
