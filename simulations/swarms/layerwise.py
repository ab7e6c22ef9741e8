"""The scenario `layer-parallel`: a swarm for each layer against one process, at equal accuracy.

Participants are the node's own code: index, calls, gossip, weights, averaging, rounds and the
learner. Networks are really trained. What is modelled is how long a device computes: each layer
tells, by the rows and the kind of each pass, how long that took where it was measured.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import trio
from torch import nn

from p2pnode.config import Settings
from p2pnode.errors import ConfigError
from p2pnode.experts.backend import build_backend
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.swarm.rounds.events import RoundEnded, RoundsEnded
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.layerwise.data import Examples, Part
from p2pnode.trainer.layerwise.learner import SLACK, LayerwiseLearner
from p2pnode.trainer.layerwise.network import SwarmNetwork
from p2pnode.trainer.layerwise.tally import SamplesTrained
from p2pnode.wire.uids import Uid
from simulations.learning.determinism import one_thread
from simulations.node import Node
from simulations.report import Axis, Report
from simulations.simulation import Simulation
from simulations.swarms.alone import Beside, accuracy, images, train_at_best
from simulations.swarms.metered import METER, MeteredDevice, hosting_of
from simulations.swarms.participant import RUN, Participant
from simulations.world import BOOTSTRAP_PEERS

_LAYERS: Final = 2
_GOAL: Final = 4.0
_FOUND_WITHIN: Final = 60.0  # seconds for all layers to be seen in the DHT
_LOOK_EVERY: Final = 0.2  # seconds
_SETTLED: Final = 5.0  # seconds for gossip to find its ways
_BATCHES: Final = (1, 4)  # times the micro-batch, of which one process may take the best


# --- the swarms -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Together:
    """What came of the swarms in one mode."""

    mode: str
    began: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)  # the newest, by node
    means: list[tuple[float, float]] = field(default_factory=list)
    rounds: list[RoundEnded] = field(default_factory=list)
    trained: list[SamplesTrained] = field(default_factory=list)
    ended: dict[str, RoundsEnded] = field(default_factory=dict)
    test: float = 0.0

    def receive(self, name: str, score: float, now: float, count: int) -> None:
        """A participant's weights score this."""
        self.scores[name] = score
        if len(self.scores) == count:
            self.means.append((now - self.began, statistics.fmean(self.scores.values())))

    def seconds_to(self, threshold: float) -> float | None:
        """Return when the mean of the participants' scores was there, if it was."""
        return next((at for at, mean in self.means if mean >= threshold), None)


@dataclass(slots=True, eq=False)
class _Learner:
    """One participant: what it hosts, and what it learns with."""

    participant: Participant
    network: SwarmNetwork
    learner: LayerwiseLearner


class _Swarms:
    """The participants of one mode, on nodes of their own."""

    def __init__(self, sim: Simulation, mode: str, parts: Sequence[Part], directory: Path) -> None:
        self.outcome = Together(mode)
        self._sim = sim
        self._parts = parts
        self._directory = directory
        self._names: set[str] = set()
        self._changed = trio.Event()
        sim.world.on(RoundEnded, self._receive_round)
        sim.world.on(RoundsEnded, self._receive_end)
        sim.world.on(SamplesTrained, self._receive_trained)

    async def run(self, test: Examples) -> Together:
        """Train until each participant has found the threshold reached, or all rounds are over."""
        sim, outcome = self._sim, self.outcome
        numbers = _positions(sim)
        nodes = []
        for number in numbers:
            settings = _settings(sim, outcome.mode, number, numbers.count(number))
            nodes.append(await sim.world.add_node(settings=settings))
        self._names = {node.name for node in nodes}
        learners = [
            await self._host(node, number, part)
            for node, number, part in zip(nodes, numbers, self._parts, strict=True)
        ]
        with trio.fail_after(_FOUND_WITHIN):
            for each in learners:
                await self._wait_complete(each, numbers)
        await trio.sleep(_SETTLED)
        outcome.began = sim.now
        for each in learners:
            each.participant.train(each.learner)
        while len(outcome.ended) < len(learners):
            self._changed = trio.Event()
            await self._changed.wait()
        outcome.test = await self._judge(learners, test)
        for node in nodes:
            await sim.world.leave(node)
        return outcome

    async def _wait_complete(self, each: _Learner, numbers: Sequence[int]) -> None:
        """Wait until a participant knows all others that it has to do with."""
        mates = numbers.count(each.network.number) - 1
        await each.participant.swarm.wait_until(
            lambda: len(each.participant.swarm.members) == mates
        )
        while await each.network.missing():  # noqa: ASYNC110  # the DHT tells nobody of news
            await trio.sleep(_LOOK_EVERY)

    async def _host(self, node: Node, number: int, part: Part) -> _Learner:
        settings = node.settings
        uid = Uid(RUN.run_id, f"{self.outcome.mode}.{number}")
        states = self._directory / f"{self.outcome.mode}-{node.number}"
        participant = Participant(
            node, uid, states, MeteredDevice(self._sim.parameters["compute.call"] / 1000)
        )
        authority = Authority({RUN.name: RUN}, settings.rpc.token_cache_size)
        TensorServer(node.host, settings.rpc, participant.experts, authority)
        await participant.start()
        caller = ExpertCaller(
            node.host,
            node.directory,
            RUN,
            settings=settings,
            rng=node.rng,
        )
        network = SwarmNetwork(
            caller,
            participant.experts,
            uid,
            peer_id=node.peer_id,
            layers=_LAYERS,
            settings=settings.layerwise,
        )
        learner = LayerwiseLearner(
            network,
            participant.experts,
            part,
            hosting=settings.hosting,
            settings=settings.layerwise,
            events=node.host.events,
            seed=self._sim.rng_for(f"{node.name}/order").getrandbits(63),
        )
        return _Learner(participant, network, learner)

    async def _judge(self, learners: Sequence[_Learner], test: Examples) -> float:
        """Return the mean accuracy of the first layer's hosts, with one of the last layer's."""
        states = [
            (each.network.number, await each.participant.experts.snapshot(each.participant.uid))
            for each in learners
        ]
        hosting = hosting_of(self._sim, float(self._sim.parameters["learning_rate"]))
        found = []
        (last, *_) = [state for number, state in states if number == _LAYERS - 1]
        for first in [state for number, state in states if number == 0]:
            layers = []
            for number, state in enumerate((first, last)):
                backend = build_backend(Uid("test", f"layers.{number}"), hosting[number])
                backend.load(state.state)
                layers.append(backend.module)
            found.append(accuracy(nn.Sequential(*layers), test))
        return statistics.fmean(found)

    def _receive_round(self, node: Node, event: RoundEnded) -> None:
        if node.name in self._names:
            self.outcome.rounds.append(event)
            self._receive_score(node, event.score, event.round)

    def _receive_end(self, node: Node, event: RoundsEnded) -> None:
        if node.name in self._names:
            self.outcome.ended[node.name] = event
            self._receive_score(node, event.score, event.round)
            self._changed.set()

    def _receive_score(self, node: Node, score: float, number: int) -> None:
        self.outcome.receive(node.name, score, self._sim.now, len(self._names))
        self._sim.log.record("score", node=node.name, round=number, score=round(score, 6))

    def _receive_trained(self, node: Node, event: SamplesTrained) -> None:
        if node.name in self._names:
            self.outcome.trained.append(event)


# --- the story ------------------------------------------------------------------------------------


async def compare(sim: Simulation) -> None:
    """Train in one process, and by swarms in each mode.

    Raises:
        ConfigError: a layer has no peer.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    if not 1 <= chosen["entry_peers"] < chosen["peers"]:
        raise ConfigError(
            f"entry_peers, {chosen['entry_peers']}, must leave a peer of the {chosen['peers']} to"
            " the last layer"
        )
    METER.begin(chosen)
    both, test = images(sim)
    parts = [
        Part(both.train.take(torch.arange(number, len(both.train), chosen["peers"])), both.held_out)
        for number in range(chosen["peers"])
    ]
    with one_thread(), tempfile.TemporaryDirectory() as directory:
        sim.begin("one process")
        batches = [times * chosen["batch"] for times in _BATCHES]
        beside = train_at_best(sim, both, test, batches)
        sim.world.settings = _settings(sim, "best", 0, 1)
        sim.begin("bootstrap peers join")
        await sim.world.add_nodes(BOOTSTRAP_PEERS)  # they stay while the modes' own nodes change
        found = []
        for mode in chosen["modes"]:
            sim.begin(f"swarms: {mode}")
            found.append(await _Swarms(sim, mode, parts, Path(directory)).run(test))
    _report(sim, beside, found)


def _positions(sim: Simulation) -> list[int]:
    """Return the layer of each participant."""
    first = sim.parameters["entry_peers"]
    return [0] * first + [1] * (sim.parameters["peers"] - first)


def _settings(sim: Simulation, mode: str, number: int, mates: int) -> Settings:
    chosen = sim.parameters
    hosting = hosting_of(sim, chosen["learning_rate"])[number]
    settings = Settings().replace(
        rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
        gossip={"announcement_rate": 50.0, "announcement_burst": 100},
        rounds={
            "mode": mode,
            "threshold": chosen["threshold"],
            "rounds": chosen["rounds"],
            "samples": chosen["samples"],
            "codec": chosen["codec"],
            "start_peers": max(1, mates - 1),
            "outer_rate": chosen["outer_rate"],
            "outer_momentum": chosen["outer_momentum"],
            "patience": chosen["patience"],
            "slack": SLACK,
        },
        averaging={"arrival_timeout": chosen["patience"], "patience": chosen["patience"]},
        layerwise={
            "batch": chosen["batch"],
            "in_flight": chosen["in_flight"],
            "max_staleness": chosen["max_staleness"],
            "codec": chosen["codec"],
        },
    )
    return settings.replace(
        hosting={
            name: getattr(hosting, name)
            for name in (
                "layer",
                "hidden_dim",
                "optimizer",
                "learning_rate",
                "seed",
                "threads",
                "max_step_rows",
            )
        }
    )


def _report(sim: Simulation, beside: Beside, found: Sequence[Together]) -> None:
    report, threshold = sim.report, sim.parameters["threshold"]
    rows = []
    for each in found:
        seconds = each.seconds_to(threshold)
        updates = sum(event.updates for event in each.trained)
        stale = sum(event.stale for event in each.trained)
        rows.append(
            (
                each.mode,
                seconds,
                *beside.speed_ups(seconds),
                max((event.round for event in each.rounds), default=0),
                100 * each.means[-1][1] if each.means else None,
                100 * each.test,
                sum(event.staleness * event.updates for event in each.trained) / max(1, updates),
                max((event.max_staleness for event in each.trained), default=0),
                stale,
                each.means[-1][0] if each.means else None,
                sum(event.samples for event in each.trained),
            )
        )
    alone = beside.same
    beside.report_speed_ups(
        report, [row[1] for row in rows], goal=_GOAL, ways="mode", batch="micro-batch"
    )
    report.figure(
        "examples a second",
        max((row[-1] / row[-2] for row in rows if row[-2]), default=None),
        "",
        detail="that the swarms of the fastest mode trained on, scoring and rounds included; one"
        f" process has {len(alone.looks) * sim.parameters['samples'] / alone.looks[-1][0]:.1f}",
    )
    report.table(
        "the modes",
        [
            "mode",
            Axis("time", "s"),
            Axis("speed-up", "x"),
            Axis("against its best", "x"),
            "rounds",
            Axis("hold-out", "%"),
            Axis("test", "%"),
            "mean staleness",
            "most",
            "samples dropped as stale",
            Axis("all", "s"),
            "samples",
        ],
        rows,
        caption="Until the mean of the participants' scores is at the threshold. Staleness counts"
        " the steps that a layer took between a micro-batch's forward and backward pass.",
    )
    beside.report_table(report, "micro-batch")
    _plot(report, beside, found)
    report.note(
        "Nodes, calls, gossip, weights, averaging and rounds are the product's own code on a"
        " virtual network and clock. Weights are really trained and scored. How long a device"
        " computes is modelled, by the compute parameters; hashing and copying weights takes no"
        " time. One process does the same work on the same images from first weights drawn alike,"
        " and scores after as many examples as a participant."
    )


def _plot(report: Report, beside: Beside, found: Sequence[Together]) -> None:
    beside.report_looks(
        report,
        {each.mode: each.means for each in found},
        f"Of the swarms the mean over participants. All stop at {100 * beside.threshold:.0f} %.",
    )
    for each in found:
        numbers = sorted({event.round for event in each.rounds})
        report.series(
            f"{each.mode}, by round",
            numbers,
            [
                100 * statistics.fmean([e.score for e in each.rounds if e.round == number])
                for number in numbers
            ],
            x_label="round",
            y_label="mean score",
            y_unit="%",
            label=each.mode,
        )
    report.plot("scores over rounds", [f"{each.mode}, by round" for each in found])
