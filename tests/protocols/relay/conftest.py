import pytest
import trio

from p2pnode.config import RelaySettings
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork
from p2pnode.wire.addresses import with_p2p

ONE_WAY = 0.025


class Place:
    """A virtual network with relays, and nodes behind NATs that nobody can dial."""

    def __init__(self, world):
        self.world = world

    async def add_relay(self, **options):
        relay = RelaySettings(**({"server": "always", "client": "never"} | options))
        return await self.world.add_host(relay=relay)

    async def add_private(self, *relays, nat=Nat.SYMMETRIC, **options):
        """Add a node that is reached through `relays`; returns when it is."""
        addresses = tuple(str(with_p2p(each.addresses[0], each.peer_id)) for each in relays)
        found = {"server": "never", "relays": addresses, "reservations": max(1, len(relays))}
        machine = self.world.network.add_machine(nat=nat)
        relay = RelaySettings(**(found | options))
        host = await self.world.add_host(machine=machine, relay=relay)
        await self.reserved(host, len(relays))
        return host

    async def reserved(self, host, count):
        """Wait until `host` holds so many reservations."""
        with host.events.subscribe(RelayReserved) as reserved, trio.fail_after(60):
            while len(self.client(host).info().held) < count:
                await reserved.get()

    def client(self, host):
        return self.world.relay_clients[host.peer_id]

    def server(self, host):
        return self.world.relay_servers[host.peer_id]


@pytest.fixture
async def place(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(ONE_WAY))) as world:
        yield Place(world)
