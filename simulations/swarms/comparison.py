"""A swarm that is disturbed beside others that are not: `swarm-liars` and `swarm-churn`.

All swarms have the same shares of the data, the same first weights, the same order of images and
the same network, one after the other. So what differs in the end comes of the disturbance alone.

Liars bring nothing, so a swarm with three of them among ten learns from seven shares. It is set
beside a swarm of these seven alone, which says what *lies* cost, and beside one of ten honest
participants, which says what is missed in that the three are none.
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pnode.config import Settings
from p2pnode.errors import ConfigError
from p2pnode.swarm.rounds.events import Verdict
from simulations.learning.data import load
from simulations.learning.determinism import one_thread
from simulations.report import Axis, Report, at_most
from simulations.simulation import Simulation
from simulations.swarms.learner import LAYER, shares_of
from simulations.swarms.training import Outcome, SwarmStory

_WITHIN: float = 1.0  # points, that a disturbance may cost
_LATE: int = 2  # rounds, until one that joins late serves the swarm's weights


@dataclass(frozen=True, slots=True)
class Swarm:
    """One of the swarms that are compared.

    Attributes:
        name: of it.
        honest: how many honest participants it has.
        liars: how many others.
        replaced: in which rounds a participant goes and another one takes its share.
    """

    name: str
    honest: int
    liars: int = 0
    replaced: tuple[int, ...] = ()


async def compare_with_liars(sim: Simulation) -> None:
    """Train with ten honest participants, say, with seven of them, and with these and three liars.

    Raises:
        ConfigError: there are no honest participants.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    peers = chosen["peers"]
    liars = round(peers * chosen["lies.share"] / 100)
    honest = Swarm("honest", peers)
    absent = Swarm("absent", peers - liars)
    lied_to = Swarm("liars", peers - liars, liars=liars)
    full, calm, disturbed = await _train(sim, honest, absent, lied_to)
    _report_loss(
        sim.report,
        calm,
        disturbed,
        "lost to liars",
        f"beside {peers - liars} honest participants alone, with the same data",
    )
    sim.report.figure(
        "lost beside a swarm without liars",
        full.accuracy - disturbed.accuracy,
        "points",
        detail=f"beside {peers} honest participants, who have the data of those, too, that lie"
        " here",
    )
    _report_accuracies(sim.report, (full, calm, disturbed))
    of_honest, of_liars = disturbed.verdicts
    report = sim.report
    report.figure(
        "lies adopted",
        disturbed.adopted_lies + of_liars[Verdict.ADOPTED],
        goal=at_most(0),
        detail=f"of {disturbed.lies} announced by {liars} liars; {of_liars.total()} were fetched"
        f" and scored, or known: {_told(of_liars)}",
    )
    report.figure(
        "honest claims taken for lies",
        of_honest[Verdict.FALSE] + of_honest[Verdict.UNFIT],
        goal=at_most(0),
        detail=f"of {of_honest.total()} that were checked: {_told(of_honest)}",
    )
    chances = liars * len(disturbed.accuracies) * chosen["rounds"]
    report.figure(
        "lies looked at",
        100 * of_liars.total() / chances if chances else None,
        "%",
        detail="of one of each liar in each round, by each honest participant; who has lied is left"
        f" alone for a while that doubles, was blacklisted {disturbed.blacklisted} times, and hears"
        " less of the others",
    )


async def compare_with_churn(sim: Simulation) -> None:
    """Train with the same participants all along, and with some replaced.

    Raises:
        ConfigError: there are fewer than two participants.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    count = round(chosen["peers"] * chosen["replaced"] / 100)
    spread = [1 + (number + 1) * chosen["rounds"] // (count + 2) for number in range(count)]
    calm, disturbed = await _train(
        sim,
        Swarm("calm", chosen["peers"]),
        Swarm("churn", chosen["peers"], replaced=tuple(spread)),
    )
    _report_loss(sim.report, calm, disturbed, "lost to churn", "beside the same ones all along")
    _report_accuracies(sim.report, (calm, disturbed))
    report, joins = sim.report, disturbed.joins
    report.figure(
        "late joiners serve after",
        max((each.took for each in joins), default=None),
        "rounds",
        goal=at_most(_LATE),
        detail=f"the slowest of {len(joins)}; it has the swarm's weights then",
    )
    report.figure(
        "late joiners behind",
        max((each.behind for each in joins), default=None),
        "points",
        detail="when they begin to serve, the worst of them, below the mean of the others",
    )
    report.table(
        "late joiners",
        ["joined in round", "rounds until it serves", Axis("time", "s"), Axis("behind", "points")],
        [(each.round, each.took, each.seconds, each.behind) for each in joins],
    )


async def _train(sim: Simulation, *swarms: Swarm) -> list[Outcome]:
    """Train one swarm after the other; each participant has a share of the data, from the first."""
    chosen = sim.parameters
    if min(each.honest for each in swarms) < 2:
        raise ConfigError("a swarm needs at least two honest participants; set peers higher")
    data = load(chosen["data"])
    shares = shares_of(data.train, chosen["peers"], chosen["held_out"])
    if len(data.train) // chosen["peers"] <= chosen["held_out"]:
        raise ConfigError("there are too few images for so many peers; set held_out or peers lower")
    sim.begin("bootstrap peers join")
    await sim.world.add_nodes(4)
    found = []
    with one_thread(), tempfile.TemporaryDirectory() as directory:
        for swarm in swarms:
            sim.begin(f"training: {swarm.name}")
            sim.world.settings = _settings(sim, data.pixels, swarm.honest)
            own = shares[: swarm.honest]
            story = SwarmStory(sim, swarm.name, own, data.held_out, Path(directory))
            found.append(await story.run(liars=swarm.liars, replaced=swarm.replaced))
    return found


def _settings(sim: Simulation, pixels: int, honest: int) -> Settings:
    chosen = sim.parameters
    return Settings().replace(
        hosting={
            "layer": LAYER,
            "hidden_dim": pixels,
            "optimizer": "sgd",
            "momentum": 0.9,
            "learning_rate": chosen["learning_rate"],
            # Down to nothing: else how good the weights are in the end is a matter of chance.
            "schedule": "linear",
            "total_steps": chosen["rounds"] * max(1, chosen["samples"] // chosen["batch"]),
            "seed": sim.rng_for("weights").getrandbits(31),
            "threads": 1,
        },
        rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
        rounds={
            "mode": chosen["mode"],
            "aggregator": chosen["aggregator"],
            "samples": chosen["samples"],
            "rounds": chosen["rounds"],
            "patience": chosen["patience"],
            "min_hold_out": min(chosen["held_out"], 100),
            "start_peers": honest - 1,
        },
    )


# --- the report ---------------------------------------------------------------------------------


def _report_loss(report: Report, calm: Outcome, disturbed: Outcome, name: str, beside: str) -> None:
    report.figure(
        name,
        calm.accuracy - disturbed.accuracy,
        "points",
        goal=at_most(_WITHIN),
        detail=f"{disturbed.accuracy:.2f} % instead of {calm.accuracy:.2f} %, mean of the honest"
        f" participants on images that decide nothing, {beside}",
    )
    report.figure(
        "rounds alike",
        _alike(calm, disturbed),
        "rounds",
        detail="from the first on, in which the participants had the same scores, undisturbed or"
        " not; what comes after the first difference is chance as well",
    )
    report.figure(
        "rounds took",
        disturbed.seconds / max(1, len(disturbed.scores)),
        "s",
        detail=f"of which {disturbed.waited:.0f} % were waiting for others; undisturbed"
        f" {calm.seconds / max(1, len(calm.scores)):.3g} s",
    )


def _alike(one: Outcome, other: Outcome) -> int:
    """Count the rounds until the first one in which two swarms' scores differ."""
    numbers = sorted(one.scores.keys() & other.scores.keys())
    for count, number in enumerate(numbers):
        if sorted(one.scores[number]) != sorted(other.scores[number]):
            return count
    return len(numbers)


def _report_accuracies(report: Report, outcomes: Sequence[Outcome]) -> None:
    for each in outcomes:
        report.figure(f"accuracy: {each.name}", each.accuracy, "%")
        report.series(
            each.name,
            sorted(each.scores),
            [statistics.fmean(each.scores[number]) for number in sorted(each.scores)],
            x_label="round",
            y_label="score",
            y_unit="%",
        )
    report.plot(
        "scores over rounds",
        [each.name for each in outcomes],
        caption="Mean over the honest participants, each on its own hold-out, at a round's end.",
    )
    report.table(
        "accuracy in the end",
        ["swarm", Axis("mean", "%"), Axis("lowest", "%"), Axis("highest", "%"), "participants"],
        [
            (
                each.name,
                each.accuracy,
                min(each.accuracies),
                max(each.accuracies),
                len(each.accuracies),
            )
            for each in outcomes
        ],
        caption="Of images that nobody has trained on or chosen by.",
    )
    report.note(
        "Index, gossip, weights, experts and rounds are the node's own code on a virtual network"
        " and clock. Weights are really trained, fetched and scored; computing takes a modelled"
        " duration."
    )


def _told(verdicts: Counter[Verdict]) -> str:
    return ", ".join(f"{verdicts[each]} {each}" for each in Verdict if verdicts[each]) or "none"
