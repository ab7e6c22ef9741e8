"""How streams and connections end, and who is told."""

import contextlib

import pytest
import trio
from trio.abc import Clock
from trio.testing import wait_all_tasks_blocked

from p2pnode.errors import ConnectionClosedError, ProtocolError, StreamResetError
from p2pnode.host import ConnectionEnded, Stream
from p2pnode.testing.conformance.hosts.suite import ECHO, HostSuite


class EndTests(HostSuite):
    """Two hosts part, or one is lost."""

    async def test_a_reset_is_seen_at_the_other_end(self, clock: Clock | None) -> None:
        async with self.connected() as (_, theirs, connection):
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
        async with self.connected() as (_, _, connection):
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
        async with self.connected() as (_, theirs, connection):
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
        async with self.connected() as (_, theirs, connection):

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
        async with self.connected() as (_, theirs, connection):
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
        async with self.connected() as (_, theirs, connection):

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
        async with self.connected() as (_, theirs, connection):

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
        async with self.connected() as (_, theirs, connection):

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

    async def test_what_fits_the_window_is_sent_whether_it_is_read_or_not(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (_, theirs, connection):

            async def handler(_stream: Stream) -> None:
                await trio.sleep_forever()

            theirs.set_handler("/test/deaf", handler)
            stream = await connection.open_stream(["/test/deaf"])
            assert stream.send_window >= 128 * 1024
            while size := stream.send_window:
                await stream.send_all(bytes(size // 2 + 1))
            stream.reset()

    async def test_a_closed_stream_can_be_used_no_longer_by_its_owner(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(b"x")
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

    async def test_a_closed_connection_fails_its_streams_at_both_ends(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (ours, theirs, connection):
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
        async with self.connected() as (ours, theirs, connection):
            await connection.aclose()
            again = await ours.connect(theirs.peer_id, theirs.addresses)
            assert again is not connection
            stream = await again.open_stream([ECHO])
            await stream.send_all(b"x")
            assert await stream.receive_exactly(1) == b"x"
            await stream.aclose()
