"""Dialling, accepting and streams, cancelled at each await point in turn."""

import contextlib
import random

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import P2PNodeError
from p2pnode.host.node import NetworkHost
from p2pnode.host.upgrader import Upgrader
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.ping.service import PingService
from p2pnode.testing.cancellation import walk
from p2pnode.testing.footprint import footprint
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

ECHO = "/test/echo"
IMPATIENT = NetworkSettings(close_timeout=0.2)
MANY = 700_000  # bytes: more than the windows of both directions hold
NEAR, FAR = PrivateKey.from_seed(bytes(32)), PrivateKey.from_seed(b"\x01" * 32)


def link(_source, _target):
    return 0.01


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


@contextlib.asynccontextmanager
async def running(transport, key=NEAR, tail=""):
    """Run a host of one's own with identify and ping, to be cancelled with the block."""
    host = NetworkHost(key, transports=[transport], rng=random.Random(0))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await nursery.start(IdentifyService(host, host.settings).run)
            await nursery.start(PingService(host, host.settings).run)
            ip = getattr(transport, "ip", "127.0.0.1")
            await host.listen(Multiaddr(f"{tcp_address(ip, 0)}{tail}"))
            yield host
            nursery.cancel_scope.cancel()
    finally:
        assert not any(footprint(host).held.values())
        assert host.connections() == []


async def test_a_cancelled_connect_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_host(), await world.add_host()

        async def scenario():
            connection = await near.connect(far.peer_id, far.addresses)
            await connection.aclose()

        assert await walk(scenario, await leftovers(near, far), moment) > 2


async def test_a_cancelled_host_that_dials_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        far = await world.add_host()
        far.set_handler(ECHO, echo)
        machine = MemoryTransport(world.network)

        async def scenario():
            async with running(machine) as near:
                stream = await near.open_stream(far.peer_id, [ECHO], far.addresses)
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
                await stream.aclose()

        assert await walk(scenario, await leftovers(far), moment) > 50
        assert machine.machine.listeners == {}


async def test_a_cancelled_host_that_is_dialled_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near = await world.add_host()
        machine = MemoryTransport(world.network)

        async def scenario():
            async with running(machine, FAR) as far:
                far.set_handler(ECHO, echo)
                with contextlib.suppress(P2PNodeError):  # it is cancelled while we talk to it
                    stream = await near.open_stream(far.peer_id, [ECHO], far.addresses)
                    await stream.send_all(b"x")
                    echoed.append(await stream.receive_exactly(1))
                    await stream.aclose()

        echoed = []
        assert await walk(scenario, await leftovers(near), moment) > 50
        assert echoed[-1] == b"x"


@pytest.mark.parametrize("protocols", [[ECHO], ["/test/none", ECHO]], ids=["one", "two"])
async def test_a_cancelled_use_of_a_stream_leaves_nothing(
    protocols, moment, leftovers, autojump_clock
):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_hosts(2)
        far.set_handler(ECHO, echo)
        connection = near.connection_to(far.peer_id)

        async def scenario():
            stream = await connection.open_stream(protocols)
            try:
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
                await stream.send_eof()
                assert await stream.receive_some() == b""
            finally:
                await stream.aclose()

        assert await walk(scenario, await leftovers(near, far), moment) > 3
        assert near.connection_to(far.peer_id) is connection


async def test_a_cancelled_transfer_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_hosts(2)
        far.set_handler(ECHO, echo)
        connection = near.connection_to(far.peer_id)

        async def scenario():
            stream = await connection.open_stream([ECHO])
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, bytearray(MANY))
                    await stream.receive_exactly(MANY)
            finally:
                await stream.aclose()

        assert await walk(scenario, await leftovers(near, far), moment) > 10


async def test_a_stream_that_is_left_to_a_cancelled_reader_can_still_be_used(
    moment, autojump_clock
):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_hosts(2)
        far.set_handler(ECHO, echo)
        stream = await near.open_stream(far.peer_id, [ECHO])
        received = bytearray()
        sent = 0

        async def scenario():
            nonlocal sent
            with trio.CancelScope(shield=True):
                await stream.send_all(bytes([sent % 256]))
            sent += 1
            received.extend(await stream.receive_some())

        async def nothing():
            return {}

        await walk(scenario, nothing, moment)
        received += await stream.receive_exactly(sent - len(received))
        assert received == bytes(range(sent))  # what a cancelled read did not give, the next gave


@pytest.mark.parametrize("side", ["dialler", "listener"])
async def test_a_cancelled_upgrade_closes_its_stream(side, moment, autojump_clock):
    network = VirtualNetwork(latency=Drawn(link))
    near, far = MemoryTransport(network), MemoryTransport(network)
    settings = NetworkSettings()

    async def connected():
        listener = await far.listen(tcp_address(far.ip, 0))
        ours = await near.dial(listener.addresses[0])
        theirs = await listener.accept()
        await listener.aclose()
        return ours, theirs

    def upgrade(raw, is_dialler):
        if is_dialler:
            return Upgrader(NEAR, settings).outbound(raw, FAR.peer_id)
        return Upgrader(FAR, settings).inbound(raw)

    async def follow(raw, is_dialler):
        with contextlib.suppress(P2PNodeError):
            await upgrade(raw, is_dialler)
        await trio.aclose_forcefully(raw.stream)

    async def scenario():
        is_dialler = side == "dialler"
        with trio.CancelScope(shield=True):
            ours, theirs = await connected()
        raw, other = (ours, theirs) if is_dialler else (theirs, ours)
        upgraded = None
        async with trio.open_nursery() as others:
            others.start_soon(follow, other, not is_dialler)
            try:
                upgraded = await upgrade(raw, is_dialler)
            finally:
                if upgraded is None:
                    with pytest.raises(trio.ClosedResourceError):
                        await raw.stream.receive_some()
                await trio.aclose_forcefully(raw.stream)

    async def left():
        return {}

    assert await walk(scenario, left, moment) > 5


async def test_a_cancelled_close_of_a_connection_closes_it(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_host(), await world.add_host()

        async def scenario():
            with trio.CancelScope(shield=True):
                connection = await near.connect(far.peer_id, far.addresses)
            try:
                await connection.aclose()
            finally:
                assert connection.is_closed

        assert await walk(scenario, await leftovers(near, far), moment) >= 2


@pytest.mark.real
@pytest.mark.parametrize("tail", ["", "/ws"], ids=["tcp", "websocket"])
async def test_a_cancelled_host_on_real_sockets_leaves_none_open(tail, moment, leftovers):
    def transport():
        return WebSocketTransport(IMPATIENT) if tail else TcpTransport()

    async with running(transport(), FAR, tail=tail) as far:
        far.set_handler(ECHO, echo)

        async def scenario():
            async with running(transport(), NEAR, tail=tail) as near:
                stream = await near.open_stream(far.peer_id, [ECHO], far.addresses)
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
                await stream.aclose()

        assert await walk(scenario, await leftovers(far), moment) > 30
