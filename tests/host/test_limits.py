"""Budgets and trimming, as hosts and their peers meet them."""

import contextlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import KIB, LimitSettings
from p2pnode.errors import ConnectionClosedError, Limit, ResourceLimitError, StreamResetError
from p2pnode.host import ConnectionEnded
from p2pnode.host.budgets import ResourceRefused
from p2pnode.host.node import NetworkHost
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.memory import MemoryTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

WINDOW = 256 * KIB
CALL = "/test/call"
STANDING = "/meshsub/1.1.0"


async def forever(stream):
    await stream.receive_some(1)
    await trio.sleep_forever()


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def ask(stream, data=b"x"):
    await stream.send_all(data)
    return await stream.receive_exactly(len(data))


def node_use(host):
    return {each.resource: each.used for each in host.info().budgets.node.uses}


# --- windows --------------------------------------------------------------------------------------


async def test_a_stream_whose_window_does_not_fit_is_reset_and_its_peer_told_why(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_bytes_per_peer=2 * WINDOW)
        ours = await world.add_host(limits=limits, identify=False)
        theirs = await world.add_host(identify=False)
        ours.set_handler(CALL, echo)
        connection = await theirs.connect(ours.peer_id, ours.addresses)
        held = [await connection.open_stream([CALL]) for _ in range(2)]
        assert [await ask(each) for each in held] == [b"x"] * 2
        with ours.events.subscribe(ResourceRefused) as refused:
            third = await connection.open_stream([CALL])
            with pytest.raises(StreamResetError, match="0x1002, resource limit exceeded"):
                await ask(third)
            assert (await refused.get()).limit is Limit.PEER_BYTES
        await held[0].aclose()
        await wait_all_tasks_blocked()
        assert await ask(await connection.open_stream([CALL])) == b"x"


async def test_an_own_stream_that_does_not_fit_is_an_error_and_nothing_is_sent(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_bytes_per_peer=2 * WINDOW)
        ours = await world.add_host(limits=limits, identify=False)
        theirs = await world.add_host(identify=False)
        theirs.set_handler(CALL, echo)
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        for _ in range(2):
            await ask(await connection.open_stream([CALL]))
        with pytest.raises(ResourceLimitError) as error:
            await connection.open_stream([CALL])
        assert error.value.limit is Limit.PEER_BYTES
        assert node_use(theirs)["inbound_streams"] == 2


async def test_our_own_streams_of_one_protocol_leave_room_for_another(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_outbound_streams_per_protocol=1)
        ours = await world.add_host(limits=limits, identify=False)
        theirs = await world.add_host(identify=False)
        for protocol in (CALL, STANDING):
            theirs.set_handler(protocol, echo)
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        await ask(await connection.open_stream([CALL]))
        for protocols in ([CALL], [CALL, "/test/other"]):
            with pytest.raises(ResourceLimitError) as error:
                await connection.open_stream(protocols)
            assert error.value.limit is Limit.PROTOCOL_OUTBOUND_STREAMS
        await ask(await connection.open_stream([STANDING]))
        assert node_use(ours)["outbound_streams"] == 2


async def test_streams_reset_at_once_do_not_pile_up_handlers(autojump_clock):
    working = 0

    async def stubborn(stream):  # as one that computes, whatever becomes of its stream
        nonlocal working
        working += 1
        await stream.receive_some(1)
        await trio.sleep_forever()

    async with full_hosts() as world:
        limits = LimitSettings(max_inbound_streams_per_peer=5)
        ours = await world.add_host(limits=limits, identify=False)
        theirs = await world.add_host(identify=False)
        ours.set_handler(CALL, stubborn)
        connection = await theirs.connect(ours.peer_id, ours.addresses)
        for _ in range(50):
            stream = await connection.open_stream([CALL])
            await stream.send_all(b"x")
            await wait_all_tasks_blocked()
            stream.reset()
            await wait_all_tasks_blocked()
        assert working == 5


# --- connections ----------------------------------------------------------------------------------


async def test_who_is_refused_behind_its_handshake_is_told_why(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_connections_per_peer=1)
        ours = await world.add_host(limits=limits, identify=False)
        key = PrivateKey.from_seed(b"k" * 32)
        one, other = [await world.add_host(key, identify=False) for _ in range(2)]
        await one.connect(ours.peer_id, ours.addresses)
        with other.events.subscribe(ConnectionEnded) as ended:
            with contextlib.suppress(ConnectionClosedError):
                await other.connect(ours.peer_id, ours.addresses)
            event = await ended.get()
        assert "0x1001, resource limit exceeded" in event.reason
        assert ours.info().budgets.refusals == {Limit.PEER_CONNECTIONS: 1}
        assert node_use(ours)["connections"] == 1


async def test_a_crowded_node_trims_idle_peers_and_keeps_calls_and_the_protected(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(high_water=5, low_water=4, trim_grace=10.0)
        ours = await world.add_host(limits=limits, identify=False)
        for protocol in (CALL, STANDING):
            ours.set_handler(protocol, forever)
        peers = [await world.add_host(identify=False) for _ in range(6)]
        calling, protected, standing, *idle = peers
        ours.protect(protected.peer_id, "test")
        for each in peers[:5]:
            await each.connect(ours.peer_id, ours.addresses)
            await trio.sleep(1)
        for each, protocol in ((calling, CALL), (standing, STANDING)):
            await (await each.open_stream(ours.peer_id, [protocol])).send_all(b"x")
        await trio.sleep(30)
        assert len(ours.connections()) == 5
        with ours.events.subscribe(ConnectionEnded) as ended:
            await idle[2].connect(ours.peer_id, ours.addresses)
            gone = [(await ended.get()) for _ in range(2)]
        assert {each.connection.peer_id for each in gone} == {each.peer_id for each in idle[:2]}
        assert {each.reason for each in gone} == {"this side closed it to make room for others"}
        await trio.sleep(30)
        left = {each.peer_id for each in ours.connections()}
        assert left == {each.peer_id for each in (calling, protected, standing, idle[2])}


async def test_a_node_that_is_full_of_calls_refuses_before_any_handshake(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_inbound_connections=1)
        ours = await world.add_host(limits=limits, identify=False)
        ours.set_handler(CALL, forever)
        caller, late = [await world.add_host(identify=False) for _ in range(2)]
        await (await caller.open_stream(ours.peer_id, [CALL], ours.addresses)).send_all(b"x")
        await trio.sleep(60)
        raw = await MemoryTransport(world.network).dial(ours.addresses[0])
        assert await raw.stream.receive_some() == b""
        assert ours.info().budgets.refusals == {Limit.NODE_INBOUND_CONNECTIONS: 1}
        await ours.connect(late.peer_id, late.addresses)  # the other direction has its own places


@pytest.mark.real
async def test_thousands_of_connections_from_one_address_leave_others_served():
    limits = LimitSettings(
        exempt_subnets=(),
        connections_per_second_per_address=1.0,
        max_inbound_connections_per_address=16,
        connection_burst_per_address=32,
    )
    async with trio.open_nursery() as nursery:
        ours = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()], limits=limits)
        theirs = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        for host in (ours, theirs):
            await nursery.start(host.run)
        (address,) = await ours.listen(parse_address("/ip4/127.0.0.1/tcp/0"))
        ours.set_handler(CALL, echo)
        port = int(address.value_for_protocol("tcp"))
        used = []

        def refused():
            return sum(ours.info().budgets.refusals.values())

        async def attack(slots):
            async with slots:
                with trio.socket.socket() as attacker:
                    await attacker.bind(("127.0.0.9", 0))
                    await attacker.connect(("127.0.0.1", port))
                    with contextlib.suppress(OSError):
                        await attacker.recv(1)  # until it is cut off

        async def flood():
            slots = trio.CapacityLimiter(500)  # sockets of this process
            async with trio.open_nursery() as attackers:
                for _ in range(3000):
                    attackers.start_soon(attack, slots)
                while refused() < 2900:
                    await trio.sleep(0.01)
                    used.extend(
                        each.uses[0].used
                        for each in ours.info().budgets.top
                        if each.name == "127.0.0.9/32"
                    )
                attackers.cancel_scope.cancel()

        with trio.fail_after(60):
            connection = await theirs.connect(ours.peer_id, [address])
            served = 0
            async with trio.open_nursery() as flooding:
                flooding.start_soon(flood)
                while flooding.child_tasks:
                    stream = await connection.open_stream([CALL])
                    assert await ask(stream) == b"x"
                    await stream.aclose()
                    served += 1
        assert served > 10
        assert 0 < max(used) <= 16
        assert ours.info().budgets.refusals[Limit.ADDRESS_CONNECTION_RATE] > 2000
        nursery.cancel_scope.cancel()


async def test_a_handler_that_has_no_room_left_tells_the_peer_so(autojump_clock):
    async def full(_stream):
        raise ResourceLimitError("eight runs are served at once")

    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        ours.set_handler(CALL, full)
        stream = await theirs.open_stream(ours.peer_id, [CALL], addresses=ours.addresses)
        with pytest.raises(StreamResetError, match="0x1002, resource limit exceeded"):
            await ask(stream)
