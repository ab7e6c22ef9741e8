"""A swarm of light hosts: real DHT, tensor calls and experts over memory, on trio's clock."""

import contextlib
import dataclasses
import random
from dataclasses import dataclass, field

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import Settings
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.service import SessionServer
from p2pnode.protocols.kad.service import KadDht
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.portal import Portal
from p2pnode.wire.uids import Uid, expand_all

RUN = Membership.open("test")
SETTINGS = Settings().replace(
    hosting={"hidden_dim": 8, "update_period": 1.0, "learning_rate": 1e-2, "threads": 1},
    swarm={"refresh_interval": 0.5},
)


def no_members(_token, _run_id, _peer_id, _now):
    raise AssertionError("the run is open")


@dataclass
class LightSwarm:
    """Builds servers, and sessions of trainers, on one light network."""

    world: object
    nursery: object
    settings: Settings
    servers: dict = field(default_factory=dict)

    @property
    def bootstrap(self):
        first = next(iter(self.servers.values())).host
        return [(first.peer_id, first.addresses[0])]

    async def serve(self, *patterns, handler=lambda experts: experts, hosting=None):
        """Start a host of experts; `handler` may wrap what serves the calls."""
        host = await self.world.add_host()
        server = Server(host, self.settings)
        bootstrap = self.bootstrap if self.servers else ()
        self.servers[host.peer_id] = server
        await self.nursery.start(server.run, bootstrap, patterns, handler, hosting)
        return server

    async def session(self):
        """Start a trainer's DHT client; returns its `ExpertCaller`."""
        host, settings = await self.world.add_host(), self.settings
        rng = random.Random(0)
        index = IndexValidator(no_members)
        client = dataclasses.replace(settings.dht, mode="client")
        dht = KadDht(host, client, rng, {NAMESPACE: index})
        await self.nursery.start(dht.run)
        await dht.bootstrap(self.bootstrap)
        return ExpertCaller(
            host,
            ExpertDirectory(host, dht, index, settings.swarm),
            RUN,
            settings=settings,
            rng=rng,
        )


class Server:
    """One host of experts."""

    def __init__(self, host, settings):
        self.host = host
        self.settings = settings
        self.scope = trio.CancelScope()
        self.experts = None

    async def run(self, bootstrap, patterns, handler, hosting, *, task_status):
        host, settings = self.host, self.settings
        dht = KadDht(host, settings.dht, random.Random(1), {NAMESPACE: IndexValidator(no_members)})
        self.experts = ExpertHost(
            hosting or settings.hosting,
            None,
            host.events,
            rpc=settings.rpc,
            compute=compute_inline,
            disk=compute_inline,
        )
        authority = Authority({"test": RUN}, 16)
        tensors = TensorServer(host, settings.rpc, handler(self.experts), authority)
        self.sessions = SessionServer(
            host,
            settings.sessions,
            rpc=settings.rpc,
            handler=self.experts,
            experts=self.experts,
            authority=authority,
            tensors=tensors.budget,
            transcoder=tensors.transcoder,
        )
        announcer = Announcer(host, dht, host.key, settings.hosting)
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(dht.run)
                await dht.bootstrap(bootstrap)
                await nursery.start(self.experts.run)
                uids = [uid.in_run(RUN.run_id) for uid in expand_all(patterns, "test")]
                await self.experts.add(uids)
                announcer.add(uids)
                await announcer.announce()
                await nursery.start(announcer.run)
                task_status.started()

    def steps(self, name):
        """How often an expert has stepped here."""
        uid = Uid(RUN.run_id, name)
        return next(each.steps for each in self.experts.status() if each.uid == uid)

    def crash(self):
        """Leave without a word."""
        self.host.world.kill(self.host)
        self.scope.cancel()


@contextlib.asynccontextmanager
async def light_swarm(settings=SETTINGS, delay=None):
    bind_wall_time_to_trio(1.8e9)
    latency = None if delay is None else Drawn(delay)
    async with (
        light_hosts(VirtualNetwork(latency=latency)) as world,
        trio.open_nursery() as nursery,
    ):
        yield LightSwarm(world, nursery, settings)
        nursery.cancel_scope.cancel()


@pytest.fixture
def open_swarm():
    """A function that opens a `LightSwarm` as an async context manager."""
    return light_swarm


@pytest.fixture
def portal_to():
    """A function that runs a light swarm in a portal, set up by an async function.

    `await set_up(swarm)` returns anything; the portal and that are returned.
    """
    with contextlib.ExitStack() as stack:

        def start(set_up, settings=SETTINGS, delay=None):
            async def serve(*, task_status):
                async with light_swarm(settings, delay) as swarm:
                    task_status.started(await set_up(swarm))
                    await trio.sleep_forever()

            portal = Portal(serve, name="light swarm")
            made = portal.start()
            stack.callback(portal.close)
            return portal, made

        yield start


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def trainer_settings():
    """The settings of the light swarms."""
    return SETTINGS
