import pytest
import trio

from p2pnode.errors import DialError
from p2pnode.testing import memory
from p2pnode.testing.conformance.transports import TransportConformance
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Drawn, Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address


class TestMemoryTransport(TransportConformance):
    sockets = False
    foreign = (*TransportConformance.foreign, "/ip6/::1/tcp/1", "/ip4/127.0.0.1/tcp/1/ws")

    @pytest.fixture
    def made(self):
        network = VirtualNetwork()
        return MemoryTransport(network), MemoryTransport(network)

    def listen_address(self, transport):
        return tcp_address(transport.ip, 0)


async def connect(network):
    dialer, listening = MemoryTransport(network), MemoryTransport(network)
    listener = await listening.listen(tcp_address(listening.ip, 0))
    ours = await dialer.dial(listener.addresses[0])
    return ours.stream, (await listener.accept()).stream


async def test_a_dial_takes_a_round_trip_and_bytes_take_one_way(autojump_clock):
    ours, theirs = await connect(VirtualNetwork(latency=Fixed(0.1)))
    assert trio.current_time() == pytest.approx(0.2)
    await ours.send_all(b"x")
    assert await theirs.receive_some() == b"x"
    assert trio.current_time() == pytest.approx(0.3)
    await theirs.aclose()
    assert await ours.receive_some() == b""
    assert trio.current_time() == pytest.approx(0.4)


async def test_bytes_do_not_overtake_each_other_on_a_jittery_link(autojump_clock):
    delays = iter([0.1, 0.1, 0.5, 0.1, 0.3, 0.0])
    ours, theirs = await connect(
        VirtualNetwork(latency=Drawn(lambda _source, _target: next(delays)))
    )
    for part in (b"a", b"b", b"c"):
        await ours.send_all(part)
    await ours.send_eof()
    assert b"".join([await theirs.receive_some() for _ in range(3)]) == b"abc"
    assert await theirs.receive_some() == b""


async def test_what_was_sent_is_kept_when_the_sender_reuses_its_buffer():
    ours, theirs = await connect(VirtualNetwork())
    buffer = bytearray(b"first")
    await ours.send_all(memoryview(buffer))
    buffer[:] = b"other"
    assert await theirs.receive_some() == b"first"


async def test_a_full_backlog_refuses_and_a_closed_listener_hangs_up(monkeypatch):
    monkeypatch.setattr(memory, "MAX_PENDING_ACCEPTS", 1)
    network = VirtualNetwork()
    machine = MemoryTransport(network)
    listener = await machine.listen(tcp_address(machine.ip, 0))
    waiting = await machine.dial(listener.addresses[0])
    with pytest.raises(DialError, match="refused"):
        await machine.dial(listener.addresses[0])
    await listener.aclose()
    assert await waiting.stream.receive_some() == b""


async def test_a_dial_cancelled_on_the_way_back_hangs_up(autojump_clock):
    network = VirtualNetwork(latency=Fixed(1.0))
    machine = MemoryTransport(network)
    listener = await machine.listen(tcp_address(machine.ip, 0))
    with trio.move_on_after(1.5):
        await machine.dial(listener.addresses[0])
    theirs = await listener.accept()
    assert await theirs.stream.receive_some() == b""
