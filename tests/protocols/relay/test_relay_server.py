import pytest
import trio

from p2pnode.config import RelaySettings
from p2pnode.errors import ConnectionClosedError, DialError, RelayRefusedError, StreamResetError
from p2pnode.host import ReachabilityChanged
from p2pnode.host.interfaces import Reachability
from p2pnode.protocols.relay.exchanges import ask_hop, receive, send_stop
from p2pnode.protocols.relay.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopMessage,
    HopType,
    Limit,
    Status,
    StopMessage,
    StopType,
    decode_hop,
    decode_stop,
)
from p2pnode.protocols.relay.server import CircuitEnded, ReservationEnded
from p2pnode.protocols.relay.vouchers import Voucher
from p2pnode.testing.network import Nat
from p2pnode.wire.addresses import split_p2p

KIB = 1024
MIB = 1024 * KIB
RESERVE = HopMessage(type=HopType.RESERVE)


def connect_to(host):
    return HopMessage(type=HopType.CONNECT, peer=host.peer_id)


async def ask(host, relay, message):
    """Ask a relay by hand; returns the answer and the stream."""
    connection = await host.connect(relay.peer_id, relay.addresses)
    stream = await connection.open_stream([HOP_PROTOCOL])
    return await ask_hop(stream, message), stream


class End:
    """A peer that takes every circuit, and keeps the streams of them."""

    def __init__(self, host):
        self.host = host
        self.requests = []
        self._send, self._receive = trio.open_memory_channel(16)
        self.status = Status.OK
        host.set_handler(STOP_PROTOCOL, self.take)

    async def take(self, stream):
        self.requests.append(decode_stop(await receive(stream)))
        if self.status is None:
            await trio.sleep_forever()
        await send_stop(stream, StopMessage(type=StopType.STATUS, status=self.status))
        await self._send.send(stream)
        await trio.sleep_forever()

    async def taken(self):
        return await self._receive.receive()


@pytest.fixture
async def trio_of(place):
    """Make a relay with some settings, a source, and a target that holds a reservation."""

    async def make(**settings):
        relay = await place.add_relay(**settings)
        source, target = [await place.world.add_host() for _ in range(2)]
        answer, stream = await ask(target, relay, RESERVE)
        assert answer.status == Status.OK
        await stream.aclose()
        return relay, source, End(target)

    return make


async def circuit(relay, source, end):
    """Open a circuit by hand; returns both its streams."""
    answer, near = await ask(source, relay, connect_to(end.host))
    assert answer.status == Status.OK
    return near, await end.taken()


async def test_a_reservation_says_until_when_where_and_for_whom(place, autojump_clock):
    relay = await place.add_relay(reservation_lifetime=1800.0)
    host = await place.world.add_host()
    answer, stream = await ask(host, relay, RESERVE)
    assert (answer.type, answer.status) == (HopType.STATUS, Status.OK)
    assert answer.limit == Limit(duration=120, data=128 * KIB)
    voucher = Voucher.open(answer.reservation.voucher)
    assert (voucher.relay, voucher.peer) == (relay.peer_id, host.peer_id)
    assert voucher.expiration == answer.reservation.expire
    assert [split_p2p(each) for each in answer.reservation.addresses] == [
        (each, relay.peer_id) for each in relay.addresses
    ]
    assert relay.is_protected(host.peer_id)
    assert await stream.receive_some() == b""


async def test_a_circuit_tells_both_ends_its_limit_and_the_target_who_asks(trio_of, autojump_clock):
    relay, source, end = await trio_of(circuit_bytes=1000, circuit_seconds=60.0)
    answer, _ = await ask(source, relay, connect_to(end.host))
    limit = Limit(duration=60, data=1000)
    assert answer.limit == limit
    assert end.requests == [StopMessage(type=StopType.CONNECT, peer=source.peer_id, limit=limit)]


async def test_bytes_and_ends_go_both_ways(trio_of, place, autojump_clock):
    relay, source, end = await trio_of()
    with relay.events.subscribe(CircuitEnded) as ended:
        near, far = await circuit(relay, source, end)
        await near.send_all(b"there")
        assert await far.receive_exactly(5) == b"there"
        await near.send_eof()
        assert await far.receive_some() == b""
        await far.send_all(b"and back")
        assert await near.receive_exactly(8) == b"and back"
        await far.send_eof()
        assert await near.receive_some() == b""
        with trio.fail_after(1):
            event = await ended.get()
    assert (event.sent, event.received, event.reason) == (5, 8, "both ends have finished")
    assert place.server(relay).info().circuits == 0


async def test_a_reset_at_one_end_is_one_at_the_other(trio_of, autojump_clock):
    relay, source, end = await trio_of()
    near, far = await circuit(relay, source, end)
    near.reset()
    with pytest.raises(StreamResetError):
        await far.receive_some()


@pytest.mark.parametrize("way", [0, 1])
async def test_a_circuit_carries_what_it_may_to_the_last_byte_and_is_cut_off_then(
    trio_of, way, autojump_clock
):
    relay, source, end = await trio_of(circuit_bytes=100_000)
    ends = await circuit(relay, source, end)
    sender, receiver = ends[way], ends[1 - way]
    with relay.events.subscribe(CircuitEnded) as ended:
        await sender.send_all(bytes(100_000))
        assert await receiver.receive_exactly(100_000) == bytes(100_000)
        await receiver.send_all(b"the other way is counted apart")
        await sender.receive_exactly(10)
        await sender.send_all(b"x")
        with pytest.raises(StreamResetError):
            await receiver.receive_some()
        event = await ended.get()
    assert event.reason == "it has carried all that it may"
    assert (event.sent, event.received)[way] == 100_000


async def test_a_circuit_is_cut_off_when_its_time_is_over(trio_of, autojump_clock):
    relay, source, end = await trio_of(circuit_seconds=60.0)
    near, far = await circuit(relay, source, end)
    began = trio.current_time()
    with relay.events.subscribe(CircuitEnded) as ended:
        async with trio.open_nursery() as nursery:

            async def chat():
                while True:
                    await near.send_all(b"x")
                    await trio.sleep(1)

            nursery.start_soon(chat)
            event = await ended.get()
            nursery.cancel_scope.cancel()
    assert event.reason == "its time was over"
    assert trio.current_time() - began == pytest.approx(60.0, abs=0.2)
    assert far.protocol == STOP_PROTOCOL


async def test_a_circuit_that_nobody_uses_is_ended(trio_of, autojump_clock):
    relay, source, end = await trio_of(circuit_seconds=0, circuit_idle_timeout=30.0)
    near, far = await circuit(relay, source, end)
    with relay.events.subscribe(CircuitEnded) as ended:
        for _ in range(5):
            await trio.sleep(20)
            await far.send_all(b"x")
        last = trio.current_time()
        event = await ended.get()
    assert event.reason == "nothing moved on it for too long"
    assert trio.current_time() - last == pytest.approx(30.0, abs=0.2)
    assert await near.receive_exactly(5) == b"xxxxx"


async def test_a_reader_that_reads_nothing_stops_the_sender_and_fills_no_memory(
    trio_of, autojump_clock
):
    relay, source, end = await trio_of(circuit_bytes=0, circuit_seconds=0)
    near, _ = await circuit(relay, source, end)
    sent = 0
    with trio.move_on_after(30):
        while True:
            await near.send_all(bytes(64 * KIB))
            sent += 64 * KIB
    # What the windows of the two streams and the send buffers on the way hold, and no more.
    assert sent < 4 * MIB
    sessions = [each._muxer.holdings for each in relay._connections]
    held = sum(each["unread bytes"] + each["unwritten bytes"] for each in sessions)
    assert 64 * KIB < held < 2 * MIB


async def test_a_slow_reader_gets_every_byte_in_order(trio_of, autojump_clock):
    relay, source, end = await trio_of(circuit_bytes=0, circuit_seconds=0)
    near, far = await circuit(relay, source, end)
    payload = b"".join(number.to_bytes(4, "big") for number in range(MIB // 2))
    received = bytearray()

    async def send():
        await near.send_all(payload)
        await near.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await far.receive_some(100_000):
            received += data
            await trio.sleep(0.5)
    assert received == payload


async def test_all_circuits_together_keep_to_the_rate(trio_of, place, autojump_clock):
    relay, source, end = await trio_of(circuit_bytes=0, circuit_seconds=0, max_rate=MIB)
    first, second = [await circuit(relay, source, end) for _ in range(2)]
    began = trio.current_time()
    finished = []

    async def send(near):
        await near.send_all(bytes(2 * MIB))
        await near.send_eof()

    async def drain(far):
        while await far.receive_some(64 * KIB):
            pass
        finished.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for near, far in (first, second):
            nursery.start_soon(send, near)
            nursery.start_soon(drain, far)
    assert finished[-1] == pytest.approx(4.0, rel=0.1)
    assert finished[0] == pytest.approx(4.0, rel=0.1)  # neither went first


# --- refusals -----------------------------------------------------------------------------------


async def test_nobody_is_reached_who_has_no_reservation_any_more(trio_of, autojump_clock):
    relay, source, end = await trio_of()
    stranger = await ask(source, relay, connect_to(source))
    assert stranger[0].status == Status.PERMISSION_DENIED
    with relay.events.subscribe(ReservationEnded) as ended:
        await end.host.connection_to(relay.peer_id).aclose()
        await ended.get()
    assert not relay.is_protected(end.host.peer_id)
    answer, _ = await ask(source, relay, connect_to(end.host))
    assert answer.status == Status.NO_RESERVATION


@pytest.mark.parametrize("status", [None, Status.RESOURCE_LIMIT_EXCEEDED])
async def test_a_target_that_does_not_take_the_circuit_costs_a_while_at_most(
    trio_of, place, status, autojump_clock
):
    relay, source, end = await trio_of(answer_timeout=5.0)
    end.status = status
    began = trio.current_time()
    answer, _ = await ask(source, relay, connect_to(end.host))
    assert answer.status == Status.CONNECTION_FAILED
    assert trio.current_time() - began < 6.0
    assert place.server(relay).info().circuits == 0


async def test_who_asks_nothing_is_not_waited_for(trio_of, autojump_clock):
    relay, source, _ = await trio_of(request_timeout=5.0)
    connection = await source.connect(relay.peer_id, relay.addresses)
    stream = await connection.open_stream([HOP_PROTOCOL])
    await stream.send_all(b"\x02")
    with trio.fail_after(6), pytest.raises(StreamResetError):
        await stream.receive_some()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x01\xff", Status.MALFORMED_MESSAGE),
        (b"\x02\x08\x01", Status.MALFORMED_MESSAGE),  # a CONNECT to nobody
        (b"\x05\x08\x02\x28\xcc\x01", Status.UNEXPECTED_MESSAGE),  # an answer
    ],
)
async def test_a_request_that_is_none_is_told_so(trio_of, sent, status, autojump_clock):
    relay, source, _ = await trio_of()
    connection = await source.connect(relay.peer_id, relay.addresses)
    stream = await connection.open_stream([HOP_PROTOCOL])
    await stream.send_all(sent)
    assert decode_hop(await receive(stream)).status == status


async def test_a_relay_does_nothing_for_who_comes_through_a_relay(place, autojump_clock):
    first = await place.add_relay(circuit_bytes=0, circuit_seconds=0)
    second = await place.add_private(first, server="always")
    host = await place.add_private(first, nat=Nat.SYMMETRIC)
    connection = await host.connect(second.peer_id, second.relayed)
    assert connection.is_relayed
    for message in (RESERVE, connect_to(first)):
        stream = await connection.open_stream([HOP_PROTOCOL])
        assert (await ask_hop(stream, message)).status == Status.PERMISSION_DENIED


async def test_a_household_gets_so_many_reservations(place, autojump_clock):
    relay = await place.add_relay(max_reservations_per_address=2)
    router = place.world.network.add_router(Nat.PORT_RESTRICTED)
    statuses = []
    for _ in range(3):
        host = await place.world.add_host(machine=place.world.network.add_machine(nat=router))
        answer, _ = await ask(host, relay, RESERVE)
        statuses.append(answer.status)
    assert statuses == [Status.OK, Status.OK, Status.RESERVATION_REFUSED]


async def test_a_dial_through_a_relay_that_refuses_says_why(place, autojump_clock):
    relay = await place.add_relay(max_circuits=1)
    target, *sources = [await place.add_private(relay) for _ in range(3)]
    await sources[0].connect(target.peer_id, target.relayed)
    with pytest.raises(DialError, match="resource limit exceeded"):
        await sources[1].connect(target.peer_id, target.relayed)
    assert issubclass(RelayRefusedError, DialError)


# --- when to serve ------------------------------------------------------------------------------


async def test_a_node_relays_while_it_is_public(place, autojump_clock):
    host = await place.world.add_host(relay=RelaySettings(client="never"))
    other = await place.world.add_host()

    def find(reachability):
        host.events.emit(ReachabilityChanged(reachability=reachability))

    assert HOP_PROTOCOL not in host.protocols
    find(Reachability.PUBLIC)
    assert (await ask(other, host, RESERVE))[0].status == Status.OK
    find(Reachability.UNKNOWN)
    assert place.server(host).info().reservations == 1
    find(Reachability.PRIVATE)
    assert HOP_PROTOCOL not in host.protocols
    assert place.server(host).info().reservations == 0
    assert not host.is_protected(other.peer_id)


async def test_a_relay_that_dies_mid_transfer_ends_the_streams_through_it_soon(
    place, autojump_clock
):
    relay = await place.add_relay(circuit_bytes=0, circuit_seconds=0)
    ours, theirs = await place.add_private(relay), await place.add_private(relay)
    received = []

    async def take(stream):
        try:
            while data := await stream.receive_some(65536):
                received.append(len(data))
        except (ConnectionClosedError, StreamResetError):
            received.append("cut")
            raise

    theirs.set_handler("/test/sink", take)
    connection = await ours.connect(theirs.peer_id, theirs.relayed)
    stream = await connection.open_stream(["/test/sink"])
    await stream.send_all(bytes(MIB))
    await trio.sleep(0.2)
    place.world.kill(relay)

    async def send():
        while True:
            await stream.send_all(bytes(MIB))

    with trio.fail_after(5), pytest.raises((ConnectionClosedError, StreamResetError)):
        await send()
    await trio.sleep(1)
    assert received[-1] == "cut"
    assert ours.connection_to(theirs.peer_id) is None
    assert theirs.connection_to(ours.peer_id) is None
    assert theirs.relayed == []
