"""One process that trains the network of the layers' swarms alone, in the same modelled time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from p2pnode.experts.backend import build_backend
from p2pnode.experts.optimizers import build_optimizer
from p2pnode.trainer.layerwise.data import Batches, Examples, Part, split
from p2pnode.wire.uids import Uid
from simulations.learning.data import load
from simulations.simulation import Simulation
from simulations.swarms.metered import METER, hosting_of

_RATES: Final = (0.5, 1.0, 2.0)  # times the learning rate, of which one process may take the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """How one process does: its accuracy on the hold-out at some moments of virtual time.

    Attributes:
        batch: examples of a step.
        rate: of learning.
        looks: seconds and accuracies.
        losses: of all steps.
        test: the accuracy on images that nothing was chosen by.
    """

    batch: int
    rate: float
    looks: list[tuple[float, float]]
    losses: list[float]
    test: float

    def seconds_to(self, threshold: float) -> float | None:
        """Return when it was there, if it was."""
        return next((at for at, score in self.looks if score >= threshold), None)


def train_alone(sim: Simulation, part: Part, test: Examples, *, batch: int, rate: float) -> Alone:
    """Train the same network from the same weights in one process, in time as it is modelled.

    It looks at the hold-out as often as a participant does that trains alone, and that costs time.
    """
    chosen = sim.parameters
    hosting = hosting_of(sim, rate)
    backends = [
        build_backend(Uid("alone", f"layers.{number}"), each) for number, each in enumerate(hosting)
    ]
    network = nn.Sequential(*(each.module for each in backends))
    optimizer = build_optimizer(list(network.parameters()), hosting[0])
    assert optimizer is not None, "an optimiser is configured"
    batches = Batches(part.train, sim.rng_for("alone").getrandbits(63))
    seconds, looks, losses = 0.0, [], []
    METER.take()
    for _ in range(chosen["rounds"] * chosen["peers"]):
        for _ in range(max(1, chosen["samples"] // batch)):
            examples = batches.draw(batch)
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(examples.inputs), examples.targets)
            losses.append(loss.item())
            torch.autograd.backward(loss)
            optimizer.step()
        score = accuracy(network, part.held_out)
        seconds += METER.take()
        looks.append((seconds, score))
        if score >= chosen["threshold"]:
            break
    return Alone(batch=batch, rate=rate, looks=looks, losses=losses, test=accuracy(network, test))


def accuracy(network: nn.Module, examples: Examples) -> float:
    """Return the share of examples that a network classifies rightly."""
    with torch.no_grad():
        right = network(examples.inputs).argmax(dim=1) == examples.targets
    return int(right.sum()) / len(examples)  # exact, as participants' scores are


def train_at_best(
    sim: Simulation, part: Part, test: Examples, batches: Sequence[int]
) -> tuple[Alone, list[Alone]]:
    """Train with the settings of the swarms, and then with others, of which the best counts.

    Args:
        sim: the parameters.
        part: what is trained on.
        test: what nothing is chosen by.
        batches: the sizes to try.

    Returns:
        That with the swarms' settings, and the others.
    """
    batch, rate = sim.parameters["batch"], sim.parameters["learning_rate"]
    same = train_alone(sim, part, test, batch=batch, rate=rate)
    others = [
        train_alone(sim, part, test, batch=size, rate=factor * rate)
        for size in batches
        for factor in _RATES
        if (size, factor) != (batch, 1.0)
    ]
    return same, others


def images(sim: Simulation) -> tuple[Part, Examples]:
    """Return all images to train on, with the hold-out, and those to test by.

    Raises:
        LocalError: the images are not installed.
    """
    data = load("mnist")
    part = split(
        Examples(data.train.pixels, data.train.digits),
        0,
        1,
        held_out=sim.parameters["held_out"] / len(data.train),
    )
    return part, Examples(data.held_out.pixels, data.held_out.digits)
