"""What the byte streams of every transport must do."""

import contextlib

import pytest
import trio
from trio.testing import (
    check_half_closeable_stream,
    check_two_way_stream,
    wait_all_tasks_blocked,
)

from p2pnode.testing.conformance.transports.suite import TransportSuite
from p2pnode.testing.conformance.transports.traffic import (
    MEGABYTE,
    accept,
    clog,
    connect,
    dial,
    echo_line,
    flood,
    read,
    read_line,
    read_to_end,
    send_and_finish,
)
from p2pnode.transport.base import Listener, RawConnection, Transport

MANY = 50


class StreamTests(TransportSuite):
    """Bytes arrive whole and in order, and whoever waits is woken when a stream ends."""

    async def test_streams_keep_every_promise_trio_makes_of_them(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async def make() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            ours, theirs = await connect(dialer, listener)
            return ours.stream, theirs.stream

        async def make_clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            ours, theirs = await make()
            await clog(ours)
            await clog(theirs)
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

        async def take(name: str, stream: trio.abc.Stream) -> None:
            received[name] = await read(stream, len(there))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, there)
            nursery.start_soon(theirs.send_all, back)
            nursery.start_soon(take, "ours", ours)
            nursery.start_soon(take, "theirs", theirs)
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
        assert await read(theirs, 5003) == MEGABYTE[:5000] + b"end"

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
        received += await read(theirs, 300 - len(received))
        assert received == b"".join(number.to_bytes(1, "big") * 3 for number in range(100))

    async def test_what_was_sent_before_a_close_is_read_before_the_end(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await ours.send_all(MEGABYTE[:100_000])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            assert await read(theirs, 100_000) == MEGABYTE[:100_000]
            assert await theirs.receive_some() == b""
            assert await theirs.receive_some() == b""

    @pytest.mark.usefixtures("_half_closing")
    async def test_after_one_side_finished_the_other_can_still_answer(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await send_and_finish(ours, b"question")
        assert await read_to_end(theirs) == b"question"
        await send_and_finish(theirs, b"answer")
        assert await read_to_end(ours) == b"answer"

    async def test_a_sender_waits_for_a_reader_that_does_not_read(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        assert await clog(pair[0].stream) < 64 * len(MEGABYTE)

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
                await flood(pair[0].stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)
            await pair[0].stream.aclose()

    async def test_a_peer_that_is_gone_breaks_our_sender(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await flood(pair[0].stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)
            await trio.aclose_forcefully(pair[1].stream)

    @pytest.mark.usefixtures("_tearable")
    async def test_a_cancelled_send_leaves_no_gap_in_the_stream(
        self, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        await clog(ours)
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
                nursery.start_soon(echo_line, await accept(listener))

        async def ask(number: int) -> None:
            connection = await dial(dialer, listener.addresses[0])
            await connection.stream.send_all(b"%d\n" % number)
            assert await read_line(connection.stream) == b"%d\n" % number
            await connection.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(MANY):
                nursery.start_soon(ask, number)
