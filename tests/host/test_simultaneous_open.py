"""Two nodes that dial each other in the same moment, each from the port it listens on."""

import ctypes
import socket
import struct
import sys

import pytest
import trio

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
            assert not len(host._dial_tools.backoff)
            assert len(host.connections()) == 1
        running.cancel_scope.cancel()
