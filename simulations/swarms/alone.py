"""One process that trains the network of the layers' swarms alone, in the same modelled time."""

from collections.abc import Mapping, Sequence
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
from simulations.report import Axis, Report, at_least
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


@dataclass(frozen=True, slots=True)
class Beside:
    """What swarms are set beside: one process with their settings, and with others.

    Attributes:
        same: with theirs.
        others: with others, of which the best counts.
        threshold: the accuracy that all are to reach.
    """

    same: Alone
    others: Sequence[Alone]
    threshold: float

    def speed_ups(self, seconds: float | None) -> tuple[float | None, float | None]:
        """Return how many times faster swarms are than it with their settings, and at its best.

        Args:
            seconds: that swarms take to the threshold, if they reach it.
        """
        times = [each.seconds_to(self.threshold) for each in (self.same, *self.others)]
        least = min((each for each in times if each is not None), default=None)
        both = [
            None if each is None or seconds is None else each / seconds
            for each in (times[0], least)
        ]
        return both[0], both[1]

    def report_speed_ups(
        self, report: Report, found: Sequence[float | None], *, goal: float, ways: str, batch: str
    ) -> None:
        """Put the figures of the fastest swarms into a report.

        Args:
            report: of the scenario.
            found: the seconds that the swarms take to the threshold, by the ways they train.
            goal: of the speed-up.
            ways: what the scenario calls one of these.
            batch: what it calls the examples of a step.
        """
        alone = self.same.seconds_to(self.threshold)
        pairs = [self.speed_ups(seconds) for seconds in found]
        report.figure(
            "speed-up at equal accuracy",
            max((pair[0] for pair in pairs if pair[0] is not None), default=None),
            "x",
            goal=at_least(goal),
            detail=f"{100 * self.threshold:.0f} % of the hold-out, in the fastest {ways}, against"
            f" one process with the same network, {batch} and learning rate"
            + ("" if alone is None else f", which takes {alone:.2f} s"),
        )
        report.figure(
            "speed-up against one process at its best",
            max((pair[1] for pair in pairs if pair[1] is not None), default=None),
            "x",
            detail=f"the same, where one process may take the best of {1 + len(self.others)}"
            f" settings of {batch} and learning rate, and the swarms may not",
        )

    def report_table(self, report: Report, batch: str) -> None:
        """Put what one process does into a report; `batch` is as in `report_speed_ups`."""
        report.table(
            "one process",
            [batch, "learning rate", Axis("time", "s"), Axis("test", "%")],
            [
                (each.batch, each.rate, each.seconds_to(self.threshold), 100 * each.test)
                for each in (self.same, *self.others)
            ],
        )

    def report_looks(
        self, report: Report, found: Mapping[str, Sequence[tuple[float, float]]], caption: str = ""
    ) -> None:
        """Plot accuracy over time.

        Args:
            report: of the scenario.
            found: of the swarms in each way, seconds and accuracies.
            caption: what there is to say of the plot.
        """
        lines = {"one process": self.same.looks, **found}
        for name, points in lines.items():
            report.series(
                name,
                [at for at, _ in points],
                [100 * score for _, score in points],
                x_label="virtual time",
                x_unit="s",
                y_label="accuracy on the hold-out",
                y_unit="%",
            )
        report.plot("accuracy over time", list(lines), caption=caption)


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


def train_at_best(sim: Simulation, part: Part, test: Examples, batches: Sequence[int]) -> Beside:
    """Train with the settings of the swarms, and then with others, of which the best counts.

    Args:
        sim: the parameters.
        part: what is trained on.
        test: what nothing is chosen by.
        batches: the sizes to try.
    """
    batch, rate = sim.parameters["batch"], sim.parameters["learning_rate"]
    same = train_alone(sim, part, test, batch=batch, rate=rate)
    others = [
        train_alone(sim, part, test, batch=size, rate=factor * rate)
        for size in batches
        for factor in _RATES
        if (size, factor) != (batch, 1.0)
    ]
    return Beside(same, others, sim.parameters["threshold"])


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
