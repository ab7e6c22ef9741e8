"""Dialling through a relay, and holding reservations, cancelled at each await point in turn."""

import random

import trio

from p2pnode.config import RelaySettings
from p2pnode.protocols.relay.client import RelayClient, RelayReserved
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, Nat, VirtualNetwork
from p2pnode.wire.addresses import with_p2p

ECHO = "/test/echo"
RELAY = RelaySettings(server="always", client="never", circuit_bytes=0, circuit_seconds=0)


def link(_source, _target):
    return 0.01


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_a_cancelled_dial_through_a_relay_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        relay = await world.add_host(relay=RELAY)
        address = str(with_p2p(relay.addresses[0], relay.peer_id))
        far = await world.add_host(
            machine=world.network.add_machine(nat=Nat.SYMMETRIC),
            relay=RelaySettings(server="never", relays=(address,)),
        )
        near = await world.add_host(relay=RelaySettings(server="never", client="never"))
        far.set_handler(ECHO, echo)
        await near.connect(relay.peer_id, relay.addresses)
        await trio.sleep(5)
        (way,) = far.relayed

        async def scenario():
            connection = await near.connect(far.peer_id, [way])
            stream = await connection.open_stream([ECHO])
            try:
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
            finally:
                stream.reset()
                await connection.aclose()

        assert await walk(scenario, await leftovers(near, far, relay), moment) > 5


async def test_a_cancelled_client_of_relays_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        relay = await world.add_host(relay=RELAY)
        address = str(with_p2p(relay.addresses[0], relay.peer_id))
        settings = RelaySettings(server="never", client="never", relays=(address,))
        near = await world.add_host(relay=settings)
        await near.connect(relay.peer_id, relay.addresses)

        async def scenario():
            transport = next(each for each in near._transports if type(each) is RelayTransport)
            client = RelayClient(near, transport, settings, random.Random(0))
            with near.events.subscribe(RelayReserved) as reserved:
                async with trio.open_nursery() as nursery:
                    client._switch = lambda _: client._want(1)
                    await nursery.start(client.run)
                    await reserved.get()
                    assert near.relayed
                    nursery.cancel_scope.cancel()
            assert not near.relayed
            assert not near.is_protected(relay.peer_id)

        assert await walk(scenario, await leftovers(near, relay), moment) > 3
        assert not near.relayed
