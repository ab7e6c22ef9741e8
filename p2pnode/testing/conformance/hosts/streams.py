"""Streams: bytes, messages, and the agreement on a protocol."""

import contextlib

import pytest
import trio
from trio.abc import Clock

from p2pnode.errors import ProtocolError, ProtocolNotSupportedError
from p2pnode.host import ConnectionOpened
from p2pnode.testing.conformance.hosts.suite import ECHO, HostSuite, echo, within
from p2pnode.wire import varint


class StreamTests(HostSuite):
    """Two hosts talk."""

    async def test_a_stream_carries_bytes_both_ways(self, clock: Clock | None) -> None:
        async with self.connected() as (_, theirs, connection):
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
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            data = bytes(range(256)) * 8192

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                assert await stream.receive_exactly(len(data)) == data
                assert await stream.receive_some() == b""

    async def test_pieces_are_passed_on_in_order_and_never_more_of_them_than_wanted(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            data = [bytes([number]) * size for number, size in enumerate((1, 9000, 200_000, 3, 70))]

            async def send() -> None:
                await stream.send_pieces(data[:2])  # with the proposal, where that is due
                await stream.send_pieces(data[2:])
                await stream.send_eof()

            received = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while pieces := await stream.receive_pieces(7000):
                    assert 0 < sum(map(len, pieces)) <= 7000
                    received += pieces
            assert b"".join(received) == b"".join(data)

    async def test_messages_are_read_behind_their_lengths(self, clock: Clock | None) -> None:
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(varint.prefixed(b"x" * 300) + varint.prefixed(b""))
            await stream.send_eof()
            assert await stream.receive_prefixed(300) == b"x" * 300
            assert await stream.receive_prefixed(300) == b""
            assert await stream.receive_prefixed(300) is None

    async def test_a_message_above_the_limit_is_refused_by_its_length(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream([ECHO])
            await stream.send_all(varint.encode(301))
            with pytest.raises(ProtocolError, match="limit of 300"):
                await stream.receive_prefixed(300)
            stream.reset()

    async def test_many_streams_at_once_stay_apart(self, clock: Clock | None) -> None:
        async with self.connected() as (_, _, connection):

            async def ask(number: int) -> None:
                stream = await connection.open_stream([ECHO])
                await stream.send_all(b"%04d" % number)
                assert await stream.receive_exactly(4) == b"%04d" % number
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(ask, number)

    async def test_streams_are_opened_by_both_sides(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), within():
            ours.set_handler(ECHO, echo)
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
        async with self.connected() as (_, _, connection):
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
        async with self.connected() as (_, _, connection):
            stream = await connection.open_stream(["/test/unknown", ECHO])
            assert stream.protocol == ECHO
            await stream.send_all(b"x")
            assert await stream.receive_exactly(1) == b"x"
            await stream.aclose()
            with pytest.raises(ProtocolNotSupportedError):
                await connection.open_stream(["/test/unknown", "/test/other"])

    async def test_a_removed_handler_is_served_no_longer(self, clock: Clock | None) -> None:
        async with self.connected() as (_, theirs, connection):
            theirs.remove_handler(ECHO)
            stream = await connection.open_stream([ECHO])
            with pytest.raises(ProtocolNotSupportedError):
                await stream.receive_some()
