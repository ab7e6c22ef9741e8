"""What a whole node does about relays when it learns whether others can dial it."""

import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.host import ReachabilityChanged
from p2pnode.host.interfaces import Reachability
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.protocols.relay.messages import HOP_PROTOCOL, STOP_PROTOCOL
from p2pnode.swarm.network import Network
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork
from p2pnode.wire.keys import PrivateKey

ECHO = "/test/echo"


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


def learn(node, reachability):
    node.host.events.emit(ReachabilityChanged(reachability=reachability))


@pytest.fixture
def start(nursery, autojump_clock):
    network = VirtualNetwork(latency=Fixed(0.025))
    seeds = iter(range(1, 100))

    async def start(*bootstrap, nat=Nat.NONE, reachability="auto", **relay):
        seed = next(seeds)
        transport = MemoryTransport(network, network.add_machine(nat=nat))
        node = Network(
            PrivateKey.from_seed(bytes([seed]) * 32),
            Settings().replace(relay=relay, reachability={"mode": reachability}),
            transports=[transport],
            rng=random.Random(seed),
        )
        await nursery.start(node.run)
        await node.listen([f"/ip4/{transport.ip}/tcp/4001"])
        await node.join(bootstrap)
        return node

    return start


async def test_public_nodes_relay_and_private_ones_are_reached_through_them(start, autojump_clock):
    public = await start(circuit_bytes=0, circuit_seconds=0)
    learn(public, Reachability.PUBLIC)
    (bootstrap,) = public.full_addresses()
    ours, theirs = [await start(bootstrap, nat=Nat.SYMMETRIC) for _ in range(2)]
    began = trio.current_time()
    for node in (ours, theirs):
        with node.host.events.subscribe(RelayReserved) as reserved:
            learn(node, Reachability.PRIVATE)
            await reserved.get()
    assert trio.current_time() - began < 1
    theirs.host.set_handler(ECHO, echo)
    (way,) = theirs.host.relayed
    connection = await ours.host.connect(theirs.peer_id, [way])
    assert connection.is_relayed
    async with await connection.open_stream([ECHO]) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_exactly(1) == b"x"
    assert HOP_PROTOCOL not in ours.host.protocols
    assert public.relay_server.info().circuits == 1
    learn(public, Reachability.PRIVATE)
    await trio.sleep(1)
    assert HOP_PROTOCOL not in public.host.protocols


async def test_who_is_told_that_nobody_can_dial_it_asks_relays_as_soon_as_it_listens(
    start, autojump_clock
):
    relay = await start(server="always")
    node = await start(*relay.full_addresses(), nat=Nat.SYMMETRIC, reachability="private")
    await trio.sleep(5)
    assert node.host.relayed


async def test_who_wants_no_part_in_relaying_offers_none_and_still_dials_through_relays(
    start, autojump_clock
):
    relay = await start(server="always")
    (bootstrap,) = relay.full_addresses()
    theirs = await start(bootstrap, nat=Nat.SYMMETRIC, relays=(bootstrap,))
    with theirs.host.events.subscribe(RelayReserved) as reserved:
        if not theirs.host.relayed:
            await reserved.get()
    alone = await start(bootstrap, nat=Nat.SYMMETRIC, client="never", server="never")
    for reachability in (Reachability.PRIVATE, Reachability.PUBLIC):
        learn(alone, reachability)
    await trio.sleep(10)
    assert alone.host.relayed == []
    assert not {HOP_PROTOCOL, STOP_PROTOCOL} & set(alone.host.protocols)
    assert (await alone.host.connect(theirs.peer_id, theirs.host.relayed)).is_limited
