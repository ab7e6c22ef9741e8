"""Members of groups on a light world."""

import contextlib
import random
from contextlib import asynccontextmanager

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import AveragingSettings, RpcSettings
from p2pnode.errors import P2PNodeError
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.swarm.averaging.group import Group, Member
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork

RUN = Membership.open("test")
# What is computed at once, since virtual time does not wait for threads.
RPC = RpcSettings(codec_inline_bytes=2**40)


class Peer:
    """A host with `AllReduce`, and what it was given and got."""

    def __init__(self, host, settings, memberships, rpc):
        self.host = host
        self.budget = Budget(rpc)
        self.reducer = AllReduce(
            host,
            Access(host, memberships),
            Authority(memberships, 16),
            settings,
            budget=self.budget,
            transcoder=Transcoder(rpc),
        )

    @property
    def peer_id(self):
        return self.host.peer_id


class Peers:
    """A world of peers that know each other's addresses."""

    def __init__(self, world):
        self.world = world
        self.peers = []
        self.outcomes = {}

    async def add(self, count=1, memberships=None, rpc=RPC, **settings):
        for _ in range(count):
            host = await self.world.add_host()
            for peer in self.peers:
                host.add_addresses(peer.peer_id, peer.host.addresses, 1e6)
                peer.host.add_addresses(host.peer_id, host.addresses, 1e6)
            known = {"test": RUN} if memberships is None else memberships(host.peer_id)
            self.peers.append(Peer(host, AveragingSettings(**settings), known, rpc))
        return self.peers

    def group(self, *, bandwidths=None, round_id=b"1", run_id=RUN.run_id, **fields):
        bandwidths = bandwidths or [1.0] * len(self.peers)
        members = [
            Member(peer_id=peer.peer_id, bandwidth=bandwidth)
            for peer, bandwidth in zip(self.peers, bandwidths, strict=True)
        ]
        return Group(run_id=run_id, round_id=round_id, members=tuple(members), **fields)

    async def reduce(self, group, tensors, *, weights=None, only=None, **arguments):
        """Let all peers reduce; returns by number what they got, or the error they met."""
        outcomes = self.outcomes = {}

        async def one(number):
            weight = weights[number] if weights else 1.0
            peer = self.peers[number]
            try:
                outcomes[number] = await peer.reducer.reduce(
                    group, tensors[number], weight=weight, **arguments
                )
            except P2PNodeError as error:
                outcomes[number] = error

        async with trio.open_nursery() as nursery:
            for number in range(len(self.peers)) if only is None else only:
                nursery.start_soon(one, number)
        return outcomes

    async def reduce_in_vain(self, group, tensors, number):
        """Let a peer reduce that will be lost; whatever comes of it."""
        with contextlib.suppress(P2PNodeError):
            await self.peers[number].reducer.reduce(group, tensors)

    def held(self):
        """What is left behind in budgets."""
        return [(peer.budget.bytes_in_flight, peer.budget.calls_in_flight) for peer in self.peers]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def peers():
    """A function that opens a world of `Peers` as an async context manager."""

    @asynccontextmanager
    async def opened(delay=None, full=False):
        bind_wall_time_to_trio(1.8e9)
        rng = random.Random(0)
        latency = None if delay is None else Drawn(lambda _source, _target: rng.uniform(*delay))
        worlds = full_hosts if full else light_hosts
        async with worlds(VirtualNetwork(latency=latency)) as world:
            yield Peers(world)

    return opened


@pytest.fixture
def draw():
    """A function that draws tensors for a number of peers: a large one, and some small ones."""

    def drawn(count, *, elements=5000, seed=0, dtype=torch.float32):
        rng = torch.Generator().manual_seed(seed)
        shapes = [(elements,), (3, 5), (), (7,)]
        return [
            [torch.randn(shape, generator=rng).to(dtype) for shape in shapes] for _ in range(count)
        ]

    return drawn
