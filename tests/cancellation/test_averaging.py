"""A round of averaging, cancelled at each await point in turn."""

import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import AveragingSettings, RpcSettings
from p2pnode.errors import AveragingError
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.swarm.averaging.group import Group, Member
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork

RUN = Membership.open("test")
RPC = RpcSettings(codec_inline_bytes=2**40)
# So short that what is left of a cancelled round ends before anybody asks.
SETTINGS = AveragingSettings(round_timeout=20.0, arrival_timeout=3.0, patience=2.0)


async def test_a_cancelled_round_leaves_nothing(moment, leftovers, autojump_clock):
    bind_wall_time_to_trio(1.7e9)
    async with full_hosts(VirtualNetwork(latency=Drawn(lambda *_: 0.01))) as world:
        hosts = await world.add_hosts(2)
        budgets = [Budget(RPC) for _ in hosts]
        one, other = (
            AllReduce(
                host,
                Access(host, {"test": RUN}),
                Authority({"test": RUN}, 8),
                SETTINGS,
                budget=budget,
                transcoder=Transcoder(RPC),
            )
            for host, budget in zip(hosts, budgets, strict=True)
        )
        members = tuple(Member(peer_id=host.peer_id) for host in hosts)
        given = torch.arange(3000.0)
        number = 0
        ended = trio.Event()
        ended.set()
        outcomes = []

        async def take_part(group, ended):
            try:
                await other.reduce(group, [3 * given])
                outcomes.append("result")
            except AveragingError:
                outcomes.append("none")
            ended.set()

        async def scenario():
            nonlocal number, ended
            number += 1
            ended = trio.Event()
            group = Group(run_id=RUN.run_id, round_id=b"%d" % number, members=members)
            world.nursery.start_soon(take_part, group, ended)
            reduced = await one.reduce(group, [given])
            assert torch.equal(reduced.tensors[0], 2 * given)

        left = await leftovers(*hosts)

        async def settled():
            await ended.wait()
            growth = await left()
            held = sum(each.bytes_in_flight + each.calls_in_flight for each in budgets)
            return growth | ({"budget": held} if held else {})

        assert await walk(scenario, settled, moment) > 10
        assert torch.equal(given, torch.arange(3000.0))
        assert set(outcomes) == {"result", "none"}
