"""Rounds over the real stack, TCP, Noise and Yamux on loopback, and among real processes."""

import contextlib
import random

import pytest
import torch
import trio
from multiaddr import Multiaddr

from cli.bench.averaging import Plan, run_averaging
from p2pnode.config import AveragingSettings, NetworkSettings, RpcSettings
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.swarm.averaging.group import Group, Member
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.keys import PrivateKey

pytestmark = pytest.mark.real

RUN = Membership.open("test")
COUNT = 3


@contextlib.asynccontextmanager
async def peers():
    """Hosts that reduce, and a group of them."""
    hosts = [
        NetworkHost(
            PrivateKey.from_seed(bytes([number + 1]) * 32),
            transports=[TcpTransport()],
            settings=NetworkSettings(),
            rng=random.Random(number),
        )
        for number in range(COUNT)
    ]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for host in hosts:
                await nursery.start(host.run)
                addresses = await host.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
                for other in hosts:
                    if other is not host:
                        other.add_addresses(host.peer_id, addresses, 3600.0)
            reducers = [
                AllReduce(
                    host,
                    Access(host, {"test": RUN}),
                    Authority({"test": RUN}, 8),
                    AveragingSettings(),
                    budget=Budget(RpcSettings()),
                    transcoder=Transcoder(RpcSettings()),
                )
                for host in hosts
            ]
            yield reducers, tuple(Member(peer_id=host.peer_id) for host in hosts)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("codec", ["none", "float16", "blockwise-int8"])
async def test_large_tensors_are_averaged_alike_at_all_members(codec):
    tensors = [[torch.randn(1_500_000), torch.randn(7)] for _ in range(COUNT)]
    found = [None] * COUNT
    async with peers() as (reducers, members):
        group = Group(run_id=RUN.run_id, round_id=b"1", members=members, codec=codec)

        async def reduce(number):
            found[number] = await reducers[number].reduce(group, tensors[number])

        async with trio.open_nursery() as nursery:
            for number in range(COUNT):
                nursery.start_soon(reduce, number)
    tolerance = {"none": 1e-6, "float16": 5e-3, "blockwise-int8": 5e-2}[codec]
    for place in range(2):
        wanted = sum(given[place] for given in tensors) / COUNT
        torch.testing.assert_close(found[0].tensors[place], wanted, rtol=0, atol=tolerance)
        assert all(torch.equal(each.tensors[place], found[0].tensors[place]) for each in found)


def test_real_processes_average():
    plan = Plan(rounds=1, peers=2, parameters=100_000, hivemind=None)
    figures = run_averaging(plan, tell=lambda _text: None)  # it checks the results
    assert [figure.name for figure in figures] == [
        "averaging_none",
        "averaging_work_none",
        "averaging_float16",
        "averaging_work_float16",
    ]
