"""The scenario `layer-split`: each batch split by rows over the layers' swarms, beside one process.

Index, calls, steps and sums are the node's own code. A trainer calls the layers one after the
other, as a network of `SplitLayer`s does, but on the simulation's own loop instead of in a thread.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import trio
from torch.nn import functional

from p2pnode.config import HostingSettings, Settings
from p2pnode.errors import ConfigError, RemoteError
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.rpc.server import TensorServer
from p2pnode.swarm.splitting.service import SplitServer
from p2pnode.swarm.splitting.weights import TransferredWeights
from p2pnode.testing.network import GRADES
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.layerwise.data import Batches, Examples, Part
from p2pnode.trainer.sources import CallPolicy
from p2pnode.trainer.splitting.caller import SplitCaller
from p2pnode.wire.uids import Uid
from simulations.learning.determinism import one_thread
from simulations.node import Node
from simulations.report import Axis
from simulations.simulation import Simulation
from simulations.swarms.alone import Alone, Beside, images, train_at_best
from simulations.swarms.metered import METER, MeteredDevice, hosting_of
from simulations.swarms.participant import RUN, Participant
from simulations.world import BOOTSTRAP_PEERS

_NAMES: Final = ("layers.0", "layers.1")  # as those of one process, or first weights would differ
_GOAL: Final = 4.0
_FOUND_WITHIN: Final = 60.0  # seconds for all peers to be seen in the DHT
_LOOK_EVERY: Final = 1.0  # seconds
_PATIENCE: Final = 600.0  # seconds for a call; nobody fails here
_BATCHES: Final = (0.25, 1, 4)  # times the batch, of which one process may take the best


@dataclass(slots=True)
class Split:
    """What came of splitting each batch in one way."""

    hosting: str
    link: str
    looks: list[tuple[float, float]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)  # by the number of the batch
    lost: int = 0  # batches whose step was not taken
    sent: int = 0  # bytes, of all machines

    def seconds_to(self, threshold: float) -> float | None:
        """Return when the hold-out was there, if it was."""
        return next((at for at, score in self.looks if score >= threshold), None)

    def difference(self, alone: Alone) -> float | None:
        """Return the largest difference of a batch's loss from that in one process."""
        both = [
            (self.losses[at], loss) for at, loss in enumerate(alone.losses) if at in self.losses
        ]
        return max((abs(one - other) for one, other in both), default=None)


class _Network:
    """The layers as their swarms compute them, and the node that calls them."""

    def __init__(self, sim: Simulation, node: Node) -> None:
        caller = ExpertCaller(node.host, node.directory, RUN, settings=node.settings, rng=node.rng)
        self._book = caller.book
        self._caller = SplitCaller(caller.client, settings=node.settings)
        node.start_soon(self._caller.run)
        self._policy = CallPolicy(timeout=_PATIENCE, codec=find_codec(sim.parameters["codec"]))

    async def wait_for(self, peers: int) -> None:
        """Wait until so many peers of each layer are found."""
        for name in _NAMES:
            uid = Uid(RUN.run_id, name)
            while len(await self._book.candidates(uid)) < peers:  # noqa: ASYNC110  # the DHT tells nobody of news
                await trio.sleep(_LOOK_EVERY)

    async def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the scores of some images."""
        for name in _NAMES:
            inputs = (await self._caller.forward(name, [inputs], self._policy)).tensors[0]
        return inputs

    async def step(self, examples: Examples) -> float:
        """Train on a batch; returns its loss before.

        Raises:
            RemoteError: a layer has not taken its step.
        """
        inputs, answers = [examples.inputs], []
        for name in _NAMES:
            answers.append(await self._caller.forward(name, [inputs[-1]], self._policy))
            inputs.append(answers[-1].tensors[0])
        outputs = inputs.pop().requires_grad_()
        loss = functional.cross_entropy(outputs, examples.targets)
        (gradient,) = torch.autograd.grad(loss, outputs)
        for name, tensor, answer in zip(
            reversed(_NAMES), reversed(inputs), reversed(answers), strict=True
        ):
            found = await self._caller.backward(name, [tensor], [gradient], self._policy, answer.by)
            (gradient,) = found.tensors
        return loss.item()


class _Swarms:
    """The peers of one way to split, each on a machine of its own, and a trainer on another one."""

    def __init__(self, sim: Simulation, hosting: str, link: str, directory: Path) -> None:
        self.outcome = Split(hosting, link)
        self._sim = sim
        self._directory = directory

    async def run(self, part: Part) -> Split:
        """Train until the threshold is reached, or all looks at the hold-out are done."""
        sim, peers = self._sim, self._sim.parameters["peers"]
        hosted = [[0, 1]] * peers
        if self.outcome.hosting == "one":
            hosted = [[0]] * (peers // 2) + [[1]] * (peers - peers // 2)
        layers = hosting_of(sim, sim.parameters["learning_rate"])
        nodes = []
        for numbers in hosted:
            nodes.append(await self._add_node(layers[numbers[0]]))
            await self._host(
                nodes[-1], {Uid(RUN.run_id, _NAMES[each]): layers[each] for each in numbers}
            )
        nodes.append(await self._add_node(layers[0]))  # which trains
        network = _Network(sim, nodes[-1])
        with trio.fail_after(_FOUND_WITHIN):
            await network.wait_for(min(sum(at in each for each in hosted) for at in range(2)))
        before = sum(node.machine.uplink.sent for node in nodes)
        await self._train(network, part)
        self.outcome.sent = sum(node.machine.uplink.sent for node in nodes) - before
        for node in nodes:
            await sim.world.leave(node)
        return self.outcome

    async def _train(self, network: _Network, part: Part) -> None:
        """Do what `train_alone` does, in the same order."""
        sim, chosen, outcome = self._sim, self._sim.parameters, self.outcome
        batches = Batches(part.train, sim.rng_for("alone").getrandbits(63))
        begun, began = 0, sim.now
        for _ in range(chosen["rounds"] * chosen["peers"]):
            waiting = []
            for _ in range(max(1, chosen["samples"] // chosen["batch"])):
                waiting.append((begun, batches.draw(chosen["batch"])))
                begun += 1
            waiting.reverse()
            async with trio.open_nursery() as nursery:
                for _ in range(chosen["in_flight"]):
                    nursery.start_soon(self._work, network, waiting)
            scores = await network.outputs(part.held_out.inputs)
            right = int((scores.argmax(dim=1) == part.held_out.targets).sum())
            score = right / len(part.held_out)
            outcome.looks.append((sim.now - began, score))
            sim.log.record("score", steps=begun - outcome.lost, score=round(score, 6))
            if score >= chosen["threshold"]:
                break

    async def _work(self, network: _Network, waiting: list[tuple[int, Examples]]) -> None:
        """Train on batches that wait, until there is none."""
        while waiting:
            number, examples = waiting.pop()
            try:
                self.outcome.losses[number] = await network.step(examples)
            except RemoteError as error:
                self.outcome.lost += 1
                self._sim.log.record("step-lost", number=number, why=type(error).__name__)

    async def _add_node(self, hosting: HostingSettings) -> Node:
        world = self._sim.world
        return await world.add_node(
            machine=world.network.add_machine(grade=GRADES[self.outcome.link]),
            settings=dataclasses.replace(world.settings, hosting=hosting),
        )

    async def _host(self, node: Node, layers: Mapping[Uid, HostingSettings]) -> None:
        settings = node.settings
        participant = Participant(
            node,
            next(iter(layers)),
            self._directory / node.name,
            MeteredDevice(self._sim.parameters["compute.call"] / 1000),
        )
        tensors = TensorServer(node.host, settings.rpc, participant.gate, participant.authority)
        server = SplitServer(
            node.host,
            settings.splitting,
            rpc=settings.rpc,
            handler=participant.gate,
            experts=participant.experts,
            authority=participant.authority,
            access=participant.access,
            tensors=tensors,
            reducer=participant.reducer,
            weights=TransferredWeights(participant.local),
            rng=node.rng,
        )
        node.start_soon(server.run)
        await participant.start(layers)


async def compare(sim: Simulation) -> None:
    """Train in one process, and by splitting each batch over swarms, in each way.

    Raises:
        ConfigError: there are fewer peers than layers.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    if "one" in chosen["hosting"] and chosen["peers"] < len(_NAMES):
        raise ConfigError("peers that host one layer each must be two or more; set peers above 1")
    METER.begin(chosen)
    part, test = images(sim)
    with one_thread(), tempfile.TemporaryDirectory() as directory:
        sim.begin("one process")
        batches = [max(1, int(times * chosen["batch"])) for times in _BATCHES]
        beside = train_at_best(sim, part, test, batches)
        sim.world.settings = Settings().replace(
            rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
            splitting={"codec": chosen["sums"]},
        )
        await sim.world.add_nodes(BOOTSTRAP_PEERS)
        found = []
        for hosting in chosen["hosting"]:
            for link in chosen["links"]:
                sim.begin(f"{hosting} hosted, {link}")
                found.append(await _Swarms(sim, hosting, link, Path(directory)).run(part))
    _report(sim, beside, found)


def _report(sim: Simulation, beside: Beside, found: Sequence[Split]) -> None:
    report, threshold = sim.report, sim.parameters["threshold"]
    rows = []
    for each in found:
        seconds, steps = each.seconds_to(threshold), len(each.losses)
        rows.append(
            (
                each.hosting,
                each.link,
                seconds,
                *beside.speed_ups(seconds),
                steps,
                each.lost,
                each.difference(beside.same),
                each.looks[-1][0] / max(1, steps) * 1000,
                each.sent / max(1, steps) / 1e6,
                100 * each.looks[-1][1],
            )
        )
    beside.report_speed_ups(report, [row[2] for row in rows], goal=_GOAL, ways="way", batch="batch")
    report.table(
        "the swarms",
        [
            "layers of a peer",
            "link",
            Axis("time", "s"),
            Axis("speed-up", "x"),
            Axis("against its best", "x"),
            "steps",
            "steps lost",
            "largest difference of a loss",
            Axis("each step, with its share of looks", "ms"),
            Axis("sent in each step", "MB"),
            Axis("hold-out", "%"),
        ],
        rows,
        caption="Losses are those of each batch before its step, beside one process; time is until"
        " the hold-out is at the threshold. Bytes are of all machines, idle chatter included.",
    )
    beside.report_table(report, "batch")
    beside.report_looks(
        report, {f"{each.hosting} hosted, {each.link}": each.looks for each in found}
    )
    report.note(
        "Nodes, calls, sums and steps are the product's own code on a virtual network and clock."
        " Weights are really trained. How long a device computes is modelled, by the compute"
        " parameters; adding up gradients, hashing and copying take no time beyond that of a call."
        " Peers compute forward twice, as they keep no activations; one process does not."
    )
