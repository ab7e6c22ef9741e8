"""Two nodes that dial each other in the same moment, each from the port it listens on."""

import ctypes
import socket
import struct
import sys
from functools import partial

import pytest
import trio

from p2pnode.config import DcutrSettings
from p2pnode.errors import HolePunchError
from p2pnode.host.node import NetworkHost
from p2pnode.transport.reuse import CAN_REUSE
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

_SO_ATTACH_FILTER = 26  # Linux, socket(7)
_SO_DETACH_FILTER = 27
_RETURN_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: keep 0 bytes of each packet

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (sys.platform == "linux" and CAN_REUSE), reason="Linux socket filters"),
]


class Deaf:
    """Makes a listener miss connections: so a dial stays on its way until the other crosses it."""

    def __init__(self, opened):
        self._opened = opened

    def __enter__(self):
        program = ctypes.create_string_buffer(_RETURN_NOTHING)
        filter_ = struct.pack("HL", 1, ctypes.addressof(program))
        self._opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)

    def __exit__(self, *_):
        self._opened.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def host_of(number, tail):
    transport = WebSocketTransport() if tail else TcpTransport()
    return NetworkHost(PrivateKey.from_seed(bytes([number]) * 32), transports=[transport])


def socket_of(host):
    listener = host._local.listeners[0]
    listener = getattr(listener, "_tcp", listener)
    return listener._listener.socket


@pytest.mark.parametrize("tail", ["", "/ws"])
@pytest.mark.parametrize("first_is_smaller", [True, False])
async def test_both_get_a_connection_and_no_address_is_left_alone(tail, first_is_smaller):
    hosts = sorted((host_of(1, tail), host_of(2, tail)), key=lambda each: each.peer_id)
    if not first_is_smaller:
        hosts.reverse()
    first, second = hosts
    connections = {}

    async def connect(one, other):
        connections[one] = await one.connect(other.peer_id, other.addresses, timeout=5)

    async with trio.open_nursery() as running:
        for host in hosts:
            await running.start(host.run)
            await host.listen(parse_address(f"/ip4/127.0.0.1/tcp/0{tail}"))
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                with Deaf(socket_of(second)):
                    nursery.start_soon(connect, first, second)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.start_soon(connect, second, first)
        assert connections[first].direction != connections[second].direction
        smaller = min(hosts, key=lambda each: each.peer_id)
        dialled = connections[smaller]
        assert dialled.direction == "outbound"
        assert dialled.local_address not in smaller.addresses  # the crossing one was its first
        for host in hosts:
            assert not len(host._backoff)
            assert len(host.connections()) == 1
        running.cancel_scope.cancel()


# --- expected, and in roles agreed on before ------------------------------------------------------

DCUTR = DcutrSettings(private_addresses=True, attempt_timeout=3.0, role_patience=0.1)


class Punching:
    """Two hosts that dial each other; `outcome` has what became of each host's dial."""

    def __init__(self, nursery):
        self.hosts = [host_of(number, "") for number in (1, 2)]
        self.outcome = {}
        self._nursery = nursery

    async def start(self):
        for host in self.hosts:
            await self._nursery.start(host.run)
            await host.listen(parse_address("/ip4/127.0.0.1/tcp/0"))

    async def punch(self, host, *, is_client):
        (other,) = (each for each in self.hosts if each is not host)
        try:
            self.outcome[host] = await host.punch(
                other.peer_id, other.addresses, is_client=is_client, settings=DCUTR
            )
        except HolePunchError as error:
            self.outcome[host] = error


@pytest.fixture
async def punching(nursery):
    world = Punching(nursery)
    await world.start()
    return world


@pytest.mark.parametrize("first_is_client", [True, False])
async def test_one_connection_in_the_roles_agreed_on_comes_of_two_dials(punching, first_is_client):
    first, second = punching.hosts
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with Deaf(socket_of(second)):
                nursery.start_soon(partial(punching.punch, first, is_client=first_is_client))
                await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(partial(punching.punch, second, is_client=not first_is_client))
    ours, theirs = punching.outcome[first], punching.outcome[second]
    assert (ours.direction, theirs.direction) == (
        ("outbound", "inbound") if first_is_client else ("inbound", "outbound")
    )
    assert ours.is_punched
    assert theirs.is_punched
    assert [ours.local_address] == first.addresses
    assert [theirs.local_address] == second.addresses
    assert [len(host.connections()) for host in punching.hosts] == [1, 1]
    await echo(ours, second)
    await echo(theirs, first)


async def echo(connection, there):
    async def handler(stream):
        await stream.send_all(await stream.receive_exactly(5))

    there.set_handler("/echo", handler)
    stream = await connection.open_stream(["/echo"])
    await stream.send_all(b"hello")
    assert await stream.receive_exactly(5) == b"hello"
    await stream.aclose()


async def test_two_that_both_begin_get_nothing_and_may_try_again_at_once(punching):
    """Older go-libp2p has the roles the other way round; the third attempt suits them."""
    first, second = punching.hosts
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with Deaf(socket_of(second)):
                nursery.start_soon(partial(punching.punch, first, is_client=True))
                await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(partial(punching.punch, second, is_client=True))
        for host in punching.hosts:
            ((_, reason),) = punching.outcome[host].reasons.items()
            assert "both sides began" in reason or "hung up" in reason
        # The same pair of endpoints is free: the failed connection was reset on both sides.
        await punching.punch(first, is_client=True)
    assert [punching.outcome[first].local_address] == first.addresses


@pytest.mark.parametrize("is_client", [True, False])
async def test_who_is_accepted_by_a_listener_begins_whatever_was_agreed_on(punching, is_client):
    """The other end's dial was late, so that it takes part as a listener does."""
    first, second = punching.hosts
    await punching.punch(first, is_client=is_client)
    connection = punching.outcome[first]
    assert connection.direction == "outbound"
    (theirs,) = second.connections()
    assert theirs.direction == "inbound"
    await echo(connection, second)


async def test_a_connection_that_comes_by_itself_ends_the_dials(punching):
    first, second = punching.hosts
    refuses = [parse_address("/ip4/127.0.0.1/tcp/1")]
    punch = partial(first.punch, second.peer_id, refuses, is_client=False, settings=DCUTR)
    made = []

    async def run():
        made.append(await punch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await second.connect(first.peer_id, first.addresses, timeout=5)
    assert [each.direction for each in made] == ["inbound"]
    assert not made[0].is_punched


async def test_who_does_not_answer_is_told_of_with_each_address(punching):
    first, second = punching.hosts
    addresses = [*second.addresses, parse_address("/ip4/127.0.0.1/tcp/1")]
    with Deaf(socket_of(second)), pytest.raises(HolePunchError) as caught:
        await first.punch(second.peer_id, addresses, is_client=True, settings=DCUTR)
    silent, refused = caught.value.reasons.values()
    assert silent == "no answer in time"
    assert "connection refused" in refused
    assert first.connections() == []
