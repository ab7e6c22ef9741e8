"""The scenario `averaging-links`: what it gives to share parts out by what members can send.

Members are the product's own `AllReduce` on nodes whose links differ. A first round has equal
parts; the second one parts by the bandwidth that members have measured in the first, rounded as
they would announce it; a third one parts by what their links really carry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import trio

from p2pnode.config.units import MIB
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.swarm.averaging.group import Group, Member
from p2pnode.swarm.averaging.service import AllReduce, Reduced
from p2pnode.testing.network import GRADES
from simulations.conditions import draw_machine
from simulations.learning.determinism import one_thread
from simulations.node import Node
from simulations.report import Axis
from simulations.simulation import Simulation
from simulations.swarms.participant import RUN
from simulations.world import BOOTSTRAP_PEERS

_TIMEOUT: Final = 3000.0  # seconds for a round; nobody fails here
_PATIENCE: Final = 300.0  # likewise, for a part to go on that comes by a slow link


@dataclass(frozen=True, slots=True)
class _Reducing:
    """A member, and what its link carries up, in bytes a second."""

    node: Node
    reducer: AllReduce
    up: float


async def measure(sim: Simulation) -> None:
    """Average the same tensors with each way to share the parts out, one after the other."""
    chosen = sim.parameters
    sim.world.settings = sim.world.settings.replace(
        rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
        averaging={
            "round_timeout": 2 * _TIMEOUT,
            "patience": _PATIENCE,
            "least_measured": MIB // 64,
        },
    )
    sim.begin("peers join")
    await sim.world.add_nodes(BOOTSTRAP_PEERS)
    slow = round(chosen["peers"] * chosen["slow"] / 100)
    grades = [chosen["slow_link"]] * slow + [chosen["fast_link"]] * (chosen["peers"] - slow)
    members = [await _add(sim, grade) for grade in grades]
    for each in members:
        for other in members:
            if other is not each:
                await each.node.host.connect(other.node.peer_id, other.node.host.addresses)
    tensors = [torch.zeros(max(1, round(chosen["size"] * MIB / 4)))]
    found = []
    with one_thread():
        found.append(("equal", await _average(sim, members, [1.0] * len(members), tensors)))
        told = [float(each.reducer.upload) for each in members]
        found.append(("as measured", await _average(sim, members, told, tensors)))
        real = [each.up for each in members]
        found.append(("as the links are", await _average(sim, members, real, tensors)))
    rows = [(name, seconds, found[0][1] / seconds) for name, seconds in found]
    sim.report.figure(
        "gain of parts by measured bandwidth",
        rows[1][2],
        "x",
        detail="the time of a round with equal parts, over one by what members have measured",
    )
    sim.report.table(
        "rounds", ["parts", Axis("time", "s"), Axis("gain", "x")], rows, caption="Virtual time."
    )


async def _add(sim: Simulation, grade: str) -> _Reducing:
    drawn = draw_machine(sim.parameters, sim.rng_for("machines")) | {"grade": GRADES[grade]}
    node = await sim.world.add_node(machine=sim.world.network.add_machine(**drawn))
    memberships = {RUN.name: RUN}
    reducer = AllReduce(
        node.host,
        Access(node.host, memberships),
        Authority(memberships, node.settings.rpc.token_cache_size),
        node.settings.averaging,
        budget=Budget(node.settings.rpc),
        transcoder=Transcoder(node.settings.rpc),
    )
    return _Reducing(node, reducer, GRADES[grade].up)


async def _average(
    sim: Simulation,
    members: Sequence[_Reducing],
    bandwidths: Sequence[float],
    tensors: Sequence[torch.Tensor],
) -> float:
    """Return the seconds of a round in which members reduce in proportion to these bandwidths."""
    group = Group(
        run_id=RUN.run_id,
        round_id=str(sim.now).encode(),
        members=tuple(
            Member(peer_id=each.node.peer_id, bandwidth=bandwidth)
            for each, bandwidth in zip(members, bandwidths, strict=True)
        ),
    )
    began, last = sim.now, sim.now

    async def reduce(each: _Reducing) -> None:
        await each.reducer.reduce(
            group, tensors, timeout=_TIMEOUT, quorum=len(members), on_result=note
        )

    def note(_reduced: Reduced) -> None:
        nonlocal last
        last = sim.now

    async with trio.open_nursery() as nursery:
        for each in members:
            nursery.start_soon(reduce, each)
    return last - began
