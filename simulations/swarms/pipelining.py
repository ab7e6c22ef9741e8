"""The scenario `pipelining`: what micro-batches gain, beside what theory allows.

Hosts, calls, queues and the trainer's chain are the node's own code, and the blocks really learn;
how long a device computes is modelled. With `s` stages that take equally long and `m` micro-batches
a pass takes `(s + m - 1) / m` times as long as one stage for the whole batch, and not `s` times:
the pipeline has to fill and to empty. So micro-batches gain the factor `s * m / (s + m - 1)`, as
long as no stage waits for the network meanwhile.

Source of the bound: Huang et al. 2019, "GPipe: Efficient Training of Giant Neural Networks using
Pipeline Parallelism", section 2.3 (the bubble).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import trio
from torch import nn

from p2pnode.config import Settings
from p2pnode.experts.layers import register_layer
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sources import CallPolicy
from p2pnode.wire.uids import Uid
from simulations.learning.determinism import one_thread
from simulations.node import Node
from simulations.report import Axis, at_least
from simulations.simulation import Simulation
from simulations.swarms.metered import METER, Cost, MeteredDevice
from simulations.world import BOOTSTRAP_PEERS

_RUN = Membership.open("pipeline")
_HIDDEN = 16
_FOUND_WITHIN = 60.0  # seconds for all blocks to be seen in the DHT
_PATIENCE = 600.0  # seconds for a pass; nobody fails here
_GOAL = 90.0


@register_layer("metered-block")
class MeteredBlock(nn.Linear):
    """One stage, which tells what it costs."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__(hidden_dim, hidden_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, hidden_dim) to the same shape."""
        METER.receive(self, len(x))
        return super().forward(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One batch, forward and back; times in virtual seconds."""

    stages: int
    round_trip: float
    micro: int
    forward: float
    backward: float
    steps: int  # that each block took

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.forward + self.backward

    @property
    def theory(self) -> float:
        """The factor that micro-batches can gain."""
        return self.stages * self.micro / (self.stages + self.micro - 1)


class _Pipeline:
    """Stages on a machine each, and a trainer on another one."""

    def __init__(self, sim: Simulation, stages: int, round_trip: float) -> None:
        self._sim = sim
        self._stages = stages
        self._round_trip = round_trip
        self._hosts: list[ExpertHost] = []
        self._policy = CallPolicy(timeout=_PATIENCE)

    async def run(self, micro: Sequence[int]) -> list[Trial]:
        """Measure a batch in so many micro-batches, one way after the other."""
        sim = self._sim
        nodes = [await sim.world.add_node() for _ in range(self._stages + 1)]
        for number, node in enumerate(nodes[:-1]):
            await self._host(node, Uid(_RUN.run_id, f"blocks.{number}"))
        chain = await self._chain(nodes[-1])
        generator = torch.Generator().manual_seed(1)
        batch = torch.randn(sim.parameters["rows"], _HIDDEN, generator=generator)
        found = []
        for each in micro:
            await self._measure(chain, batch, each)  # now it is known how fast all hosts are
            found.append(await self._measure(chain, batch, each))
        for node in nodes:
            await sim.world.leave(node)
        return found

    async def _host(self, node: Node, uid: Uid) -> None:
        settings = node.settings
        experts = ExpertHost(
            settings.hosting,
            None,
            node.host.events,
            rpc=settings.rpc,
            compute=MeteredDevice(self._sim.parameters["call"] / 1000),
            disk=compute_inline,
        )
        TensorServer(node.host, settings.rpc, experts, Authority({_RUN.name: _RUN}, 16))
        node.start_soon(experts.run)
        await experts.add([uid])
        node.announce([uid])
        self._hosts.append(experts)

    async def _chain(self, node: Node) -> Chain:
        caller = ExpertCaller(node.host, node.directory, _RUN, settings=node.settings, rng=node.rng)
        with trio.fail_after(_FOUND_WITHIN):
            for number in range(self._stages):
                while not await caller.book.candidates(Uid(_RUN.run_id, f"blocks.{number}")):  # noqa: ASYNC110  # the DHT tells nobody of news
                    await trio.sleep(1)
        return Chain(caller.client, "blocks", 0, self._stages, settings=node.settings)

    async def _measure(self, chain: Chain, batch: torch.Tensor, micro: int) -> Trial:
        parts = batch.tensor_split(micro)
        began, steps = self._sim.now, self._steps()
        found = await chain.forward(parts, self._policy, True)
        turned = self._sim.now
        await chain.backward(
            [passage for _, passage in found],
            parts,
            [torch.ones_like(outputs) for outputs, _ in found],
            self._policy,
        )
        trial = Trial(
            stages=self._stages,
            round_trip=self._round_trip,
            micro=micro,
            forward=turned - began,
            backward=self._sim.now - turned,
            steps=(self._steps() - steps) // self._stages,
        )
        self._sim.log.record("batch", stages=self._stages, micro=micro, seconds=trial.seconds)
        return trial

    def _steps(self) -> int:
        return sum(each.steps for host in self._hosts for each in host.status())


async def measure(sim: Simulation) -> None:
    """Measure all ways, and report them."""
    chosen = sim.parameters
    METER.price(
        MeteredBlock,
        Cost(forward=0.0, forward_row=chosen["forward"], step=0.0, step_row=chosen["step"]),
    )
    sim.world.settings = Settings().replace(
        hosting={"layer": "metered-block", "hidden_dim": _HIDDEN, "threads": 1},
        rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
        sequential={"micro_batches_at_one_host": chosen["at_one_host"]},
    )
    found = []
    with one_thread():
        await sim.world.add_nodes(BOOTSTRAP_PEERS)
        for stages in chosen["stages"]:
            sim.begin(f"{stages} stages")
            pipeline = _Pipeline(sim, stages, 2 * chosen["network.delay"])
            found += await pipeline.run((1, *chosen["micro_batches"]))
    _report(sim, found)


def _report(sim: Simulation, found: Sequence[Trial]) -> None:
    whole = {each.stages: each.seconds for each in found if each.micro == 1}
    rows = []
    for each in found:
        gain = whole[each.stages] / each.seconds
        rows.append(
            (
                each.stages,
                each.micro,
                each.forward,
                each.backward,
                gain,
                each.theory,
                100 * gain / each.theory,
                each.steps,
            )
        )
    sim.report.figure(
        "gain over theory",
        min(row[6] for row in rows),
        "%",
        goal=at_least(_GOAL),
        detail="of stages * micro-batches / (stages + micro-batches - 1), where least is reached",
    )
    sim.report.table(
        "pipelines",
        [
            "stages",
            "micro-batches",
            Axis("forward", "s"),
            Axis("backward", "s"),
            Axis("gain", "x"),
            Axis("theory", "x"),
            Axis("of theory", "%"),
            "steps of each block",
        ],
        rows,
        caption="Virtual time. The gain is over the whole batch at once, round trips included.",
    )
