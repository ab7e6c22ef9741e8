"""Sessions over channels in memory: streams as their users meet them."""

import contextlib
import functools
import itertools
import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import KIB, MIB, NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    StreamResetError,
)
from p2pnode.mux.yamux import YamuxConnection
from p2pnode.mux.yamux.frames import Flag, FrameType, GoAwayCode, Header
from p2pnode.testing.channels import PieceChannel

WINDOW = 256 * KIB
PATTERN = bytes(range(251)) * 5000


class MemoryChannel(PieceChannel):
    """One end of a channel: bytes arrive after `delay`, at `rate` bytes a second."""

    def __init__(self, *, delay=0.0, rate=math.inf, room=math.inf):
        super().__init__()
        self.delay, self.rate, self.room = delay, rate, room
        self.arriving = []  # (when, bytes)
        self.free_at = 0.0
        self.changed = trio.Event()
        self.closed = False
        self.other = None

    @property
    def pending(self):
        return sum(len(data) for _, data in self.arriving)

    def notify(self):
        self.changed.set()
        self.changed = trio.Event()

    async def send_many(self, buffers):
        await trio.lowlevel.checkpoint()
        data = b"".join(bytes(each) for each in buffers)
        while self.other.pending >= self.room and not self.closed and not self.other.closed:
            await self.other.changed.wait()
        if self.closed:
            raise trio.ClosedResourceError
        if self.other.closed:
            raise trio.BrokenResourceError
        self.free_at = max(self.free_at, trio.current_time()) + len(data) / self.rate
        self.other.arriving.append((self.free_at + self.delay, data))
        self.other.notify()

    async def receive_many(self):
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if self.arriving and self.arriving[0][0] <= trio.current_time():
                _, data = self.arriving.pop(0)
                self.notify()
                return [data]
            if not self.arriving and self.other.closed:
                return []
            with trio.move_on_at(self.arriving[0][0] if self.arriving else math.inf):
                await self.changed.wait()

    async def aclose(self):
        self.closed = True
        self.notify()
        self.other.notify()
        await trio.lowlevel.checkpoint()


def channels(**link):
    one, other = MemoryChannel(**link), MemoryChannel(**link)
    one.other, other.other = other, one
    return one, other


class Running:
    """A session whose `run` is awaited in the background; `ended` says how it ended."""

    def __init__(self, channel, *, is_client, **settings):
        self.session = YamuxConnection(
            channel, is_client=is_client, settings=NetworkSettings(**settings)
        )
        self.error = None
        self.ended = trio.Event()

    async def run(self):
        try:
            await self.session.run()
        except P2PNodeError as error:
            self.error = error
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def two_sessions(link=None, **settings):
    """Run two sessions; yields both, and checks that they forget all streams."""
    one, other = channels(**(link or {}))
    client = Running(one, is_client=True, **settings)
    server = Running(other, is_client=False, **settings)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            nursery.start_soon(server.run)
            yield client, server
            nursery.cancel_scope.cancel()
    for side in (client.session, server.session):
        assert side.is_closed
        assert side.streams == 0
        assert not side._streams


async def serve(session, handler):
    """Run `handler` for each inbound stream until the session ends."""
    with contextlib.suppress(ConnectionClosedError):
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await session.accept_stream()
                except ConnectionClosedError:
                    break
                nursery.start_soon(handler, stream)


async def echo(stream):
    async with stream:
        while data := await stream.receive_some():
            await stream.send_all(data)


async def read_all(stream):
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def pair_of_streams(client, server):
    """Open a stream that both sides hold."""
    ours = await client.session.open_stream()
    await ours.send_all(b"!")
    theirs = await server.session.accept_stream()
    assert await theirs.receive_some() == b"!"
    return ours, theirs


@pytest.mark.parametrize("size", [1, 1000, WINDOW, WINDOW + 1, 1_000_000])
async def test_what_is_sent_comes_back(autojump_clock, size):
    data = PATTERN[:size]
    async with two_sessions() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(serve, server.session, echo)
        stream = await client.session.open_stream()
        nursery.start_soon(stream.send_all, data)
        received = b""
        while len(received) < size:
            received += await stream.receive_some(70_000)
        assert received == data
        await stream.send_eof()
        assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [100, 600])
async def test_many_streams_at_once_all_finish(autojump_clock, count):
    finished = 0

    async def ask(session, number):
        nonlocal finished
        async with await session.open_stream() as stream:
            message = number.to_bytes(4, "big") * 500
            await stream.send_all(message)
            await stream.send_eof()
            assert await read_all(stream) == message
        finished += 1

    async with two_sessions({"delay": 0.05}) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(serve, server.session, echo)
        async with trio.open_nursery() as askers:
            for number in range(count):
                askers.start_soon(ask, client.session, number)
        await wait_all_tasks_blocked()
        assert finished == count
        assert client.session.streams == server.session.streams == 0
        nursery.cancel_scope.cancel()


async def test_both_sides_may_open_streams(autojump_clock):
    async with two_sessions() as (client, server), trio.open_nursery() as nursery:
        for session in (client.session, server.session):
            nursery.start_soon(serve, session, echo)
        for session in (client.session, server.session):
            async with await session.open_stream() as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


async def test_a_buffer_may_change_as_soon_as_it_is_sent(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        for size in (100, 60_000, 100_000):
            buffer = bytearray(b"a" * size)
            await ours.send_all(buffer)
            buffer[:] = b"b" * size
            received = bytearray(size)
            view, filled = memoryview(received), 0
            while filled < size:
                filled += await theirs.receive_into(view[filled:])
            assert received == b"a" * size


async def test_wide_items_are_sent_as_their_bytes(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(memoryview(bytearray(range(16))).cast("I"))
        assert await theirs.receive_some() == bytes(range(16))


async def test_a_reader_that_never_reads_costs_one_window_and_holds_up_nobody(autojump_clock):
    async with two_sessions() as (client, server), trio.open_nursery() as nursery:
        deaf, unread = await pair_of_streams(client, server)
        nursery.start_soon(serve, server.session, echo)
        sent = 0

        async def flood():
            nonlocal sent
            while True:
                await deaf.send_all(bytes(50_000))
                sent += 50_000

        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        assert unread._state.received_bytes == WINDOW - 1  # one byte came with the opening
        assert sent <= WINDOW + NetworkSettings().yamux_send_buffer + 50_000
        async with await client.session.open_stream() as stream:
            await stream.send_all(PATTERN[:WINDOW])
            received = b""
            while len(received) < WINDOW:
                received += await stream.receive_some()
        nursery.cancel_scope.cancel()


async def test_each_direction_ends_by_itself(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(b"question")
        await ours.send_eof()
        await ours.send_eof()
        assert await read_all(theirs) == b"question"
        await theirs.send_all(b"answer")
        await theirs.aclose()
        assert await read_all(ours) == b"answer"
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"more")
        await wait_all_tasks_blocked()
        assert client.session.streams == server.session.streams == 0


async def test_closing_a_stream_delivers_all_that_was_sent(autojump_clock):
    async with two_sessions({"delay": 0.1, "rate": 1e6}) as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(PATTERN[: WINDOW + 100_000])
        await ours.aclose()
        assert await read_all(theirs) == PATTERN[: WINDOW + 100_000]


async def test_closing_a_session_delivers_all_that_was_sent(autojump_clock):
    data = PATTERN[: 2 * WINDOW]  # part of it has to wait until the peer reads
    async with two_sessions({"delay": 0.1, "rate": 1e6}) as (client, server):
        ours, theirs = await pair_of_streams(client, server)

        async def send_and_leave():
            await ours.send_all(data)
            await ours.send_eof()
            await client.session.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_leave)
            await trio.sleep(1)
            assert await read_all(theirs) == data
        await client.ended.wait()
        await server.ended.wait()
        assert client.error is None
        assert server.error is None


async def test_what_arrived_before_the_end_can_be_read_after_it(autojump_clock):
    async with two_sessions({"delay": 0.1, "rate": 1e6}) as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(PATTERN[: WINDOW - 1])
        await ours.aclose()
        await client.session.aclose()
        await server.ended.wait()
        assert server.error is None
        assert await read_all(theirs) == PATTERN[: WINDOW - 1]


async def test_a_peer_that_does_not_read_delays_the_end_only_for_a_while(autojump_clock):
    async with two_sessions(close_timeout=2.0) as (client, server):
        ours, _ = await pair_of_streams(client, server)
        await ours.send_all(PATTERN[: 2 * WINDOW - 10])
        started = trio.current_time()
        await client.session.aclose()
        assert trio.current_time() - started == pytest.approx(2.0)
        await server.ended.wait()


async def test_a_stream_cut_by_the_end_of_its_session_does_not_end_cleanly(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(b"half of it")
        await client.session.aclose()
        await server.ended.wait()
        assert await theirs.receive_some() == b"half of it"
        with pytest.raises(ConnectionClosedError):
            await theirs.receive_some()
        with pytest.raises(ConnectionClosedError):
            await theirs.send_all(b"x")
        with pytest.raises(ConnectionClosedError):
            await ours.receive_some()


async def test_the_end_of_a_session_wakes_everyone(autojump_clock):
    async with two_sessions() as (client, server):
        ours, _ = await pair_of_streams(client, server)
        failures = []

        async def expect_end(wait):
            try:
                await wait()
            except ConnectionClosedError as error:
                failures.append(error)

        waits = [
            ours.receive_some,
            functools.partial(ours.send_all, bytes(2 * MIB)),
            ours.wait_send_all_might_not_block,
            client.session.accept_stream,
        ]
        async with trio.open_nursery() as nursery:
            for wait in waits[:1] + waits[3:]:
                nursery.start_soon(expect_end, wait)
            nursery.start_soon(expect_end, waits[1])
            await wait_all_tasks_blocked()
            nursery.start_soon(expect_end, waits[2])
            await wait_all_tasks_blocked()
            server.session._channel.closed = True  # as if the machine had vanished
            server.session._channel.notify()
            client.session._channel.notify()
        assert len(failures) == len(waits)
        with pytest.raises(ConnectionClosedError):
            await client.session.open_stream()
        with pytest.raises(ConnectionClosedError):
            await client.session.ping()


async def test_a_reset_wakes_both_sides(autojump_clock):
    async with two_sessions() as (client, server):
        idle = await pair_of_streams(client, server)
        busy = await pair_of_streams(client, server)

        async def expect_reset(wait):
            with pytest.raises(StreamResetError, match="9"):
                await wait()

        async with trio.open_nursery() as nursery:
            for stream in idle:
                nursery.start_soon(expect_reset, stream.receive_some)
            nursery.start_soon(expect_reset, functools.partial(busy[1].send_all, bytes(MIB)))
            await wait_all_tasks_blocked()
            idle[0].reset(9)
            busy[0].reset(9)
        for stream in idle + busy:
            with pytest.raises(StreamResetError):
                await stream.receive_some()
            with pytest.raises(StreamResetError):
                await stream.send_all(b"x")
            with pytest.raises(StreamResetError):
                await stream.send_eof()
            stream.reset()
            await stream.aclose()


async def test_a_refused_stream_is_reset(autojump_clock):
    async with two_sessions(yamux_accept_backlog=2) as (client, _):
        client.session.core.outbox._accept_backlog = 3  # opens more than the peer takes
        streams = [await client.session.open_stream() for _ in range(3)]
        for stream in streams:
            await stream.send_all(b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(StreamResetError):
            await streams[2].receive_some()
        assert client.session.streams == 2


async def test_what_a_closed_stream_still_gets_is_dropped_and_its_peer_is_not_held_up(
    autojump_clock,
):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await theirs.send_all(b"too large")
        await theirs.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await theirs.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await theirs.send_all(b"x")
        for _ in range(5):
            await ours.send_all(bytes(1 * MIB))
        await ours.send_eof()
        assert await read_all(ours) == b"too large"
        await wait_all_tasks_blocked()
        assert server.session.streams == 0


async def test_a_stream_never_finished_by_its_peer_is_given_up(autojump_clock):
    async with two_sessions(stream_close_timeout=60.0) as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        started = trio.current_time()
        await theirs.aclose()

        async def keep_sending():
            while True:
                await ours.send_all(b"are you still there?")
                await trio.sleep(1.0)

        with pytest.raises(StreamResetError):
            await keep_sending()
        assert 60 <= trio.current_time() - started < 62


async def test_closing_wakes_a_reader(autojump_clock):
    async with two_sessions() as (client, server):
        ours, _ = await pair_of_streams(client, server)

        async def expect_closed():
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await wait_all_tasks_blocked()
            await ours.aclose()


async def test_two_tasks_cannot_read_one_stream(autojump_clock):
    async with two_sessions() as (client, server), trio.open_nursery() as nursery:
        ours, _ = await pair_of_streams(client, server)
        nursery.start_soon(ours.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        nursery.cancel_scope.cancel()


async def test_sends_of_two_tasks_follow_one_another(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b"):
                nursery.start_soon(ours.send_all, letter * MIB)
            received = b""
            while len(received) < 2 * MIB:
                received += await theirs.receive_some()
        assert received in {b"a" * MIB + b"b" * MIB, b"b" * MIB + b"a" * MIB}


async def test_asking_for_no_bytes_is_an_error_and_not_the_end(autojump_clock):
    async with two_sessions() as (client, _):
        stream = await client.session.open_stream()
        with pytest.raises(ValueError, match="max_bytes"):
            await stream.receive_some(0)
        stream.reset()


# --- cancellation --------------------------------------------------------------------------------


async def test_a_cancelled_send_resets_its_stream_and_no_other(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        other, others_peer = await pair_of_streams(client, server)
        with trio.move_on_after(1) as scope:
            await ours.send_all(bytes(2 * MIB))
        assert scope.cancelled_caught
        with pytest.raises(StreamResetError):
            await ours.send_all(b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(StreamResetError):
            await theirs.receive_some()
        await other.send_all(b"unharmed")
        assert await others_peer.receive_some() == b"unharmed"
        assert client.session.streams == 1


async def test_a_send_cancelled_before_it_began_leaves_the_stream_whole(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.send_all(b"never")
        assert scope.cancelled_caught
        await ours.send_all(b"but this")
        assert await theirs.receive_some() == b"but this"


@pytest.mark.parametrize("into", [False, True])
async def test_a_cancelled_receive_loses_nothing(autojump_clock, into):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        buffer = memoryview(bytearray(5))
        receive = functools.partial(theirs.receive_into, buffer) if into else theirs.receive_some
        with trio.move_on_after(1) as scope:
            await receive()
        assert scope.cancelled_caught
        await ours.send_all(b"later")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive()
        assert scope.cancelled_caught
        assert await theirs.receive_some() == b"later"


async def test_a_cancelled_accept_loses_no_stream(autojump_clock):
    async with two_sessions() as (client, server):
        with trio.move_on_after(1) as scope:
            await server.session.accept_stream()
        assert scope.cancelled_caught
        await pair_of_streams(client, server)


async def test_a_cancelled_open_leaves_no_stream(autojump_clock):
    async with two_sessions() as (client, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.session.open_stream()
        assert scope.cancelled_caught
        assert client.session.streams == 0


async def test_a_cancelled_ping_is_forgotten(autojump_clock):
    async with two_sessions({"delay": 5.0}, keepalive_timeout=60.0) as (client, _):
        await trio.sleep(20)
        with trio.move_on_after(1) as scope:
            await client.session.ping()
        assert scope.cancelled_caught
        assert not client.session.core.liveness._pings


async def test_a_cancelled_session_closes_its_channel_and_fails_its_streams(autojump_clock):
    one, other = channels()
    session = YamuxConnection(one, is_client=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        stream = await session.open_stream()
        await stream.send_all(b"x")
        nursery.cancel_scope.cancel()
    assert one.closed
    assert session.is_closed
    assert not other.closed
    with pytest.raises(ConnectionClosedError):
        await stream.receive_some()
    with pytest.raises(ConnectionClosedError):
        await session.accept_stream()


# --- the session ---------------------------------------------------------------------------------


async def test_a_ping_measures_the_round_trip(autojump_clock):
    async with two_sessions({"delay": 0.2}) as (client, server):
        assert await client.session.ping() == pytest.approx(0.4)
        assert client.session.rtt == server.session.rtt == pytest.approx(0.4)


async def test_an_unanswered_ping_ends_in_time(autojump_clock):
    one, other = channels()
    client = Running(one, is_client=True, keepalive_timeout=10.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)

        async def chatter():  # alive, but deaf to pings
            for number in range(1, 1000):
                header = Header(FrameType.WINDOW_UPDATE, Flag.ACK, 2 * number, 1)
                await other.send_many([header.encode()])
                await trio.sleep(1)

        nursery.start_soon(chatter)
        started = trio.current_time()
        with pytest.raises(ConnectionClosedError, match="ping"):
            await client.session.ping()
        assert trio.current_time() - started == pytest.approx(10.0)
        assert not client.session.is_closed
        nursery.cancel_scope.cancel()


async def test_a_peer_that_vanishes_without_a_word_is_noticed(autojump_clock):
    one, other = channels()
    client = Running(one, is_client=True, keepalive_interval=30.0, keepalive_timeout=10.0)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(5)
            pong = Header(FrameType.PING, Flag.ACK, 0, 0)
            await other.send_many([pong.encode()])  # answers once, and then never again
            await client.ended.wait()
    assert 39 <= trio.current_time() <= 41
    assert isinstance(client.error, ConnectionClosedError)
    assert one.closed


async def test_an_idle_session_stays(autojump_clock):
    async with two_sessions({"delay": 0.5}) as (client, server):
        await trio.sleep(3600)
        assert not client.session.is_closed
        assert not server.session.is_closed
        await pair_of_streams(client, server)


async def test_a_broken_rule_is_told_and_raised(autojump_clock):
    one, other = channels()
    server = Running(one, is_client=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await other.send_many([Header(FrameType.WINDOW_UPDATE, Flag.SYN, 1, 0).encode()])
        stream = await server.session.accept_stream()
        await other.send_many([b"\x00\x09" + bytes(10)])
        with pytest.raises(ConnectionClosedError, match="type 9"):
            await stream.receive_some()
        await server.ended.wait()
    assert isinstance(server.error, ProtocolError)
    said = b"".join(data for _, data in other.arriving)
    assert said.endswith(
        Header(FrameType.GO_AWAY, Flag.NONE, 0, GoAwayCode.PROTOCOL_ERROR).encode()
    )


@pytest.mark.parametrize("breaks_rule", [False, True])
async def test_a_peer_that_takes_nothing_cannot_hold_up_the_end(autojump_clock, breaks_rule):
    one, other = channels(room=1)
    server = Running(one, is_client=False, close_timeout=2.0)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            await wait_all_tasks_blocked()  # the first ping has filled the channel
            stream = await server.session.open_stream()
            nursery.start_soon(_ignore_end, stream)
            await wait_all_tasks_blocked()
            if breaks_rule:
                one.arriving.append((0.0, b"\xff" * 12))
                one.notify()
            else:
                await server.session.aclose()
            await server.ended.wait()
    assert trio.current_time() <= 4.5
    assert one.closed
    assert other.arriving


async def _ignore_end(stream):
    with contextlib.suppress(ConnectionClosedError):
        await stream.send_all(bytes(100_000))


async def test_a_session_that_never_ran_can_be_closed(autojump_clock):
    one, _ = channels()
    session = YamuxConnection(one, is_client=True)
    await session.aclose()
    assert one.closed
    assert session.is_closed
    await session.aclose()


async def test_closing_twice_and_at_both_ends_is_harmless(autojump_clock):
    async with two_sessions({"delay": 0.1}) as (client, server):
        await pair_of_streams(client, server)
        async with trio.open_nursery() as nursery:
            for session in (client.session, server.session) * 2:
                nursery.start_soon(session.aclose)
        await client.session.aclose()
        await client.ended.wait()
        await server.ended.wait()
        assert client.error is None
        assert server.error is None


async def test_a_stream_sent_right_before_the_end_can_still_be_accepted(autojump_clock):
    async with two_sessions() as (client, server):
        async with await client.session.open_stream() as stream:
            await stream.send_all(b"bye")
        await client.session.aclose()
        await server.ended.wait()
        stream = await server.session.accept_stream()
        assert await read_all(stream) == b"bye"
        with pytest.raises(ConnectionClosedError):
            await server.session.accept_stream()


# --- speed, in virtual time ----------------------------------------------------------------------


async def _seconds_to_send(total, link, **settings):
    async with two_sessions(link, **settings) as (client, server):
        await trio.sleep(1)
        ours, theirs = await pair_of_streams(client, server)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, bytes(total))
            got = 0
            while got < total:
                got += len(await theirs.receive_some())
        return trio.current_time() - started


async def test_a_long_fat_link_is_filled(autojump_clock):
    # 100 MB/s, 50 ms each way: the link holds 10 MB. The initial window alone would give 2.5 MB/s.
    link = {"delay": 0.05, "rate": 100e6}
    seconds = await _seconds_to_send(128 * MIB, link)
    fixed = await _seconds_to_send(128 * MIB, link, yamux_max_window=WINDOW)
    assert 1.34 <= seconds < 3.0
    assert fixed > 40.0


async def test_a_small_message_does_not_wait_behind_a_large_one(autojump_clock):
    async with (
        two_sessions({"delay": 0.01, "rate": 10e6}) as (client, server),
        trio.open_nursery() as nursery,
    ):
        bulk, bulk_reader = await pair_of_streams(client, server)
        nursery.start_soon(serve, server.session, echo)
        nursery.start_soon(bulk.send_all, bytes(20 * MIB))

        async def drain():
            while await bulk_reader.receive_some():
                pass

        nursery.start_soon(drain)
        await trio.sleep(1.0)
        started = trio.current_time()
        async with await client.session.open_stream() as stream:
            await stream.send_all(b"quick")
            assert await stream.receive_some() == b"quick"
        assert trio.current_time() - started < 1.0  # the bulk needs two seconds more
        nursery.cancel_scope.cancel()


# --- writing without a task -----------------------------------------------------------------------


class EagerChannel(MemoryChannel):
    """A channel that takes a part of what is written at once, like a socket."""

    def __init__(self, *, takes, **link):
        super().__init__(**link)
        self.takes = takes
        self.flushes = 0

    async def flush(self):
        self.flushes += 1
        await super().flush()

    def send_now(self):
        data = b"".join(self._unsent)
        size = self.takes
        if data[:size]:
            self.other.arriving.append((trio.current_time() + self.delay, data[:size]))
            self.other.notify()
        self._unsent = [data[size:]] if data[size:] else []
        return self.is_flushed


@contextlib.asynccontextmanager
async def two_eager_sessions(takes):
    one, other = EagerChannel(takes=takes), EagerChannel(takes=takes)
    one.other, other.other = other, one
    client, server = Running(one, is_client=True), Running(other, is_client=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(server.run)
        await wait_all_tasks_blocked()
        yield client, server
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("takes", [0, 1, 11, 5000, 10_000_000])
async def test_what_is_written_at_once_and_what_is_not_arrive_in_order(autojump_clock, takes):
    async with two_eager_sessions(takes) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(serve, server.session, echo)
        for size in (1, 500, 70_000, len(PATTERN)):
            async with await client.session.open_stream() as stream:
                await trio.sleep(1)  # it is quiet: the first write is ours
                nursery.start_soon(stream.send_all, PATTERN[:size])
                received = bytearray(size)
                assert await stream.receive_into(memoryview(received)) == size
                assert received == PATTERN[:size]
        nursery.cancel_scope.cancel()


async def test_a_message_in_quiet_does_not_wake_the_writer_but_those_behind_it_do(autojump_clock):
    async with two_eager_sessions(10_000) as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await trio.sleep(1)
        channel = client.session._channel
        before = channel.flushes
        await ours.send_all(b"one")
        assert channel.flushes == before
        assert await theirs.receive_some() == b"one"
        for _ in range(3):
            await ours.send_all(b"more")
        await wait_all_tasks_blocked()
        assert before < channel.flushes < before + 3


async def test_saying_goodbye_does_not_need_the_writer(autojump_clock):
    async with two_eager_sessions(10_000_000) as (client, server):
        await pair_of_streams(client, server)
        await trio.sleep(1)
        began = trio.current_time()
        await client.session.aclose()
        assert trio.current_time() == began
        await server.ended.wait()


@pytest.mark.parametrize("sizes", [[1], [3, 70_000], [300_000]])
async def test_a_readers_buffer_is_filled_whatever_its_size(autojump_clock, sizes):
    async with two_sessions({"delay": 0.01, "rate": 1e6}) as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        data = PATTERN[: 3000 if sizes == [1] else len(PATTERN)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, data)
            received = b""
            for size in itertools.cycle(sizes):
                buffer = bytearray(min(size, len(data) - len(received)))
                assert await theirs.receive_into(memoryview(buffer)) == len(buffer)
                received += buffer
                if len(received) == len(data):
                    break
        assert received == data


async def test_a_buffer_larger_than_what_comes_is_filled_up_to_the_end(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(b"all there is")
        await ours.send_eof()
        buffer = bytearray(100)
        assert await theirs.receive_into(memoryview(buffer)) == 12
        assert await theirs.receive_into(memoryview(buffer)) == 0


async def test_a_buffer_is_filled_up_to_a_moment_and_nothing_of_what_came_is_lost(autojump_clock):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        await ours.send_all(b"early")
        buffer = bytearray(12)
        view = memoryview(buffer)
        began = trio.current_time()
        assert await theirs.receive_into(view, began + 3) == 5
        assert trio.current_time() == began + 3
        await ours.send_all(b" and late")
        assert await theirs.receive_into(view[5:], began + 9) == 7
        assert buffer == b"early and la"
        assert await theirs.receive_some() == b"te"


@pytest.mark.parametrize("ends", ["reset", "close"])
async def test_a_reader_that_waits_for_a_full_buffer_is_told_of_the_end(autojump_clock, ends):
    async with two_sessions() as (client, server):
        ours, theirs = await pair_of_streams(client, server)
        error = StreamResetError if ends == "reset" else trio.ClosedResourceError

        async def receive():
            with pytest.raises(error):
                await theirs.receive_into(memoryview(bytearray(100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await ours.send_all(b"part")
            await wait_all_tasks_blocked()
            if ends == "reset":
                ours.reset()
            else:
                await theirs.aclose()


async def test_streams_are_served_at_once_and_those_that_came_before_too(autojump_clock):
    async with two_sessions() as (client, server), trio.open_nursery() as nursery:
        started = []
        early = await client.session.open_stream()
        await early.send_all(b"early")
        await wait_all_tasks_blocked()
        nursery.start_soon(swallow_end, server.session.serve, started.append)
        await wait_all_tasks_blocked()
        late = await client.session.open_stream()
        await late.send_all(b"late")
        await wait_all_tasks_blocked()
        assert [stream.receive_nowait() for stream in started] == [b"early", b"late"]
        assert started[0].receive_nowait() == b""
        await client.session.aclose()


async def swallow_end(serve, start):
    with pytest.raises(ConnectionClosedError):
        await serve(start)
