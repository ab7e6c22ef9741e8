"""Holders of states on a light world, and states to hold."""

import random
from contextlib import asynccontextmanager

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import HostingSettings, RpcSettings, WeightsSettings
from p2pnode.errors import UnknownExpertError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.states import ExpertState
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.security.tokens import Membership
from p2pnode.swarm.weights.client import WeightsClient
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.server import WeightsServer
from p2pnode.swarm.weights.store import StateStore
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
UID = Uid(RUN.run_id, "ffn.0")
WIDTH = 64


def checkpoint(steps=3, *, seed=0, numbers=5000, calls=2):
    """A state of some 40 KB with an optimiser's part, and the ids of some calls."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        "module.weight": torch.randn(numbers, generator=rng),
        "module.bias": torch.randn(7, generator=rng).to(torch.bfloat16),
        "optimizer.0.exp_avg": torch.randn(numbers, generator=rng),
        "optimizer.0.step": torch.tensor(float(steps)),
    }
    state = ExpertState(tensors=tensors, steps=steps, rows=64, layer="ffn", optimizer="adam")
    return Checkpoint(state=state, applied=[bytes([each] * 16) for each in range(calls)])


def same(one, other):
    return (
        one.applied == other.applied
        and (one.state.steps, one.state.rows, one.state.layer, one.state.optimizer)
        == (other.state.steps, other.state.rows, other.state.layer, other.state.optimizer)
        and one.state.tensors.keys() == other.state.tensors.keys()
        and all(
            torch.equal(each, other.state.tensors[name])
            and each.dtype == other.state.tensors[name].dtype
            for name, each in one.state.tensors.items()
        )
    )


class Experts:
    """Where a holder's states come from."""

    def __init__(self):
        self.states = {}
        self.snapshots = 0

    def steps(self, uid):
        if uid not in self.states:
            raise UnknownExpertError("not here")
        return self.states[uid].state.steps

    async def snapshot(self, uid, *, complete=True):
        await trio.lowlevel.checkpoint()
        self.snapshots += 1
        return self.states[uid]


class Holder:
    """A peer that gives states and takes them."""

    def __init__(self, host, directory, settings, memberships, *, rng, experts):
        self.host = host
        self.directory = directory
        self.experts = experts
        self.store = StateStore(directory, settings, disk=compute_inline)
        self.publisher = Publisher(self.experts, self.store)
        authority = Authority(memberships, 16)
        self.budget = Budget(RpcSettings())
        self.server = WeightsServer(
            host, settings, self.publisher, self.store, authority, budget=self.budget
        )
        access = Access(host, memberships)
        self.client = WeightsClient(
            access, settings, self.store, host.events, rng, budget=self.budget
        )

    @property
    def peer_id(self):
        return self.host.peer_id

    async def has(self, state, uid=UID):
        """Host an expert in this state; returns the name of its newest version."""
        self.experts.states[uid] = state
        return (await self.publisher.newest(uid, complete=True, exact=True)).name


class Member(Holder):
    """A holder that hosts a real expert, 64 wide, and exchanges its weights."""

    def __init__(self, host, directory, settings, memberships, *, rng, experts):
        experts = ExpertHost(experts, None, host.events, compute=compute_inline)
        super().__init__(host, directory, settings, memberships, rng=rng, experts=experts)
        local = LocalExperts(
            host=host,
            directory=None,
            announcer=None,
            experts=experts,
            gate=Gate(experts),
            publisher=self.publisher,
            store=self.store,
            client=self.client,
        )
        self.exchange = WeightsExchange(local)

    async def step(self, number=1):
        """Train the expert with one batch of rows; the number names the call."""
        rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(number))
        (gradient,) = await self.experts.backward(
            UID,
            [rows],
            [rows],
            caller=self.peer_id,
            call_id=number.to_bytes(16, "big"),
            deadline=trio.current_time() + 10,
        )
        return gradient

    async def tensors(self):
        """Return all that the expert has learnt, by names."""
        return (await self.experts.snapshot(UID)).state.tensors


class Holders:
    def __init__(self, world, nursery, tmp_path):
        self.world = world
        self._nursery = nursery
        self._tmp_path = tmp_path
        self._count = 0

    async def add(self, memberships=None, **settings):
        return await self._add(Holder, Experts(), memberships, settings)

    async def member(self, seed=0, weights=None, **hosting):
        """Add a member of a swarm; the seed is that of its fresh weights."""
        hosting = {"learning_rate": 1e-2, "hidden_dim": WIDTH, "threads": 1} | hosting
        settings = HostingSettings(seed=seed, **hosting)
        member = await self._add(Member, settings, None, weights or {})
        await member.experts.add([UID])
        await self._nursery.start(member.experts.run)
        return member

    async def _add(self, kind, experts, memberships, settings):
        self._count += 1
        host = await self.world.add_host()
        for known in self.world.hosts.values():
            host.add_addresses(known.peer_id, known.addresses, 1e6)
            known.add_addresses(host.peer_id, host.addresses, 1e6)
        settings = WeightsSettings(**({"chunk_bytes": 1024} | settings))
        memberships = {"test": RUN} if memberships is None else memberships(host.peer_id)
        return kind(
            host,
            self._tmp_path / str(self._count),
            settings,
            memberships,
            rng=random.Random(self._count),
            experts=experts,
        )


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def holders(tmp_path):
    """A function that opens a world of `Holders` as an async context manager."""

    @asynccontextmanager
    async def opened(delay=None):
        bind_wall_time_to_trio(1.8e9)
        rng = random.Random(0)
        latency = None if delay is None else Drawn(lambda _source, _target: rng.uniform(*delay))
        async with (
            light_hosts(VirtualNetwork(latency=latency)) as world,
            trio.open_nursery() as nursery,
        ):
            yield Holders(world, nursery, tmp_path)
            nursery.cancel_scope.cancel()

    return opened


@pytest.fixture
def make_checkpoint():
    return checkpoint


@pytest.fixture
def is_same():
    return same
