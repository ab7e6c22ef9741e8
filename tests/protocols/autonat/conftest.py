"""Nodes on a virtual network that find out whether others can dial them."""

import random
from functools import partial
from itertools import count

import pytest
import trio

from p2pnode.config import ReachabilitySettings
from p2pnode.host import ReachabilityChanged
from p2pnode.protocols.autonat.service import ReachabilityService
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork

ONE_WAY = 0.025
QUIET = ReachabilitySettings(mode="public")  # serves others, and asks nobody


class Node:
    """A host with its reachability service."""

    def __init__(self, host, machine, service):
        self.host = host
        self.machine = machine
        self.service = service
        self.changes = []  # when each verdict came
        host.events.on(ReachabilityChanged, self._note)

    def _note(self, event):
        self.changes.append((trio.current_time(), event))

    @property
    def state(self):
        return self.service.state.value


class World:
    """Hosts of either fidelity, with reachability services."""

    def __init__(self, hosts, network):
        self.hosts = hosts
        self.network = network
        self.servers = []
        self._seeds = count(1)

    async def add(self, nat=Nat.NONE, settings=None, **arguments):
        machine = self.network.add_machine(nat=nat)
        host = await self.hosts.add_host(machine=machine, **arguments)
        service = ReachabilityService(host, settings, random.Random(next(self._seeds)))
        node = Node(host, machine, service)
        await self.hosts.nursery.start(service.run)
        return node

    async def add_servers(self, number, **arguments):
        added = [await self.add(settings=QUIET, **arguments) for _ in range(number)]
        self.servers += added
        return added

    async def join(self, node, servers=None):
        async with trio.open_nursery() as nursery:
            for each in self.servers if servers is None else servers:
                nursery.start_soon(
                    partial(node.host.connect, each.host.peer_id, each.host.addresses)
                )

    async def newcomer(self, nat=Nat.NONE, settings=None, **arguments):
        node = await self.add(nat, settings, **arguments)
        await self.join(node)
        return node


@pytest.fixture(params=["full", "light"])
def fidelity(request):
    return request.param


@pytest.fixture
async def world(autojump_clock, fidelity):
    network = VirtualNetwork(random.Random(5), latency=Fixed(ONE_WAY))
    make = full_hosts if fidelity == "full" else light_hosts
    async with make(network) as hosts:
        yield World(hosts, network)


@pytest.fixture
async def full_world(autojump_clock):
    network = VirtualNetwork(random.Random(5), latency=Fixed(ONE_WAY))
    async with full_hosts(network) as hosts:
        yield World(hosts, network)
