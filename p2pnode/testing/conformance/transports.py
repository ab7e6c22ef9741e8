"""What every transport must do.

Subclass `TransportConformance` as `Test…`, override its fixture `made` and its method, and declare
what the transport cannot do by class attributes; the tests in question are skipped with a reason.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from multiaddr import Multiaddr
from trio.testing import (
    check_half_closeable_stream,
    check_two_way_stream,
    wait_all_tasks_blocked,
)

from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError
from p2pnode.testing.cancellation import Moment, walk
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import is_loopback, parse_address

MANY = 50
MEGABYTE = bytes(range(256)) * 4096
OPEN_FILES = Path("/proc/self/fd")


class TransportConformance(ABC):
    """The tests; the transport that dials and the one that listens may be one.

    Attributes:
        half_close: whether streams can be ended in one direction only.
        resumable: whether a stream can go on after a send on it was cancelled.
        wildcard: an address that means all of this machine's interfaces, with port 0, or None.
        named: an address with a name in it that the transport understands, or None.
        sockets: whether connections are open files of this process.
        foreign: addresses of other transports.
    """

    half_close: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    wildcard: ClassVar[str | None] = None
    named: ClassVar[str | None] = None
    sockets: ClassVar[bool] = True
    foreign: ClassVar[tuple[str, ...]] = (
        "/ip4/127.0.0.1/udp/1",
        "/unix/tmp",
        "/ip4/127.0.0.1",
        "/dnsaddr/node.example",
        "/ip4/127.0.0.1/tcp/1/tls",
        "/ip4/127.0.0.1/tcp/1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic-v1",
    )

    @pytest.fixture
    def made(self) -> tuple[Transport, Transport]:
        """The transport that dials and the one that listens."""
        raise NotImplementedError("override this fixture")

    @abstractmethod
    def listen_address(self, transport: Transport) -> Multiaddr:
        """Return an address with port 0 on which the second transport can listen."""

    @pytest.fixture
    def _half_closing(self) -> None:
        if not self.half_close:
            pytest.skip("streams of this transport have no half-close")

    @pytest.fixture
    def _tearable(self) -> None:
        if self.resumable:
            pytest.skip("after a cancelled send this transport goes on with the next one")

    @pytest.fixture
    def _open_files(self) -> None:
        if not self.sockets:
            pytest.skip("connections of this transport are no open files")

    @pytest.fixture
    def wildcard_address(self) -> Multiaddr:
        if self.wildcard is None:
            pytest.skip("this transport has no wildcard address, or none that its peers can trust")
        return parse_address(self.wildcard)

    @pytest.fixture
    def named_address(self) -> Multiaddr:
        if self.named is None:
            pytest.skip("this transport has no names")
        return parse_address(self.named)

    @pytest.fixture
    async def transports(
        self, nursery: trio.Nursery, made: tuple[Transport, Transport]
    ) -> tuple[Transport, Transport]:
        """Both transports, carried until the test ends."""
        for transport in dict.fromkeys(made):
            await nursery.start(transport.run)
        return made

    @pytest.fixture
    def dialer(self, transports: tuple[Transport, Transport]) -> Transport:
        return transports[0]

    @pytest.fixture
    def listening(self, transports: tuple[Transport, Transport]) -> Transport:
        return transports[1]

    @pytest.fixture
    async def listener(self, listening: Transport) -> AsyncIterator[Listener]:
        listener = await listening.listen(self.listen_address(listening))
        yield listener
        await listener.aclose()

    @pytest.fixture
    async def pair(
        self, dialer: Transport, listener: Listener
    ) -> AsyncIterator[tuple[RawConnection, RawConnection]]:
        """Both ends of one connection, closed when the test ends."""
        ours, theirs = await _connect(dialer, listener)
        yield ours, theirs
        await _cut(ours, theirs)

    # --- streams --------------------------------------------------------------------------------

    async def test_streams_keep_every_promise_trio_makes_of_them(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async def make() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            ours, theirs = await _connect(dialer, listener)
            return ours.stream, theirs.stream

        async def make_clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            ours, theirs = await make()
            await _clog(ours)
            await _clog(theirs)
            return ours, theirs

        clogged = make_clogged if self.resumable else None
        if self.half_close:
            await check_half_closeable_stream(make, clogged)  # type: ignore[arg-type]  # declared
        else:
            await check_two_way_stream(make, clogged)

    async def test_bytes_arrive_whole_and_in_order_in_both_directions_at_once(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        there, back = MEGABYTE * 4, MEGABYTE[::-1] * 4
        received: dict[str, bytes] = {}

        async def read(name: str, stream: trio.abc.Stream) -> None:
            received[name] = await _read(stream, len(there))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, there)
            nursery.start_soon(theirs.send_all, back)
            nursery.start_soon(read, "ours", ours)
            nursery.start_soon(read, "theirs", theirs)
        assert received["theirs"] == there
        assert received["ours"] == back

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_any_bytes_are_taken_and_the_sender_may_reuse_its_buffer(
        self,
        pair: tuple[RawConnection, RawConnection],
        kind: type[bytes] | type[bytearray] | type[memoryview],
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        buffer = bytearray(MEGABYTE[:5000])
        await ours.send_all(kind(buffer))
        buffer[:] = bytes(5000)
        await ours.send_all(kind(b""))
        await ours.send_all(kind(b"end"))
        assert await _read(theirs, 5003) == MEGABYTE[:5000] + b"end"

    @pytest.mark.parametrize("size", [1, 7, 1000])
    async def test_what_is_read_in_small_pieces_is_read_whole(
        self, pair: tuple[RawConnection, RawConnection], size: int
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await ours.send_all(MEGABYTE[:2000])
        await ours.send_all(MEGABYTE[2000:3000])
        received = bytearray()
        while len(received) < 3000:
            piece = await theirs.receive_some(size)
            assert 1 <= len(piece) <= size
            received += piece
        assert received == MEGABYTE[:3000]

    async def test_a_cancelled_read_loses_no_bytes(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        received = bytearray()
        for number in range(100):
            with trio.CancelScope() as scope:
                if number % 2:
                    scope.cancel()
                else:
                    scope.deadline = trio.current_time() + 0.001
                received += await theirs.receive_some()
            await ours.send_all(number.to_bytes(1, "big") * 3)
        received += await _read(theirs, 300 - len(received))
        assert received == b"".join(number.to_bytes(1, "big") * 3 for number in range(100))

    async def test_what_was_sent_before_a_close_is_read_before_the_end(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await ours.send_all(MEGABYTE[:100_000])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            assert await _read(theirs, 100_000) == MEGABYTE[:100_000]
            assert await theirs.receive_some() == b""
            assert await theirs.receive_some() == b""

    @pytest.mark.usefixtures("_half_closing")
    async def test_after_one_side_finished_the_other_can_still_answer(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await _send_and_finish(ours, b"question")
        assert await _read_to_end(theirs) == b"question"
        await _send_and_finish(theirs, b"answer")
        assert await _read_to_end(ours) == b"answer"

    async def test_a_sender_waits_for_a_reader_that_does_not_read(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        assert await _clog(pair[0].stream) < 64 * len(MEGABYTE)

    async def test_closing_wakes_our_own_reader(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pair[0].stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            await pair[0].stream.aclose()

    async def test_closing_wakes_our_own_sender(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await _flood(pair[0].stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)
            await pair[0].stream.aclose()

    async def test_a_peer_that_is_gone_breaks_our_sender(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await _flood(pair[0].stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)
            await trio.aclose_forcefully(pair[1].stream)

    @pytest.mark.usefixtures("_tearable")
    async def test_a_cancelled_send_leaves_no_gap_in_the_stream(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await _clog(ours)
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"x")
        await trio.aclose_forcefully(ours)
        received = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):
            while chunk := await theirs.receive_some():
                received += chunk
        assert received == (MEGABYTE * (len(received) // len(MEGABYTE) + 1))[: len(received)]

    async def test_many_connections_stay_apart(self, dialer: Transport, listener: Listener) -> None:
        async def serve() -> None:
            for _ in range(MANY):
                nursery.start_soon(_echo_line, await listener.accept())

        async def ask(number: int) -> None:
            connection = await dialer.dial(listener.addresses[0])
            await connection.stream.send_all(b"%d\n" % number)
            assert await _read_line(connection.stream) == b"%d\n" % number
            await connection.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(MANY):
                nursery.start_soon(ask, number)

    # --- addresses ------------------------------------------------------------------------------

    async def test_both_ends_agree_on_the_addresses(
        self, pair: tuple[RawConnection, RawConnection], listener: Listener
    ) -> None:
        ours, theirs = pair
        assert ours.remote_address == theirs.local_address == listener.addresses[0]
        assert ours.local_address == theirs.remote_address

    async def test_port_zero_becomes_a_real_and_fresh_port(
        self, listening: Transport, listener: Listener
    ) -> None:
        second = await listening.listen(self.listen_address(listening))
        ports = {each.addresses[0].value_for_protocol("tcp") for each in (listener, second)}
        assert len(ports) == 2
        assert "0" not in ports
        await second.aclose()

    async def test_a_wildcard_listener_names_addresses_that_can_be_dialled(
        self, wildcard_address: Multiaddr, dialer: Transport, listening: Transport
    ) -> None:
        listener = await listening.listen(wildcard_address)
        assert is_loopback(listener.addresses[-1])
        for address in listener.addresses:
            ours = await dialer.dial(address)
            theirs = await listener.accept()
            assert (theirs.local_address, theirs.remote_address) == (address, ours.local_address)
            await _cut(ours, theirs)
        await listener.aclose()

    @pytest.mark.parametrize(
        "text",
        [
            "/dns4/localhost/tcp/1",
            "/ip4/192.0.2.77/tcp/0",
            "/ip4/127.0.0.1/udp/1",
        ],
    )
    async def test_what_is_no_address_of_this_machine_cannot_be_listened_on(
        self, listening: Transport, text: str
    ) -> None:
        address = _like(self.listen_address(listening), text)
        with pytest.raises(InvalidAddressError, match=str(address)):
            await listening.listen(address)

    async def test_addresses_of_other_transports_are_neither_dialled_nor_listened_on(
        self, dialer: Transport, listening: Transport
    ) -> None:
        for text in self.foreign:
            address = parse_address(text)
            assert not dialer.can_dial(address)
            with pytest.raises(DialError, match=text):
                await dialer.dial(address)
            with pytest.raises(InvalidAddressError, match=text):
                await listening.listen(address)

    async def test_an_address_with_a_name_is_understood_but_must_be_resolved_first(
        self, named_address: Multiaddr, dialer: Transport, listening: Transport
    ) -> None:
        assert dialer.can_dial(named_address)
        with pytest.raises(DialError, match=str(named_address)):
            await dialer.dial(named_address)
        with pytest.raises(InvalidAddressError, match=str(named_address)):
            await listening.listen(named_address)

    async def test_its_own_addresses_can_be_dialled(
        self, dialer: Transport, listener: Listener
    ) -> None:
        assert all(dialer.can_dial(each) for each in listener.addresses)

    # --- listening and dialling -----------------------------------------------------------------

    async def test_a_dial_to_nobody_fails_and_names_the_address(
        self, dialer: Transport, listener: Listener
    ) -> None:
        address = listener.addresses[0]
        await listener.aclose()
        with pytest.raises(DialError, match=str(address)):
            await dialer.dial(address)

    async def test_a_taken_address_is_refused_in_a_sentence(
        self, listening: Transport, listener: Listener
    ) -> None:
        with pytest.raises(AddressInUseError, match=r"taken.*another port"):
            await listening.listen(listener.addresses[0])

    async def test_an_address_is_free_again_once_its_listener_is_closed(
        self, listening: Transport, listener: Listener, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        address = listener.addresses[0]
        await listener.aclose()
        again = await listening.listen(address)
        await again.aclose()
        await ours.send_all(b"x")  # accepted connections live on
        assert await theirs.receive_some() == b"x"

    async def test_closing_a_listener_wakes_whoever_waits_in_accept(
        self, listener: Listener
    ) -> None:
        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            await listener.aclose()

    async def test_connections_nobody_accepted_end_with_their_listener(
        self, dialer: Transport, listener: Listener
    ) -> None:
        ours = await dialer.dial(listener.addresses[0])
        await listener.aclose()
        with trio.fail_after(5):
            # Cut rather than closed is as good.
            with contextlib.suppress(trio.BrokenResourceError):
                assert await ours.stream.receive_some() == b""
        await _cut(ours)

    async def test_a_cancelled_accept_loses_no_connection(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await _cut(*await _connect(dialer, listener))

    @pytest.mark.usefixtures("_open_files")
    async def test_a_dial_cancelled_anywhere_leaves_no_file_open_and_the_listener_serving(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async def dial() -> None:
            await _cut(await dialer.dial(listener.addresses[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept_and_cut, listener)
            await _walk(dial)
            nursery.cancel_scope.cancel()
        await _cut(*await _connect(dialer, listener))

    @pytest.mark.usefixtures("_open_files")
    async def test_a_listener_cancelled_anywhere_leaves_no_file_open(
        self, listening: Transport
    ) -> None:
        async def listen() -> None:
            listener = await listening.listen(self.listen_address(listening))
            try:
                with trio.move_on_after(0.01):
                    await listener.accept()
            finally:
                with trio.CancelScope(shield=True):
                    await listener.aclose()

        await _walk(listen)

    @pytest.mark.usefixtures("_open_files")
    @pytest.mark.parametrize("operation", ["send", "receive", "close"])
    async def test_a_connection_closed_after_any_cancellation_leaves_no_file_open(
        self, dialer: Transport, listener: Listener, operation: str
    ) -> None:
        async def use() -> None:
            ours, theirs = await _connect(dialer, listener)
            try:
                with trio.move_on_after(0.05):
                    if operation == "send":
                        await ours.stream.send_all(MEGABYTE * 8)
                    elif operation == "receive":
                        await ours.stream.receive_some()
                    else:
                        await ours.stream.aclose()
            finally:
                await _cut(ours, theirs)

        await _walk(use)


async def _walk(operation: Callable[[], Awaitable[None]]) -> None:
    """Cancel `operation` at each of its steps in turn; no run may leave a file open."""
    await operation()  # what is opened once, such as a thread's wake-up, is open now
    await _settle()
    before = _open_files()

    async def settled() -> dict[str, int]:
        await wait_all_tasks_blocked(0.005)
        if _open_files() > before:  # or not yet closed by the other side
            await _settle()
        return {"open files": more} if (more := _open_files() - before) > 0 else {}

    for moment in Moment:
        assert await walk(operation, settled, moment) > 1


def _open_files() -> int:
    """Return how many files this process holds open."""
    return len(list(OPEN_FILES.iterdir()))


async def _settle() -> None:
    """Let what was cut be noticed on both sides."""
    await wait_all_tasks_blocked(0.05)


async def _connect(dialer: Transport, listener: Listener) -> tuple[RawConnection, RawConnection]:
    """Connect, and skip connections that a cancelled dial may have left behind."""
    ours = await dialer.dial(listener.addresses[0])
    try:
        with trio.fail_after(5):
            while True:
                theirs = await listener.accept()
                if theirs.remote_address == ours.local_address:
                    return ours, theirs
                await _cut(theirs)
    except BaseException:
        await _cut(ours)
        raise


async def _accept_and_cut(listener: Listener) -> None:
    while True:
        await _cut(await listener.accept())


async def _clog(stream: trio.abc.SendStream) -> int:
    """Send until nothing moves any more; returns the bytes that were taken whole."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stream.send_all(MEGABYTE)
            sent += len(MEGABYTE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        while sent != before:
            before = sent
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    return sent


async def _flood(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(MEGABYTE)


async def _cut(*connections: RawConnection) -> None:
    with trio.CancelScope(shield=True):  # forceful, so it never waits
        for connection in connections:
            await trio.aclose_forcefully(connection.stream)


async def _send_and_finish(stream: trio.abc.Stream, data: bytes) -> None:
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_all(data)
    await stream.send_eof()


async def _read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


async def _read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


async def _read_line(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        data += await stream.receive_some(1)
    return bytes(data)


async def _echo_line(connection: RawConnection) -> None:
    await connection.stream.send_all(await _read_line(connection.stream))
    assert await connection.stream.receive_some() == b""
    await connection.stream.aclose()


def _like(model: Multiaddr, text: str) -> Multiaddr:
    """Put what follows `/ip4/…/tcp/…` in `model` behind an address, so that it is of one kind."""
    return Multiaddr(text + "".join(map(str, model.split()[2:])))
