"""Punching holes, cancelled at each await point in turn."""

import random

import trio

from p2pnode.config import DcutrSettings, RelaySettings
from p2pnode.protocols.dcutr.core import HolePunched
from p2pnode.protocols.dcutr.service import DcutrService
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork
from p2pnode.wire.addresses import with_p2p

RELAY = RelaySettings(server="always", client="never", circuit_bytes=0, circuit_seconds=0)
DCUTR = DcutrSettings(tries_per_peer=10_000, tries_per_second=1e4)


async def add_private(world, **relay):
    settings = RelaySettings(server="never", **relay)
    machine = world.network.add_machine(nat=Nat.PORT_RESTRICTED)
    return await world.add_host(machine=machine, relay=settings)


def seen_at(host):
    return [place.followed_by(b"") for _, place, _ in host.sightings()]


async def test_cancelled_dials_of_both_ends_leave_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.01))) as world:
        friend = await world.add_host()
        ends = [await add_private(world, client="never") for _ in range(2)]
        for each in ends:
            await each.connect(friend.peer_id, friend.addresses)
        await trio.sleep(1)

        async def punch(ours, theirs, *, is_client):
            connection = await ours.punch(
                theirs.peer_id, seen_at(theirs), is_client=is_client, settings=DCUTR
            )
            await connection.aclose()

        async def scenario():
            async with trio.open_nursery() as nursery:
                for is_client in (True, False):
                    ours, theirs = ends if is_client else reversed(ends)

                    async def run(ours=ours, theirs=theirs, is_client=is_client):
                        await punch(ours, theirs, is_client=is_client)

                    nursery.start_soon(run)

        assert await walk(scenario, await leftovers(*ends), moment) > 10


async def test_a_cancelled_service_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.01))) as world:
        relay = await world.add_host(relay=RELAY)
        at = str(with_p2p(relay.addresses[0], relay.peer_id))
        caller = await add_private(world, client="never")
        called = await add_private(world, client="always", relays=(at,))
        await world.nursery.start(DcutrService(caller, DCUTR, random.Random(0)).run)
        await caller.connect(relay.peer_id, relay.addresses)
        await trio.sleep(5)
        relayed = await caller.connect(called.peer_id, called.relayed)
        keeps_it = await relayed.open_stream(["/ipfs/ping/1.0.0"])
        await keeps_it.send_all(bytes(32))
        await trio.sleep(1)

        async def scenario():
            service = DcutrService(called, DCUTR, random.Random(0))
            with called.events.subscribe(HolePunched) as punched:
                async with trio.open_nursery() as nursery:
                    await nursery.start(service.run)
                    await punched.get()
                    nursery.cancel_scope.cancel()
            await called.connection_to(caller.peer_id).aclose()

        assert await walk(scenario, await leftovers(caller, called), moment) > 10
        assert not relayed.is_closed
