"""Participants of layer-parallel training on a light network: each hosts a layer, and learns."""

import contextlib
import random

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import Settings
from p2pnode.events import Event
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.protocols.kad.service import KadDht
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import VirtualNetwork
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.layerwise.data import Examples, Part
from p2pnode.trainer.layerwise.layers import CLASSES, PIXELS, layer_names
from p2pnode.trainer.layerwise.learner import LayerwiseLearner
from p2pnode.trainer.layerwise.network import SwarmNetwork
from p2pnode.wire.uids import Uid

RUN = Membership.open("images")
LAYERS = 2
SETTINGS = Settings().replace(
    hosting={
        "hidden_dim": 16,
        "learning_rate": 1e-3,
        "update_period": 1.0,
        "threads": 1,
        "max_step_rows": 8,
    },
    swarm={"refresh_interval": 0.5},
    layerwise={"batch": 8, "call_timeout": 10.0},
)


def no_members(_token, _run_id, _peer_id, _now):
    raise AssertionError("the run is open")


def blobs(count, seed):
    """Return examples that are easy to tell apart: noise around a point for each class."""
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(count) % CLASSES
    inputs = centres[targets] + 0.5 * torch.randn(count, PIXELS, generator=chance)
    return Examples(inputs, targets)


class Participant:
    """One peer: a host of one layer with data of its own."""

    def __init__(self, host, number, seed, settings, compute):
        self.host = host
        self.number = number
        self.uid = Uid(RUN.run_id, f"layers.{number}")
        self.scope = trio.CancelScope()
        self.seen = []
        host.events.on(Event, self.seen.append)
        rng = random.Random(seed)
        index = IndexValidator(no_members)
        self.dht = KadDht(host, settings.dht, rng, {NAMESPACE: index})
        names = layer_names(LAYERS)
        self.hosting = settings.replace(hosting={"layer": names[number]}).hosting
        self.experts = ExpertHost(
            self.hosting, None, host.events, rpc=settings.rpc, compute=compute, disk=compute_inline
        )
        TensorServer(host, settings.rpc, self.experts, Authority({RUN.name: RUN}, 16))
        self.announcer = Announcer(host, self.dht, host.key, settings.hosting)
        directory = ExpertDirectory(host, self.dht, index, settings.swarm)
        self.caller = ExpertCaller(host, directory, RUN, settings=settings, rng=rng)
        self.network = SwarmNetwork(
            self.caller,
            self.experts,
            self.uid,
            peer_id=host.peer_id,
            layers=LAYERS,
            settings=settings.layerwise,
        )
        self.learner = LayerwiseLearner(
            self.network,
            self.experts,
            Part(blobs(200, seed), blobs(100, 1000 + seed)),
            hosting=self.hosting,
            settings=settings.layerwise,
            events=host.events,
            seed=seed,
        )

    async def run(self, bootstrap, *, task_status):
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.dht.run)
                await self.dht.bootstrap(bootstrap)
                await nursery.start(self.experts.run)
                await self.experts.add([self.uid])
                await nursery.start(self.announcer.run)
                self.announcer.add([self.uid])
                task_status.started()

    @property
    def steps(self):
        return self.experts.steps(self.uid)

    def of(self, kind):
        return [event for event in self.seen if type(event) is kind]

    def crash(self):
        """Leave without a word."""
        self.host.world.kill(self.host)
        self.scope.cancel()


class Swarms:
    def __init__(self, world, nursery, settings):
        self.world = world
        self.nursery = nursery
        self.settings = settings
        self.everybody = []

    async def add(self, number, *, compute=compute_inline, hidden_dim=16, **layerwise):
        """Start a participant of a layer."""
        settings = self.settings.replace(layerwise=layerwise, hosting={"hidden_dim": hidden_dim})
        host = await self.world.add_host()
        made = Participant(host, number, len(self.everybody), settings, compute)
        bootstrap = [(each.host.peer_id, each.host.addresses[0]) for each in self.everybody[:1]]
        self.everybody.append(made)
        await self.nursery.start(made.run, bootstrap)
        return made


@contextlib.asynccontextmanager
async def open_swarms(settings=SETTINGS):
    bind_wall_time_to_trio(1.8e9)
    async with light_hosts(VirtualNetwork()) as world, trio.open_nursery() as nursery:
        yield Swarms(world, nursery, settings)
        nursery.cancel_scope.cancel()


@pytest.fixture
def swarms():
    """A function that opens the swarms of a network as an async context manager."""
    return open_swarms
