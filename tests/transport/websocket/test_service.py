"""The WebSocket transport against others that are slow, rude or hostile."""

import contextlib
import dataclasses
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError, ProtocolError
from p2pnode.events import EventBus
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import UpgradeFailed, WebSocketTransport
from p2pnode.wire.addresses import parse_address

pytestmark = pytest.mark.real

LOOPBACK = parse_address("/ip4/127.0.0.1/tcp/0/ws")
SETTINGS = NetworkSettings(
    websocket_upgrade_timeout=1.5,
    max_websocket_upgrades=3,
    close_timeout=0.2,
    websocket_max_empty_frames=20,
)


class Plain:
    """The other end, by wsproto's own hands."""

    def __init__(self, stream, kind):
        self.stream = stream
        self.protocol = WSConnection(kind)
        self.events = []

    async def send(self, *events):
        await self.stream.send_all(b"".join(map(self.protocol.send, events)))

    async def next(self, kind):
        """Return the next event of a kind; others are skipped."""
        while True:
            while self.events:
                if isinstance(event := self.events.pop(0), kind):
                    return event
            data = await self.stream.receive_some()
            assert data, "the connection ended"
            self.protocol.receive_data(data)
            self.events += self.protocol.events()


async def dial_tcp(listener):
    port = listener.addresses[0].value_for_protocol("tcp")
    return await trio.open_tcp_stream("127.0.0.1", int(port))


async def dial_plainly(listener):
    plain = Plain(await dial_tcp(listener), ConnectionType.CLIENT)
    await plain.send(Request(host="x", target="/any"))
    await plain.next(AcceptConnection)
    return plain, (await listener.accept()).stream


async def read_to_end(stream):
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some():
            data += chunk
    return data


@pytest.fixture
def events():
    return EventBus()


@pytest.fixture
async def transport(nursery, events):
    transport = WebSocketTransport(SETTINGS, events=events)
    await nursery.start(transport.run)
    return transport


@pytest.fixture
async def listener(transport):
    listener = await transport.listen(LOOPBACK)
    yield listener
    await listener.aclose()


@pytest.fixture
async def server():
    """A TCP server under an address that says WebSocket."""
    tcp = await TcpTransport().listen(parse_address("/ip4/127.0.0.1/tcp/0"))
    tcp.websocket_address = parse_address(f"{tcp.addresses[0]}/ws")
    yield tcp
    await tcp.aclose()


# --- upgrades ------------------------------------------------------------------------------------


async def test_those_who_never_upgrade_delay_nobody_and_are_cut_off_in_time(
    transport, listener, events
):
    with events.subscribe(UpgradeFailed) as failed:
        silent = [await dial_tcp(listener) for _ in range(2)]
        await silent[0].send_all(b"GET / HTTP/1.1\r\nHost:")
        ours = await transport.dial(listener.addresses[0])
        theirs = await listener.accept()
        await ours.stream.send_all(b"x")
        assert await theirs.stream.receive_some() == b"x"
        with trio.fail_after(5):
            for each in silent:
                assert await read_to_end(each) == b""
                assert "longer than 1.5 s" in (await failed.get()).reason
                await each.aclose()
    await ours.stream.aclose()
    await theirs.stream.aclose()


async def test_when_too_many_upgrade_at_once_the_oldest_gives_way(nursery, events):
    patient = dataclasses.replace(SETTINGS, websocket_upgrade_timeout=60.0)
    transport = WebSocketTransport(patient, events=events)
    await nursery.start(transport.run)
    listener = await transport.listen(LOOPBACK)
    with events.subscribe(UpgradeFailed) as failed, trio.fail_after(5):
        silent = []
        for _ in range(3):
            silent.append(await dial_tcp(listener))
            await wait_all_tasks_blocked(0.01)
        ours = await transport.dial(listener.addresses[0])
        assert await read_to_end(silent[0]) == b""
        assert "too many upgrades" in (await failed.get()).reason
        theirs = await listener.accept()
        await ours.stream.aclose()
        await theirs.stream.aclose()
        await listener.aclose()
        for each in silent[1:]:
            assert await read_to_end(each) == b""
    for each in silent:
        await each.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is loopback on Linux")
async def test_a_crowd_from_one_address_does_not_drive_out_who_upgrades_alone(nursery, events):
    patient = dataclasses.replace(SETTINGS, websocket_upgrade_timeout=60.0)
    transport = WebSocketTransport(patient, events=events)
    await nursery.start(transport.run)
    listener = await transport.listen(LOOPBACK)
    slow = await dial_tcp(listener)
    port = int(listener.addresses[0].value_for_protocol("tcp"))
    crowd = []
    for _ in range(6):
        await wait_all_tasks_blocked(0.01)
        crowd.append(await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2"))
    await wait_all_tasks_blocked(0.01)
    with trio.fail_after(5):
        client = Plain(slow, ConnectionType.CLIENT)
        await client.send(Request(host="x", target="/"))
        await client.next(AcceptConnection)
        theirs = await listener.accept()
    await listener.aclose()
    for each in (slow, theirs.stream, *crowd):
        await trio.aclose_forcefully(each)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x13/multistream/1.0.0\n\x07/noise\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
    ],
)
async def test_garbage_is_answered_as_http_has_it_and_told(listener, events, garbage):
    with events.subscribe(UpgradeFailed) as failed, trio.fail_after(5):
        stream = await dial_tcp(listener)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
        assert (await read_to_end(stream)).startswith((b"HTTP/1.1 4", b""))
        event = await failed.get()
        assert "makes no sense" in event.reason
        assert str(event.address).startswith("/ip4/127.0.0.1/tcp/")
        await stream.aclose()


async def test_one_who_hangs_up_during_the_upgrade_is_told(listener, events):
    with events.subscribe(UpgradeFailed) as failed, trio.fail_after(5):
        stream = await dial_tcp(listener)
        await stream.send_all(b"GET /")
        await stream.aclose()
        assert "hung up" in (await failed.get()).reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "took too long"),
        (b"", "hung up"),
        (b"\x13/multistream/1.0.0\n\r\n\r\n", "makes no sense"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n", "404"),
    ],
)
async def test_a_dial_to_what_is_no_websocket_fails_and_says_why(transport, server, answer, reason):
    async def serve():
        raw = await server.accept()
        if answer is not None:
            await raw.stream.receive_some()
            await raw.stream.send_all(answer)
        else:
            assert await read_to_end(raw.stream)
        await raw.stream.aclose()

    address = server.websocket_address
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(DialError, match=f"{address}.*{reason}"), trio.fail_after(5):
            await transport.dial(address)


async def test_frames_that_come_with_the_upgrade_are_read(transport, server):
    async def serve():
        plain = Plain((await server.accept()).stream, ConnectionType.SERVER)
        await plain.next(Request)
        await plain.send(AcceptConnection(), BytesMessage(b"early"), CloseConnection(1000))
        await plain.stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        ours = await transport.dial(server.websocket_address)
        assert await ours.stream.receive_some() == b"early"
        assert await ours.stream.receive_some() == b""
        await ours.stream.aclose()


@pytest.mark.usefixtures("_ip6")
@pytest.mark.parametrize(
    ("text", "host"),
    [("/ip4/127.0.0.1/tcp/{}/ws", "127.0.0.1:{}"), ("/ip6/::1/tcp/{}/ws", "[::1]:{}")],
)
async def test_the_request_names_the_host_and_the_root(transport, text, host):
    tcp = await TcpTransport().listen(parse_address(text.format(0).removesuffix("/ws")))
    port = tcp.addresses[0].value_for_protocol("tcp")
    requests = []

    async def serve():
        plain = Plain((await tcp.accept()).stream, ConnectionType.SERVER)
        requests.append(await plain.next(Request))
        await plain.stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(DialError):
            await transport.dial(parse_address(text.format(port)))
    await tcp.aclose()
    assert requests[0].host == host.format(port)
    assert requests[0].target == "/"
    assert requests[0].subprotocols == []


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (TextMessage("x"), 1003, "text came"),
        (b"\xf2\x80\x00\x00\x00\x00", 1002, "Reserved bit"),
        (b"\x89\x80\x00\x00\x00\x00" * 21, 1008, "carried nothing"),
        (b"\x02\x80\x00\x00\x00\x00" + b"\x00\x80\x00\x00\x00\x00" * 21, 1008, "carried nothing"),
    ],
)
async def test_each_broken_rule_is_typed_here_and_told_there(listener, frame, code, reason):
    plain, theirs = await dial_plainly(listener)
    if isinstance(frame, bytes):
        await plain.stream.send_all(frame)
    else:
        await plain.send(frame)
    with trio.fail_after(5):
        for _ in range(2):
            with pytest.raises(ProtocolError, match=reason):
                await theirs.receive_some()
        with pytest.raises(ProtocolError, match=reason):
            await theirs.send_all(b"x")
        assert (await plain.next(CloseConnection)).code == code
    await theirs.aclose()
    await plain.stream.aclose()


async def test_pings_are_answered_although_nobody_reads(listener):
    plain, theirs = await dial_plainly(listener)
    await plain.send(Ping(b"are you there"))
    with trio.fail_after(5):
        assert (await plain.next(Pong)).payload == b"are you there"
    await theirs.aclose()
    await plain.stream.aclose()


async def test_a_message_without_end_is_read_as_it_comes(listener):
    plain, theirs = await dial_plainly(listener)
    piece = bytes(50_000)
    with trio.fail_after(5):
        for number in range(100):
            fragment = BytesMessage(piece, message_finished=False)
            await plain.send(fragment)
            received = 0
            while received < len(piece):
                received += len(await theirs.receive_some())
            assert received == len(piece), number
    await trio.aclose_forcefully(theirs)
    await plain.stream.aclose()


async def test_one_frame_longer_than_any_memory_is_read_as_it_comes(listener):
    plain, theirs = await dial_plainly(listener)
    await plain.stream.send_all(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4))
    with trio.fail_after(5):
        for _ in range(50):
            await plain.stream.send_all(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(await theirs.receive_some())
    await trio.aclose_forcefully(theirs)
    await plain.stream.aclose()


async def test_large_sends_go_out_in_pieces_of_the_configured_size(listener):
    plain, theirs = await dial_plainly(listener)
    size = SETTINGS.websocket_max_message
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, bytes(2 * size + 10))
        sizes, received = [], 0
        while sum(sizes) < 2 * size + 10:
            event = await plain.next(BytesMessage)
            received += len(event.data)
            if event.message_finished:
                sizes.append(received)
                received = 0
    assert sizes == [size, size, 10]
    await trio.aclose_forcefully(theirs)
    await plain.stream.aclose()


async def test_a_close_waits_for_its_answer_but_not_for_ever(listener):
    plain, theirs = await dial_plainly(listener)
    with trio.fail_after(5):
        await theirs.aclose()
        assert (await plain.next(CloseConnection)).code == 1000
        assert await read_to_end(plain.stream) == b""
    await plain.stream.aclose()


@pytest.mark.parametrize(("code", "clean"), [(1000, True), (1001, True), (1011, False)])
async def test_a_goodbye_is_an_end_unless_it_complains(listener, code, clean):
    plain, theirs = await dial_plainly(listener)
    await plain.send(BytesMessage(b"last"), CloseConnection(code))
    assert await theirs.receive_some() == b"last"
    if clean:
        assert await theirs.receive_some() == b""
    else:
        with pytest.raises(trio.BrokenResourceError, match="1011"):
            await theirs.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")
    await theirs.aclose()
    await plain.stream.aclose()


async def test_one_that_vanishes_without_a_goodbye_is_gone(listener):
    plain, theirs = await dial_plainly(listener)
    await plain.stream.aclose()
    with pytest.raises(trio.BrokenResourceError, match="gone"):
        await theirs.receive_some()
    await theirs.aclose()


async def test_reading_from_two_tasks_is_refused(listener):
    plain, theirs = await dial_plainly(listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await theirs.receive_some()
        await plain.send(BytesMessage(b"x"))
    await theirs.aclose()
    await plain.stream.aclose()


# --- the transport -------------------------------------------------------------------------------


async def test_dials_come_from_the_listening_port(nursery, transport, listener):
    other = WebSocketTransport(SETTINGS)
    await nursery.start(other.run)
    target = await other.listen(LOOPBACK)
    ours = await transport.dial(target.addresses[0])
    assert ours.local_address == listener.addresses[0]
    await ours.stream.aclose()
    await target.aclose()


async def test_when_the_transport_ends_its_connections_end():
    async with trio.open_nursery() as nursery:
        transport = WebSocketTransport(SETTINGS)
        await nursery.start(transport.run)
        listener = await transport.listen(LOOPBACK)
        plain, theirs = await dial_plainly(listener)
        nursery.cancel_scope.cancel()
    assert await read_to_end(plain.stream) == b""
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")
    await theirs.aclose()
    await plain.stream.aclose()
    await listener.aclose()


async def test_a_close_does_not_wait_for_an_answer_that_no_one_would_read(autojump_clock):
    async with trio.open_nursery() as nursery:
        transport = WebSocketTransport(dataclasses.replace(SETTINGS, close_timeout=1000.0))
        await nursery.start(transport.run)
        listener = await transport.listen(LOOPBACK)
        plain, theirs = await dial_plainly(listener)
        nursery.start_soon(close_shielded, theirs)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio.current_time() < 1000
    await plain.stream.aclose()
    await listener.aclose()


async def close_shielded(stream):
    with trio.CancelScope(shield=True):
        await stream.aclose()


async def test_a_transport_that_does_not_run_says_so():
    transport = WebSocketTransport()
    with pytest.raises(RuntimeError, match="does not run"):
        await transport.listen(LOOPBACK)
    with pytest.raises(RuntimeError, match="does not run"):
        await transport.dial(parse_address("/ip4/127.0.0.1/tcp/1/ws"))
