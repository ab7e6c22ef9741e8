"""What every `Host` must do, so that services run alike on memory and on the real network.

Subclass `HostConformance` as `Test…`, override `run_pair`, and `clock` where time is virtual.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import pytest
import trio
from trio.abc import Clock
from trio.testing import wait_all_tasks_blocked

from p2pnode.errors import (
    ConnectionClosedError,
    DialError,
    ProtocolError,
    ProtocolNotSupportedError,
    StreamResetError,
)
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    PeerIdentified,
    Stream,
)
from p2pnode.wire import varint

ECHO = "/test/echo/1.0.0"
WITHIN = 10.0


class HostConformance(ABC):
    """The tests; each gets two hosts that can reach each other and are not connected yet."""

    @abstractmethod
    def run_pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Host, Host]]:
        """Run two hosts that know nothing of each other."""

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Host, Host, Connection]]:
        async with self.run_pair() as (ours, theirs):
            theirs.set_handler(ECHO, _echo)
            with trio.fail_after(WITHIN):
                yield ours, theirs, await ours.connect(theirs.peer_id, theirs.addresses)

    @pytest.fixture
    def clock(self) -> Clock | None:
        """Return the clock to run on; override it to run in virtual time."""
        return None

    # --- connecting -----------------------------------------------------------------------------

    async def test_both_ends_know_who_the_other_is(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            with theirs.events.subscribe(ConnectionOpened) as opened:
                connection = await ours.connect(theirs.peer_id, theirs.addresses)
                event = await opened.get()
            assert isinstance(event, ConnectionOpened)
            assert connection.peer_id == theirs.peer_id == connection.public_key.peer_id
            assert event.connection.peer_id == ours.peer_id
            assert (connection.direction, event.connection.direction) == ("outbound", "inbound")
            assert ours.connection_to(theirs.peer_id) is connection
            assert theirs.connection_to(ours.peer_id) is event.connection
            assert ours.connections() == [connection]
            assert not connection.is_closed

    async def test_a_second_connect_gives_the_same_connection(self, clock: Clock | None) -> None:
        async with self._connected() as (ours, theirs, connection):
            assert await ours.connect(theirs.peer_id) is connection
            assert len(ours.connections()) == 1

    async def test_connects_at_the_same_time_share_one_dial(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            found: list[Connection] = []

            async def connect() -> None:
                found.append(await ours.connect(theirs.peer_id, theirs.addresses))

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(connect)
            assert len(set(map(id, found))) == 1
            assert len(ours.connections()) == 1

    async def test_a_cancelled_caller_does_not_end_the_dial_of_another(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ours.connect, theirs.peer_id, theirs.addresses)
                    scope.cancel()
                    await ours.connect(theirs.peer_id, theirs.addresses)
            assert scope.cancelled_caught
            assert ours.connection_to(theirs.peer_id) is not None

    async def test_a_peer_without_a_known_address_cannot_be_dialled(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            with pytest.raises(DialError, match="no address"):
                await ours.connect(theirs.peer_id)
            ours.add_addresses(theirs.peer_id, theirs.addresses, 60)
            assert ours.addresses_of(theirs.peer_id) == theirs.addresses
            await ours.connect(theirs.peer_id)

    async def test_a_peer_that_is_not_there_fails_the_dial(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            stranger = type(theirs.peer_id).from_public_key_bytes(b"\x08\x01\x12\x20" + bytes(32))
            with pytest.raises((DialError, ProtocolError), match=str(stranger)):
                await ours.connect(stranger, theirs.addresses)

    async def test_both_learn_each_others_protocols_and_addresses(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            theirs.set_handler(ECHO, _echo)
            with ours.events.subscribe(PeerIdentified) as identified:
                await ours.connect(theirs.peer_id, theirs.addresses)
                event = await identified.get()
            assert isinstance(event, PeerIdentified)
            assert event.peer_id == theirs.peer_id
            assert ECHO in event.protocols
            assert list(event.addresses) == theirs.addresses
            assert ECHO in ours.protocols_of(theirs.peer_id)
            assert ours.addresses_of(theirs.peer_id) == theirs.addresses

    # --- whom to keep ---------------------------------------------------------------------------

    async def test_a_peer_is_protected_until_every_tag_is_taken_back(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            assert not ours.is_protected(theirs.peer_id)
            ours.protect(theirs.peer_id, "mesh")
            ours.protect(theirs.peer_id, "mesh")
            ours.protect(theirs.peer_id, "relay")
            assert ours.is_protected(theirs.peer_id)
            assert ours.unprotect(theirs.peer_id, "mesh")
            assert ours.is_protected(theirs.peer_id)
            assert not ours.unprotect(theirs.peer_id, "relay")
            assert not ours.unprotect(theirs.peer_id, "relay")
            assert not ours.is_protected(theirs.peer_id)

    # --- streams --------------------------------------------------------------------------------

    async def test_a_stream_carries_bytes_both_ways(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):
            stream = await connection.open_stream([ECHO])
            assert stream.protocol == ECHO
            assert stream.peer_id == theirs.peer_id
            await stream.send_all(b"one")
            assert await stream.receive_exactly(3) == b"one"
            await stream.send_all(memoryview(bytearray(b"two")))
            await stream.send_eof()
            assert await stream.receive_exactly(3) == b"two"
            assert await stream.receive_some() == b""
            await stream.aclose()

    async def test_large_data_arrives_whole(self, clock: Clock | None) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            data = bytes(range(256)) * 8192

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                assert await stream.receive_exactly(len(data)) == data
                assert await stream.receive_some() == b""

    async def test_messages_are_read_behind_their_lengths(self, clock: Clock | None) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(varint.prefixed(b"x" * 300) + varint.prefixed(b""))
            await stream.send_eof()
            assert await stream.receive_prefixed(300) == b"x" * 300
            assert await stream.receive_prefixed(300) == b""
            assert await stream.receive_prefixed(300) is None

    async def test_a_message_above_the_limit_is_refused_by_its_length(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(varint.encode(301))
            with pytest.raises(ProtocolError, match="limit of 300"):
                await stream.receive_prefixed(300)
            stream.reset()

    async def test_many_streams_at_once_stay_apart(self, clock: Clock | None) -> None:
        async with self._connected() as (_, _, connection):

            async def ask(number: int) -> None:
                stream = await connection.open_stream([ECHO])
                await stream.send_all(b"%04d" % number)
                assert await stream.receive_exactly(4) == b"%04d" % number
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(ask, number)

    async def test_streams_are_opened_by_both_sides(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), _within():
            ours.set_handler(ECHO, _echo)
            with theirs.events.subscribe(ConnectionOpened) as opened:
                await ours.connect(theirs.peer_id, theirs.addresses)
                await opened.get()  # who dials is through its handshake a little earlier
            stream = await theirs.open_stream(ours.peer_id, [ECHO])
            await stream.send_all(b"x")
            assert await stream.receive_exactly(1) == b"x"
            await stream.aclose()

    async def test_a_single_unknown_protocol_is_refused_when_the_answer_is_read(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream(["/test/unknown"])
            with contextlib.suppress(ProtocolNotSupportedError):  # it may be known already
                await stream.send_all(b"in the hope of an answer")
            with pytest.raises(ProtocolNotSupportedError, match="/test/unknown"):
                await stream.receive_some()
            with pytest.raises(ProtocolNotSupportedError):
                await stream.send_all(b"more")

    async def test_of_several_protocols_the_first_that_is_served_is_taken(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream(["/test/unknown", ECHO])
            assert stream.protocol == ECHO
            await stream.send_all(b"x")
            assert await stream.receive_exactly(1) == b"x"
            await stream.aclose()
            with pytest.raises(ProtocolNotSupportedError):
                await connection.open_stream(["/test/unknown", "/test/other"])

    async def test_a_removed_handler_is_served_no_longer(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):
            theirs.remove_handler(ECHO)
            stream = await connection.open_stream([ECHO])
            with pytest.raises(ProtocolNotSupportedError):
                await stream.receive_some()

    async def test_a_reset_is_seen_at_the_other_end(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):
            seen: list[Exception] = []
            started, done = trio.Event(), trio.Event()

            async def handler(stream: Stream) -> None:
                await stream.receive_exactly(1)
                started.set()
                try:
                    await stream.receive_some()
                except StreamResetError as error:
                    seen.append(error)
                    done.set()

            theirs.set_handler("/test/reset", handler)
            stream = await connection.open_stream(["/test/reset"])
            await stream.send_all(b"x")
            await started.wait()
            stream.reset()
            with pytest.raises(StreamResetError):
                await stream.receive_some()
            with pytest.raises(StreamResetError):
                await stream.send_all(b"x")
            await done.wait()
            assert len(seen) == 1

    async def test_the_last_data_brings_the_end_along(self, clock: Clock | None) -> None:
        async with self._connected() as (_, _, connection):
            for size in (0, 10, 300_000):
                stream = await connection.open_stream([ECHO])
                data = bytes(size)

                async def send(stream: Stream = stream, data: bytes = data) -> None:
                    await stream.send_last(data)
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.send_all(b"more")

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    assert await stream.receive_exactly(size) == data
                    assert await stream.receive_some() == b""
                await stream.aclose()

    @pytest.mark.parametrize("by", ["reset", "the end of the connection"])
    async def test_work_for_a_lost_stream_is_cancelled(self, clock: Clock | None, by: str) -> None:
        async with self._connected() as (_, theirs, connection):
            started, ended = trio.Event(), trio.Event()

            async def handler(stream: Stream) -> None:
                await stream.receive_exactly(1)
                with trio.CancelScope() as work:
                    stream.cancel_when_lost(work)
                    started.set()
                    await trio.sleep_forever()
                late = trio.CancelScope()
                stream.cancel_when_lost(late)
                assert late.cancel_called
                ended.set()

            theirs.set_handler("/test/work", handler)
            stream = await connection.open_stream(["/test/work"])
            await stream.send_last(b"x")
            await started.wait()
            if by == "reset":
                stream.reset()
            else:
                await connection.aclose()
            await ended.wait()

    @pytest.mark.parametrize("by", ["us", "its end", "its reset", "the end of the connection"])
    async def test_a_stream_is_live_until_either_side_ends_it(
        self, clock: Clock | None, by: str
    ) -> None:
        async with self._connected() as (_, theirs, connection):

            async def handler(stream: Stream) -> None:
                while word := await stream.receive_some(1):
                    await stream.send_all(word)
                    if word == b"e":
                        return
                    if word == b"r":
                        stream.reset()
                        await trio.sleep_forever()

            theirs.set_handler("/test/live", handler)
            stream = await connection.open_stream(["/test/live"])
            for _ in range(2):
                await stream.send_all(b"x")
                await stream.receive_exactly(1)
                assert stream.is_live
            if by == "us":
                await stream.send_eof()
            elif by == "the end of the connection":
                await connection.aclose()
            else:
                await stream.send_all(by[4:5].encode())
                with contextlib.suppress(StreamResetError):
                    await stream.receive_exactly(1)
                    assert await stream.receive_some() == b""
            assert not stream.is_live
            await stream.aclose()

    async def test_a_scope_that_was_let_go_outlives_the_stream(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):
            scope, started, done = trio.CancelScope(), trio.Event(), trio.Event()

            async def handler(stream: Stream) -> None:
                stream.cancel_when_lost(scope)
                stream.cancel_when_lost(None)
                started.set()
                with contextlib.suppress(StreamResetError):
                    await stream.receive_exactly(2)
                done.set()

            theirs.set_handler("/test/work", handler)
            stream = await connection.open_stream(["/test/work"])
            await stream.send_all(b"x")
            await started.wait()
            stream.reset()
            await done.wait()
            assert not scope.cancel_called

    async def test_a_failing_handler_ends_its_own_stream_alone(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):

            async def handler(stream: Stream) -> None:
                await stream.receive_some()
                raise ProtocolError("the handler does not like this")

            theirs.set_handler("/test/failing", handler)
            other = await connection.open_stream([ECHO])
            await other.send_all(b"x")
            stream = await connection.open_stream(["/test/failing"])
            await stream.send_all(b"x")
            with pytest.raises(StreamResetError):
                await stream.receive_some()
            assert await other.receive_exactly(1) == b"x"
            assert not connection.is_closed
            await other.aclose()

    async def test_a_handler_that_returns_ends_its_direction(self, clock: Clock | None) -> None:
        async with self._connected() as (_, theirs, connection):

            async def handler(stream: Stream) -> None:
                await stream.send_all(b"bye")

            theirs.set_handler("/test/bye", handler)
            stream = await connection.open_stream(["/test/bye"])
            await stream.send_eof()
            assert await stream.receive_exactly(3) == b"bye"
            assert await stream.receive_some() == b""
            await stream.aclose()

    async def test_a_sender_waits_for_a_reader_that_does_not_read(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (_, theirs, connection):

            async def handler(_stream: Stream) -> None:
                await trio.sleep_forever()

            theirs.set_handler("/test/deaf", handler)
            stream = await connection.open_stream(["/test/deaf"])
            sent = False

            async def flood() -> None:
                nonlocal sent
                await stream.send_all(bytes(64 * 1024 * 1024))
                sent = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await wait_all_tasks_blocked(0.01)
                assert not sent
                nursery.cancel_scope.cancel()
            with pytest.raises(StreamResetError):  # part of the data may be on its way
                await stream.send_all(b"x")

    async def test_a_closed_stream_can_be_used_no_longer_by_its_owner(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(b"x")
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

    # --- the end --------------------------------------------------------------------------------

    async def test_a_closed_connection_fails_its_streams_at_both_ends(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (ours, theirs, connection):
            failed = trio.Event()

            async def handler(stream: Stream) -> None:
                await stream.send_all(b"x")
                try:
                    await stream.receive_some()
                except ConnectionClosedError:
                    failed.set()
                    raise

            theirs.set_handler("/test/waiting", handler)
            stream = await connection.open_stream(["/test/waiting"])
            assert await stream.receive_exactly(1) == b"x"
            with theirs.events.subscribe(ConnectionEnded) as ended:
                await connection.aclose()
                assert connection.is_closed
                await ended.get()
            await failed.wait()
            with pytest.raises(ConnectionClosedError):
                await stream.receive_some()
            with pytest.raises(ConnectionClosedError):
                await connection.open_stream([ECHO])
            await connection.aclose()
            assert ours.connection_to(theirs.peer_id) is None
            assert theirs.connection_to(ours.peer_id) is None

    async def test_after_a_close_the_peers_connect_again(self, clock: Clock | None) -> None:
        async with self._connected() as (ours, theirs, connection):
            await connection.aclose()
            again = await ours.connect(theirs.peer_id, theirs.addresses)
            assert again is not connection
            stream = await again.open_stream([ECHO])
            await stream.send_all(b"x")
            assert await stream.receive_exactly(1) == b"x"
            await stream.aclose()

    # --- dialling as a stranger -----------------------------------------------------------------

    async def test_a_stranger_has_a_connection_of_its_own_that_nobody_else_uses(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (ours, theirs, connection):
            (address, *_) = theirs.addresses
            assert ours.can_dial(address)
            async with ours.dial_anew(theirs.peer_id, address, timeout=5.0) as anew:
                assert anew is not connection
                assert (anew.peer_id, anew.direction) == (theirs.peer_id, "outbound")
                assert anew not in ours.connections()
                assert ours.connection_to(theirs.peer_id) is connection
                stream = await anew.open_stream([ECHO])
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
                await stream.aclose()
            assert anew.is_closed
            assert not connection.is_closed
            assert ours.connections() == [connection]

    async def test_a_stranger_is_told_when_nobody_answers_or_somebody_else_does(
        self, clock: Clock | None
    ) -> None:
        async with self._connected() as (ours, theirs, connection):
            (address, *_) = theirs.addresses
            stranger = type(theirs.peer_id).from_public_key_bytes(b"\x08\x01\x12\x20" + bytes(32))
            with pytest.raises((DialError, ProtocolError)):
                async with ours.dial_anew(stranger, address, timeout=5.0):
                    pytest.fail("somebody answered in a stranger's name")
            nowhere = type(address)("/ip4/127.0.0.1/udp/9")
            assert not ours.can_dial(nowhere)
            with pytest.raises(DialError):
                async with ours.dial_anew(theirs.peer_id, nowhere, timeout=5.0):
                    pytest.fail("an address that no transport understands was dialled")
            assert ours.connections() == [connection]


@contextlib.asynccontextmanager
async def _within() -> AsyncIterator[None]:
    with trio.fail_after(WITHIN):
        yield


async def _echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
