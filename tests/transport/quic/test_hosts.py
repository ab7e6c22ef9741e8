"""Whole hosts that meet over QUIC alone."""

import contextlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import DcutrSettings
from p2pnode.errors import ConnectionClosedError, StreamResetError
from p2pnode.host.connections import Way
from p2pnode.host.node import NetworkHost
from p2pnode.security.tls import TlsIdentity
from p2pnode.testing.footprint import footprint
from p2pnode.transport.quic import QuicTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

ECHO = "/echo/1.0.0"
MIB = 1024 * 1024

pytestmark = pytest.mark.real


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


@pytest.fixture
async def hosts(nursery):
    """Two hosts that listen on loopback and echo."""
    found = []
    for number in (1, 2):
        key = PrivateKey.from_seed(bytes([number]) * 32)
        host = NetworkHost(key, transports=[QuicTransport(TlsIdentity(key))])
        await nursery.start(host.run)
        await host.listen(parse_address("/ip4/127.0.0.1/udp/0/quic-v1"))
        host.set_handler(ECHO, echo)
        found.append(host)
    return found


async def settle(*hosts):
    """Wait until all connections of `hosts` have ended."""
    with trio.fail_after(10):
        while any(host.connections() for host in hosts):
            await wait_all_tasks_blocked(0.05)
        await wait_all_tasks_blocked(0.1)


async def ask(one, other, size=10_000, *, patience=10.0):
    """Have something echoed, for a while."""
    with trio.move_on_after(patience):
        stream = await one.open_stream(other.peer_id, [ECHO], other.addresses)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(size))
            await stream.receive_exactly(size)


async def test_nothing_is_left_of_calls_that_end_or_are_cancelled_and_of_their_connection(hosts):
    one, other = hosts
    await ask(one, other)
    await one.connection_to(other.peer_id).aclose()
    await settle(one, other)
    before = footprint(one, other)
    for round_number in range(3):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                patience = 0.005 * number if number % 2 else 10.0
                caller, called = hosts if number % 3 else hosts[::-1]
                nursery.start_soon(lambda a=caller, b=called, p=patience: ask(a, b, patience=p))
        closing = hosts[round_number % 2]
        for connection in closing.connections():
            await connection.aclose()
        await settle(one, other)
    growth = footprint(one, other).growth_since(before)
    assert growth == {}


async def test_a_connection_that_ends_under_load_fails_its_callers_and_leaves_nothing(hosts):
    one, other = hosts
    await ask(one, other)
    await one.connection_to(other.peer_id).aclose()
    await settle(one, other)
    before = footprint(one, other)

    async def flood():
        with contextlib.suppress(ConnectionClosedError, StreamResetError):
            stream = await one.open_stream(other.peer_id, [ECHO], other.addresses)
            async with stream:
                while True:
                    await stream.send_all(bytes(MIB))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(flood)
        await trio.sleep(0.3)
        await other.connection_to(one.peer_id).aclose()
    await settle(one, other)
    assert footprint(one, other).growth_since(before) == {}


async def test_hosts_that_punch_at_the_same_moment_are_connected_directly(hosts):
    one, other = hosts
    found = []

    async def punch(host, peer, *, is_client):
        found.append(
            await host.punch(
                peer.peer_id, peer.addresses, is_client=is_client, settings=DcutrSettings()
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: punch(one, other, is_client=True))
        nursery.start_soon(lambda: punch(other, one, is_client=False))
    assert {each.peer_id for each in found} == {one.peer_id, other.peer_id}
    ours = one.connection_to(other.peer_id)
    assert (ours.info().way, ours.direction) == (Way.PUNCHED, "outbound")
    await ask(other, one)
