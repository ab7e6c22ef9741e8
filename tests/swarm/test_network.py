"""Whole nodes on a virtual network: what follows from whether others reach them."""

import random
from itertools import count

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.host import Reachability
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.swarm.network import Network
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork
from p2pnode.wire.keys import PrivateKey

ONE_WAY = 0.025
GOAL = 5.0  # seconds from starting to being reachable


@pytest.fixture
def start(nursery, autojump_clock):
    """Start a node on a new machine, and let it join by those started before."""
    world = VirtualNetwork(random.Random(3), latency=Fixed(ONE_WAY))
    numbers = count(1)
    known = []

    async def start(nat=Nat.NONE):
        number = next(numbers)
        machine = world.add_machine(nat=nat)
        network = Network(
            PrivateKey.from_seed(bytes([number]) * 32),
            Settings(),
            transports=[MemoryTransport(world, machine)],
            rng=random.Random(number),
        )
        await nursery.start(network.run)
        await network.listen([f"/ip4/{machine.ip}/tcp/4001"])
        await network.join(known)
        known.extend(network.full_addresses())
        return network

    return start


async def test_a_node_that_no_stranger_reaches_only_asks_the_dht_and_one_that_is_reached_serves_it(
    autojump_clock, start
):
    servers = [await start() for _ in range(5)]
    await trio.sleep(60)
    assert [each.reachability.state for each in servers] == [Reachability.PUBLIC] * 5
    assert all(each.dht.serves for each in servers)
    hidden, open_cone = await start(Nat.PORT_RESTRICTED), await start(Nat.FULL_CONE)
    await trio.sleep(GOAL)
    assert hidden.reachability.state is Reachability.PRIVATE
    assert not hidden.dht.serves
    assert open_cone.reachability.state is Reachability.PUBLIC
    assert open_cone.dht.serves
    await trio.sleep(60)
    for each in servers:
        assert hidden.peer_id not in each.dht.peers
        assert open_cone.peer_id in each.dht.peers


async def test_a_node_that_no_stranger_reaches_is_reached_through_relays_within_seconds(
    autojump_clock, start
):
    for _ in range(5):
        await start()
    await trio.sleep(60)
    with trio.fail_after(GOAL):
        hidden = await start(Nat.SYMMETRIC)
        with hidden.host.events.subscribe(RelayReserved) as reserved:
            while not hidden.host.relayed:
                await reserved.get()
    other = await start(Nat.SYMMETRIC)
    await other.host.connect(hidden.peer_id, hidden.host.relayed)
    assert other.host.connection_to(hidden.peer_id) is not None
