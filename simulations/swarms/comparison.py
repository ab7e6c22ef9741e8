"""A swarm that is disturbed beside one that is not: `swarm-liars` and `swarm-churn`.

Both swarms have the same shares of the data, the same first weights and the same network, one after
the other. So what differs in the end comes of the disturbance, and of the order in which things
happened.
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
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


async def compare_with_liars(sim: Simulation) -> None:
    """Train without liars and with them.

    Raises:
        ConfigError: there are no honest participants.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    liars = round(chosen["peers"] * chosen["lies.share"] / 100)
    calm, disturbed = await _train_both(sim, chosen["peers"] - liars, "liars", liars=liars)
    _report_loss(sim.report, calm, disturbed, "liars")
    honest, lying = disturbed.verdicts
    report = sim.report
    report.figure(
        "lies adopted",
        disturbed.adopted_lies + lying[Verdict.ADOPTED],
        goal=at_most(0),
        detail=f"of {disturbed.lies} announced by {liars} liars; {lying.total()} were fetched and"
        f" scored, or known: {_told(lying)}",
    )
    report.figure(
        "honest claims taken for lies",
        honest[Verdict.FALSE] + honest[Verdict.UNFIT],
        goal=at_most(0),
        detail=f"of {honest.total()} that were checked: {_told(honest)}",
    )
    chances = liars * len(disturbed.accuracies) * chosen["rounds"]
    report.figure(
        "lies looked at",
        100 * lying.total() / chances if chances else None,
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
    calm, disturbed = await _train_both(sim, chosen["peers"], "churn", replaced=spread)
    _report_loss(sim.report, calm, disturbed, "churn")
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


async def _train_both(
    sim: Simulation, honest: int, name: str, *, liars: int = 0, replaced: Sequence[int] = ()
) -> tuple[Outcome, Outcome]:
    chosen = sim.parameters
    if honest < 2:
        raise ConfigError("a swarm needs at least two honest participants; set peers higher")
    data = load(chosen["data"])
    shares = shares_of(data.train, honest, chosen["held_out"])
    if len(data.train) // honest <= chosen["held_out"]:
        raise ConfigError("there are too few images for so many peers; set held_out or peers lower")
    sim.world.settings = _settings(sim, data.pixels, honest)
    sim.begin("bootstrap peers join")
    await sim.world.add_nodes(4)
    with one_thread(), tempfile.TemporaryDirectory() as directory:
        sim.begin("training undisturbed")
        calm = SwarmStory(sim, "calm", shares, data.held_out, Path(directory))
        before = await calm.run()
        sim.begin(f"training with {name}")
        disturbed = SwarmStory(sim, name, shares, data.held_out, Path(directory))
        return before, await disturbed.run(liars=liars, replaced=replaced)


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


def _report_loss(report: Report, calm: Outcome, disturbed: Outcome, name: str) -> None:
    report.figure(
        f"lost to {name}",
        calm.accuracy - disturbed.accuracy,
        "points",
        goal=at_most(_WITHIN),
        detail=f"{disturbed.accuracy:.2f} % instead of {calm.accuracy:.2f} %, mean of the honest"
        " participants on images that decide nothing",
    )
    report.figure(
        "rounds took",
        disturbed.seconds / max(1, len(disturbed.scores)),
        "s",
        detail=f"of which {disturbed.waited:.0f} % were waiting for others; undisturbed"
        f" {calm.seconds / max(1, len(calm.scores)):.3g} s",
    )
    for each in (calm, disturbed):
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
        [calm.name, disturbed.name],
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
            for each in (calm, disturbed)
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
