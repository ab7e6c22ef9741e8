"""Swarms that split their work, on a light world: real calls, sums and transfer of weights."""

import dataclasses
import random
from contextlib import asynccontextmanager

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import Settings
from p2pnode.errors import P2PNodeError
from p2pnode.events import Event
from p2pnode.experts.backend import build_backend
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.protocols.kad.service import KadDht
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.swarm.splitting.service import SplitServer
from p2pnode.swarm.splitting.weights import TransferredWeights
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.replication import Replication
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.sources import CallPolicy
from p2pnode.trainer.splitting.caller import SplitCaller
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
NAME = "layer.0"
UID = Uid(RUN.run_id, NAME)
POLICY = CallPolicy(timeout=60.0)
SETTINGS = Settings().replace(
    hosting={
        "hidden_dim": 8, "learning_rate": 1e-2, "threads": 1, "update_period": 1.0, "layer": "ffn",
    },
    swarm={"refresh_interval": 0.5},
    rpc={"codec_inline_bytes": 2**40},  # virtual time does not wait for threads
    splitting={"lease": 5.0, "question_timeout": 1.0},
)  # fmt: skip


def no_members(_token, _run_id, _peer_id, _now):
    raise AssertionError("the run is open")


class Peer:
    """One peer of the swarm."""

    def __init__(self, host, settings, directory, compute):
        self.host = host
        self.events = []
        self.scope = trio.CancelScope()
        self._settings = settings
        self._directory = directory
        self._compute = compute or compute_inline

    @property
    def peer_id(self):
        return self.host.peer_id

    async def run(self, bootstrap, *, task_status):
        host, settings, rng = self.host, self._settings, random.Random(1)
        host.events.on(Event, self.events.append)
        index = IndexValidator(no_members)
        dht = KadDht(host, settings.dht, rng, {NAMESPACE: index})
        memberships = {"test": RUN}
        access, authority = Access(host, memberships), Authority(memberships, 16)
        self.experts = ExpertHost(
            settings.hosting,
            None,
            host.events,
            rpc=settings.rpc,
            compute=self._compute,
            disk=compute_inline,
        )
        gate = Gate(self.experts)
        tensors = TensorServer(host, settings.rpc, gate, authority)
        announcer = Announcer(host, dht, host.key, settings.hosting)
        replication = Replication(
            host,
            directory=ExpertDirectory(host, dht, index, settings.swarm),
            announcer=announcer,
            experts=self.experts,
            gate=gate,
            authority=authority,
            budget=tensors.budget,
            access=access,
            states=self._directory,
            settings=settings,
            rng=rng,
            disk=compute_inline,
        )
        self.reducer = AllReduce(
            host,
            access,
            authority,
            settings.averaging,
            budget=tensors.budget,
            transcoder=tensors.transcoder,
        )
        self.split = SplitServer(
            host,
            settings.splitting,
            rpc=settings.rpc,
            handler=gate,
            experts=self.experts,
            authority=authority,
            access=access,
            tensors=tensors,
            reducer=self.reducer,
            weights=TransferredWeights(replication.local),
            rng=rng,
        )
        self.budget = tensors.budget
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(dht.run)
                await dht.bootstrap(bootstrap)
                await nursery.start(self.experts.run)
                await nursery.start(replication.run)
                await nursery.start(self.split.run)
                await self.experts.add([UID])
                await replication.serve([UID])
                await announcer.announce()
                await nursery.start(announcer.run)
                task_status.started()

    @property
    def backend(self):
        return self.experts._experts[UID].backend

    @property
    def weights(self):
        return [each.detach().clone() for each in self.backend.parameters]

    def crash(self):
        """Leave without a word."""
        self.host.world.kill(self.host)
        self.scope.cancel()

    def kinds(self):
        return [type(each).__name__ for each in self.events]


class Trainer:
    """Who trains, beside the swarm."""

    def __init__(self, caller):
        self.caller = caller

    async def forward(self, x, policy=POLICY):
        return await self.caller.forward(NAME, [x], policy)

    async def step(self, x, gradient, policy=POLICY, *, settle=True):
        """Forward and backward; returns the outputs and the gradients of the inputs."""
        answer = await self.caller.forward(NAME, [x], policy)
        found = await self.caller.backward(NAME, [x], [gradient], policy, answer.by)
        if settle:
            await self.caller.settle()
        return answer.tensors[0], found.tensors[0], found.by


class Swarm:
    def __init__(self, world, nursery, settings, directory):
        self.settings = settings
        self.peers = []
        self._world = world
        self._nursery = nursery
        self._directory = directory

    @property
    def _bootstrap(self):
        return [(self.peers[0].peer_id, self.peers[0].host.addresses[0])] if self.peers else ()

    async def add(self, count=1, *, compute=None, **hosting):
        for _ in range(count):
            host = await self._world.add_host()
            settings = self.settings.replace(hosting=hosting)
            peer = Peer(host, settings, self._directory / str(len(self.peers)), compute)
            await self._nursery.start(peer.run, self._bootstrap)
            self.peers.append(peer)
        return self.peers[-count:]

    async def trainer(self, number=0):
        host, rng, settings = await self._world.add_host(), random.Random(number), self.settings
        index = IndexValidator(no_members)
        dht = KadDht(
            host, dataclasses.replace(settings.dht, mode="client"), rng, {NAMESPACE: index}
        )
        await self._nursery.start(dht.run)
        await dht.bootstrap(self._bootstrap)
        caller = ExpertCaller(
            host,
            ExpertDirectory(host, dht, index, settings.swarm),
            RUN,
            settings=settings,
            rng=rng,
        )
        trainer = Trainer(SplitCaller(caller.client, settings=settings))
        await self._nursery.start(trainer.caller.run)
        trainer.host = host
        return trainer

    def unsplit(self):
        """The same layer in one place."""
        return build_backend(UID, self.settings.hosting)

    def in_order(self):
        """The peers as callers order them."""
        return sorted(self.peers, key=lambda peer: peer.peer_id)


def assert_same(weights, others):
    for one, two in zip(weights, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def open_swarm(tmp_path):
    """A function that opens a `Swarm` as an async context manager; arguments are sections."""

    @asynccontextmanager
    async def opened(delay=0.001, **sections):
        bind_wall_time_to_trio(1.8e9)
        network = VirtualNetwork(latency=Drawn(lambda _source, _target: delay))
        async with light_hosts(network) as world, trio.open_nursery() as nursery:
            yield Swarm(world, nursery, SETTINGS.replace(**sections), tmp_path)
            nursery.cancel_scope.cancel()

    return opened


@pytest.fixture
def same():
    """A function that compares weights."""
    return assert_same


@pytest.fixture
def fails_of():
    """The errors that calls are told."""
    return P2PNodeError
