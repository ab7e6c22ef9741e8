"""Dialling as a stranger, and asking whether one is reached, cancelled at each await point."""

import random

import pytest

from p2pnode.config import ReachabilitySettings
from p2pnode.host.reachability.verdicts import Probe, Result
from p2pnode.host.reachability.votes import network_of
from p2pnode.protocols.autonat.client import AutonatClient
from p2pnode.protocols.autonat.messages import DIAL_REQUEST
from p2pnode.protocols.autonat.server import AutonatServer
from p2pnode.protocols.ping.core import PAYLOAD_BYTES, PROTOCOL
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.addresses import ip_of

MANY = 1_000_000
LAX = ReachabilitySettings(
    requests_per_minute=MANY,
    request_burst=MANY,
    requests_per_minute_per_network=MANY,
    request_burst_per_network=MANY,
    requests_per_minute_per_peer=MANY,
    request_burst_per_peer=MANY,
)


def link(_source, _target):
    return 0.01


@pytest.fixture
async def world(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        yield world


async def test_a_cancelled_dial_as_a_stranger_leaves_nothing(
    world, moment, leftovers, autojump_clock
):
    near, far = await world.add_host(), await world.add_host()

    async def scenario():
        async with near.dial_anew(far.peer_id, far.addresses[0], timeout=5.0) as connection:
            stream = await connection.open_stream([PROTOCOL])
            await stream.send_all(bytes(PAYLOAD_BYTES))
            assert await stream.receive_exactly(PAYLOAD_BYTES) == bytes(PAYLOAD_BYTES)
            await stream.aclose()

    assert await walk(scenario, await leftovers(near, far), moment) > 10


async def test_a_cancelled_question_leaves_nothing(world, moment, leftovers, autojump_clock):
    near, far = await world.add_hosts(2)
    client = AutonatClient(near, LAX)
    server = AutonatServer(far, LAX, random.Random(1))
    await world.nursery.start(client.run)
    await world.nursery.start(server.run)
    probe = Probe(
        peer_id=far.peer_id,
        network=network_of(ip_of(far.addresses[0])),
        family=4,
        subject=near.addresses[0],
        addresses=(near.addresses[0],),
    )

    async def scenario():
        assert DIAL_REQUEST in near.protocols_of(far.peer_id)
        assert (await client.ask(probe)).result is Result.REACHED

    left = await leftovers(near, far)

    async def nothing_left():
        found = await left()
        if client._expected:
            found["expected dial-backs"] = len(client._expected)
        if len(server._gate):
            found["requests"] = len(server._gate)
        return found

    assert await walk(scenario, nothing_left, moment) > 5
