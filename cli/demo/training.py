"""The model and its training, the same for remote and for local experts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from cli.demo import plan
from cli.demo.data import CLASSES, FEATURES, Batches, Digits, Images
from p2pnode import MixtureOfExperts
from p2pnode.errors import NoLiveExpertError

BuildLayer = Callable[[str], MixtureOfExperts]
"""Takes a block's name; the layer's gate draws its weights from torch's global generator."""


class Classifier(nn.Module):
    """A local input layer, two mixtures of experts, and a local head."""

    def __init__(self, build: BuildLayer) -> None:
        super().__init__()
        self.read = nn.Linear(FEATURES, plan.HIDDEN_DIM)
        self.mixtures = nn.ModuleList(build(block) for block in plan.BLOCKS)
        self.head = nn.Sequential(
            nn.LayerNorm(plan.HIDDEN_DIM), nn.Linear(plan.HIDDEN_DIM, CLASSES)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (n, 64) pixels to (n, 10) scores."""
        hidden = self.read(pixels)
        for mixture in self.mixtures:
            hidden = mixture(hidden)
        scores: torch.Tensor = self.head(hidden)
        return scores

    def layers(self) -> list[MixtureOfExperts]:
        """Return the mixtures."""
        return [each for each in self.mixtures if isinstance(each, MixtureOfExperts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of training; what could not be measured is None."""

    number: int  # from 1
    loss: float | None  # None: the step was skipped, since samples had lost all their experts
    accuracy: float | None  # on the batch
    validation: float | None  # accuracy, measured every few steps


def build_classifier(build: BuildLayer, seed: int) -> Classifier:
    """Build a model whose own weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Classifier(build)


def train(model: Classifier, data: Digits, *, steps: int, seed: int) -> Iterator[Step]:
    """Train, yielding after each step; the caller may do as it likes between two of them."""
    batches = Batches(data.train, plan.BATCH, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for number in range(1, steps + 1):
        batch = batches.draw()
        loss = right = None
        try:
            scores = model(batch.pixels)
            error = nn.functional.cross_entropy(scores, batch.digits, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(error)
        except NoLiveExpertError:
            pass
        else:
            optimizer.step()
            loss, right = error.item(), _accuracy(scores, batch)
        schedule.step()
        measured = number % plan.VALIDATION_INTERVAL == 0 or number == steps
        yield Step(
            number=number,
            loss=loss,
            accuracy=right,
            validation=evaluate(model, data.validation) if measured else None,
        )


def evaluate(model: Classifier, images: Images) -> float | None:
    """Return the accuracy, or None if some images have lost all their experts."""
    with torch.no_grad():
        try:
            return _accuracy(model(images.pixels), images)
        except NoLiveExpertError:
            return None


def _accuracy(scores: torch.Tensor, images: Images) -> float:
    return float((scores.argmax(1) == images.digits).float().mean())
