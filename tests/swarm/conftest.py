"""Hosts and trainers on a light world, with wall-clock time bound to the virtual clock."""

import random
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import DhtSettings, HostingSettings, SwarmSettings
from p2pnode.errors import NotAMemberError
from p2pnode.protocols.kad.service import KadDht
from p2pnode.swarm.announce import Announcer, Proof
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.testing.light import LightHost, LightWorld, light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import expand

EPOCH = 1_700_000_000.0
RUN = "open:digits"


def verify_token(token, run_id, peer_id, now):
    """Tokens of these tests are `<run id> <peer id> <expiry>`."""
    parts = token.decode().split()
    if parts[:2] != [run_id, str(peer_id)] or float(parts[2]) <= now:
        raise NotAMemberError("not a member")
    return float(parts[2])


async def settle(dht: KadDht) -> None:
    """Wait until a node that has joined has filled its table in the background."""
    for _ in range(10_000):
        if not dht.busy:
            return
        await trio.sleep(0.01)


@dataclass
class SwarmNode:
    """A daemon or a trainer of the swarm under test."""

    host: LightHost
    dht: KadDht
    directory: ExpertDirectory
    announcer: Announcer
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    services: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer_id(self):
        return self.host.peer_id

    async def crash(self) -> None:
        self.host.world.kill(self.host)
        self.scope.cancel()
        await trio.lowlevel.checkpoint()

    async def stop(self) -> None:
        """End the services first, as a daemon does, and then the rest."""
        self.services.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await self.crash()

    async def run(self, task_status) -> None:
        with self.scope:
            async with trio.open_nursery() as world:
                await world.start(self.dht.run)
                with self.services:
                    await self.announcer.run(task_status=task_status)
                await trio.sleep_forever()


class SwarmNetwork:
    """Starts nodes that know one earlier node each."""

    def __init__(self, world: LightWorld, nursery: trio.Nursery, seed: int) -> None:
        self.world = world
        self._nursery = nursery
        self._rng = random.Random(seed)
        self._numbers = iter(range(1, 10_000))

    async def start(
        self,
        bootstrap: Sequence[SwarmNode] = (),
        *,
        experts: Sequence[str] = (),
        server: bool = True,
        key: PrivateKey | None = None,
        run_id: str = RUN,
        proof_of=lambda _run_id: Proof(),
        load=lambda: 0,
        throughput=lambda: 0.0,
        hosting: HostingSettings | None = None,
        swarm: SwarmSettings | None = None,
    ) -> SwarmNode:
        key = key or PrivateKey.from_seed(next(self._numbers).to_bytes(32, "big"))
        host = await self.world.add_host(key)
        index = IndexValidator(verify_token)
        rng = random.Random(self._rng.random())
        dht = KadDht(
            host, DhtSettings(mode="server" if server else "client"), rng, {NAMESPACE: index}
        )
        node = SwarmNode(
            host,
            dht,
            ExpertDirectory(host, dht, index, swarm),
            Announcer(
                host,
                dht,
                key,
                hosting,
                proof_of=proof_of,
                load=load,
                throughput=throughput,
                rng=rng,
            ),
        )
        await self._nursery.start(node.run)
        if bootstrap:
            known = [(each.peer_id, each.host.addresses[0]) for each in bootstrap]
            await dht.bootstrap(known)
            await settle(dht)
        for pattern in experts:
            node.announcer.add(expand(pattern, run_id))
        await trio.testing.wait_all_tasks_blocked()
        return node


@pytest.fixture
def swarm_network():
    """Open a network: `async with swarm_network() as net`; needs `autojump_clock` beside it."""

    @asynccontextmanager
    async def opened(delay=None, seed=0):
        bind_wall_time_to_trio(EPOCH)
        latency = None if delay is None else Drawn(delay)
        async with (
            light_hosts(VirtualNetwork(latency=latency)) as world,
            trio.open_nursery() as nursery,
        ):
            yield SwarmNetwork(world, nursery, seed)
            nursery.cancel_scope.cancel()

    return opened
