"""DHT nodes on a light network, with wall-clock time bound to the virtual clock."""

import random
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import DhtSettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.kad.validators import Validator
from p2pnode.testing.light import LightHost, LightWorld, light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork

EPOCH = 1_700_000_000.0


class SetValidator(Validator):
    """Values are sets of bytes below 128; merging joins them. `expires` is fixed per namespace."""

    def __init__(self, ttl: float | None = None) -> None:
        self.ttl = ttl

    def validate(self, key, value, now):
        if not value or max(value) > 127:
            raise ProtocolError("not a set")

    def merge(self, key, values, now):
        return bytes(sorted(set(b"".join(values))))

    def expires(self, key, value):
        return None if self.ttl is None else EPOCH + self.ttl


async def settle(dht: KadDht) -> None:
    """Wait until a node that has joined has filled its table in the background."""
    for _ in range(10_000):
        if not dht.busy:
            return
        await trio.sleep(0.01)


@dataclass
class Dht:
    """One node of the network under test."""

    host: LightHost
    dht: KadDht
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer_id(self):
        return self.host.peer_id

    @property
    def address(self):
        return (self.host.peer_id, self.host.addresses[0])

    async def crash(self) -> None:
        self.host.world.kill(self.host)
        self.scope.cancel()
        await trio.lowlevel.checkpoint()


class DhtNetwork:
    """Starts nodes; each draws its own chance from the seed."""

    def __init__(self, world: LightWorld, nursery: trio.Nursery, seed: int) -> None:
        self.world = world
        self._nursery = nursery
        self._rng = random.Random(seed)

    async def start(
        self,
        bootstrap: Sequence[Dht] = (),
        *,
        settings: DhtSettings | None = None,
        validators: Mapping[str, Validator] | None = None,
        **changes,
    ) -> Dht:
        settings = replace(settings or DhtSettings(), **changes)
        host = await self.world.add_host()
        rng = random.Random(self._rng.random())
        dht = KadDht(host, settings, rng, validators or {"set": SetValidator()})
        node = Dht(host, dht)
        await self._nursery.start(self._run, node)
        if bootstrap:
            await dht.bootstrap([each.address for each in bootstrap])
            await settle(dht)
        return node

    async def grow(self, count: int, **changes) -> list[Dht]:
        """Start `count` nodes that each know one earlier node."""
        nodes: list[Dht] = []
        for _ in range(count):
            known = [self._rng.choice(nodes)] if nodes else []
            nodes.append(await self.start(known, **changes))
        return nodes

    @staticmethod
    async def _run(node: Dht, task_status) -> None:
        with node.scope:
            await node.dht.run(task_status=task_status)


@pytest.fixture
def dht_network(autojump_clock):
    """Open a network of DHT nodes in virtual time: `async with dht_network() as net`."""

    @asynccontextmanager
    async def opened(delay=None, seed=0):
        bind_wall_time_to_trio(EPOCH)
        latency = None if delay is None else Drawn(delay)
        async with (
            light_hosts(VirtualNetwork(latency=latency)) as world,
            trio.open_nursery() as nursery,
        ):
            yield DhtNetwork(world, nursery, seed)
            nursery.cancel_scope.cancel()

    return opened
