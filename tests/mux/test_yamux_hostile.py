"""A session whose peer is written by hand: what no honest implementation would send."""

import math
import struct
from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.config import KIB, MIB, NetworkSettings
from p2pnode.errors import ConnectionClosedError, ProtocolError, StreamResetError
from p2pnode.mux.yamux import YamuxConnection
from p2pnode.testing.channels import PieceChannel

WINDOW = 256 * KIB
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind, flags, stream_id, length=None, *, body=b""):
    length = len(body) if length is None else length
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


class Wire(PieceChannel):
    """One end of a channel in memory; `capacity` writes fit in."""

    def __init__(self, outgoing, incoming):
        super().__init__()
        self._outgoing = outgoing
        self._incoming = incoming

    async def send_many(self, buffers):
        await self._outgoing.send(b"".join(buffers))

    async def receive_many(self):
        try:
            return [await self._incoming.receive()]
        except trio.EndOfChannel:
            return []

    async def aclose(self):
        await trio.lowlevel.checkpoint()
        self._outgoing.close()
        self._incoming.close()

    async def everything(self):
        """Receive until the other end closes."""
        data = b""
        while pieces := await self.receive_many():
            data += b"".join(pieces)
        return data


def wires(capacity=math.inf):
    there, here = trio.open_memory_channel(capacity), trio.open_memory_channel(capacity)
    return Wire(there[0], here[1]), Wire(here[0], there[1])


@asynccontextmanager
async def attacked(**options):
    """Give a running server, the peer's end of its channel, and how it ended."""
    peer, far = wires()
    server = YamuxConnection(far, is_client=False, settings=NetworkSettings(**options))
    ends = []

    async def run():
        try:
            await server.run()
        except (ProtocolError, ConnectionClosedError) as error:
            ends.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield server, peer, ends
        nursery.cancel_scope.cancel()


async def test_a_broken_rule_is_told_and_raised_while_streams_just_lose_their_connection(
    autojump_clock,
):
    async with attacked() as (server, peer, ends):
        await peer.send_many([frame(DATA, SYN, 1, body=b"fine")])
        stream = await server.accept_stream()
        await peer.send_many([frame(DATA, 0, 1, body=b"!"), b"\xff" * 12])
        assert (await peer.everything()).endswith(frame(GO_AWAY, 0, 0, 1))
        assert [type(end) for end in ends] == [ProtocolError]
        assert await stream.receive_some() == b"fine!"  # authentic, whatever came behind it
        for call in (stream.receive_some, server.accept_stream, server.open_stream):
            with pytest.raises(ConnectionClosedError, match="version 255"):
                await call()
        with pytest.raises(ConnectionClosedError, match="version 255"):
            await stream.send_all(b"x")


async def test_a_broken_rule_of_a_peer_that_does_not_read_ends_the_session_in_time(autojump_clock):
    peer, far = wires(capacity=0)
    server = YamuxConnection(far, is_client=False, settings=NetworkSettings(close_timeout=2.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_many, [b"\xff" * 12])
        with trio.fail_after(2.1), pytest.raises(ProtocolError, match="version"):
            await server.run()


async def test_a_cancelled_session_writes_nothing_more(autojump_clock):
    # Behind half a frame of the channel beneath, a farewell would be garbage.
    peer, far = wires(capacity=0)
    server = YamuxConnection(far, is_client=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await trio.sleep(1)  # its first ping is blocked by now
        nursery.cancel_scope.cancel()
    assert await peer.everything() == b""
    assert server.is_closed


async def test_streams_opened_and_reset_in_one_breath_are_never_accepted(autojump_clock):
    async with attacked() as (server, peer, ends):
        burst = [frame(UPDATE, SYN, n, 0) + frame(UPDATE, RST, n, 0) for n in range(1, 3, 2)]
        await peer.send_many([*burst, frame(DATA, SYN, 1001, body=b"honest")])
        stream = await server.accept_stream()
        assert await stream.receive_some() == b"honest"
        assert server.streams == len(server._streams) == 1
        assert not server._to_accept
        assert not ends


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, SYN, 0, 7),
        frame(DATA, 0, 1),
        frame(UPDATE, SYN, 3, 0) + frame(UPDATE, RST, 3, 0),
    ],
)
async def test_a_flood_ends_the_session_before_it_costs_memory(flood, autojump_clock):
    async with attacked() as (server, peer, ends):
        await peer.send_many([frame(UPDATE, SYN, 1, 0)])
        await peer.send_many([flood * 100_000])
        await trio.sleep(60)  # a pest is read slowly
        assert [type(end) for end in ends] == [ProtocolError]
        assert "floods" in str(ends[0])
        assert not server._streams


async def test_a_stream_waits_in_the_backlog_with_at_most_its_window(autojump_clock):
    async with attacked() as (server, peer, ends):
        for stream_id in (1, 3, 5):
            await peer.send_many([frame(DATA, SYN, stream_id, body=bytes(WINDOW))])
        await trio.sleep(1)
        stored = [state.received_bytes for state in server.core.streams.values()]
        assert stored == [WINDOW] * 3
        await peer.send_many([frame(DATA, 0, 1, body=b"x")])
        await trio.sleep(5)
        assert "window" in str(ends[0])


async def test_an_id_used_again_gives_a_stream_of_its_own(autojump_clock):
    async with attacked() as (server, peer, _):
        await peer.send_many([frame(DATA, SYN | FIN, 1, body=b"old")])
        old = await server.accept_stream()
        await old.send_eof()
        await trio.sleep(1)
        await peer.send_many([frame(DATA, SYN, 1, body=b"new")])
        new = await server.accept_stream()
        old.reset()
        await old.aclose()
        assert await new.receive_some() == b"new"
        await peer.send_many([frame(DATA, FIN, 1, body=b"er")])
        assert await new.receive_some() == b"er"
        assert await new.receive_some() == b""
        assert server.streams == 1


async def test_what_is_on_its_way_within_a_frame_is_not_granted_again(autojump_clock):
    # A frame may be announced whole and come in parts, while its beginning is read already.
    async with attacked() as (server, peer, ends):
        await peer.send_many([frame(UPDATE, SYN, 1, 0)])
        stream = await server.accept_stream()
        half = bytes(WINDOW // 2)
        for _ in range(5):
            size = stream._state.receive_window
            await peer.send_many([frame(DATA, 0, 1, size), half])
            await stream.receive_some()
            await peer.send_many([bytes(size - len(half))])
            await trio.sleep(1)
            state = stream._state
            assert state.receive_window + state.received_bytes <= state.receive_target
            await stream.receive_some()
        assert not ends


async def test_an_early_refusal_reaches_a_peer_that_must_first_send_all(autojump_clock):
    async with attacked() as (server, peer, _):
        await peer.send_many([frame(DATA, SYN, 1, body=bytes(WINDOW))])  # more is to come
        stream = await server.accept_stream()
        await stream.send_all(b"no")
        await stream.aclose()
        await trio.sleep(1)
        # What nobody will read is granted back; the ACK rides on whichever frame goes first.
        grants = [frame(UPDATE, flags, 1, WINDOW) for flags in (0, ACK)]
        wire = b""
        while b"no" not in wire or not any(each in wire for each in grants):
            wire += b"".join(await peer.receive_many())
        await peer.send_many([frame(DATA, FIN, 1, body=bytes(WINDOW))])
        await trio.sleep(1)
        assert server.streams == 0


async def test_a_peer_that_goes_on_sending_to_a_closed_stream_is_cut_off_in_time(autojump_clock):
    async with attacked(stream_close_timeout=7.0) as (server, peer, ends):
        await peer.send_many([frame(UPDATE, SYN, 1, 0)])
        stream = await server.accept_stream()
        await stream.aclose()
        closed_at = trio.current_time()
        while server.streams:
            await peer.send_many([frame(DATA, 0, 1, body=b"x" * 1000)])
            await trio.sleep(0.1)
        assert trio.current_time() - closed_at == pytest.approx(7.0, abs=0.2)
        await peer.send_many([frame(DATA, 0, 1, body=b"x" * 1000)] * 50)  # it cannot know yet
        await trio.sleep(1)
        assert not ends


async def test_windows_set_smaller_than_the_initial_one_never_shrink_it(autojump_clock):
    async with attacked(yamux_max_window=1000) as (server, peer, ends):
        await peer.send_many([frame(UPDATE, SYN, 1, 0), frame(PING, ACK, 0, 0)])
        stream = await server.accept_stream()
        server.core.liveness.round_trip = 1.0  # slow enough for the window to want to grow
        for _ in range(3):
            await peer.send_many([frame(DATA, 0, 1, body=bytes(WINDOW))])
            await stream.receive_some()
            assert stream._state.receive_window == WINDOW
        assert not ends


async def test_a_stream_accepted_after_the_end_is_read_and_counted_once(autojump_clock):
    async with attacked() as (server, peer, _):
        await peer.send_many([frame(DATA, SYN | FIN, 1, body=b"late")])
        await peer.aclose()
        await trio.sleep(5)
        assert server.is_closed
        stream = await server.accept_stream()
        assert await stream.receive_some() == b"late"
        assert await stream.receive_some() == b""
        assert server.core._backlog == 0
        assert not server.core.outbox._unanswered


async def test_a_peer_that_hangs_up_within_a_frame_leaves_no_clean_end(autojump_clock):
    async with attacked() as (server, peer, _):
        await peer.send_many([frame(DATA, SYN | FIN, 1, 100, body=b"short")])
        stream = await server.accept_stream()
        await peer.aclose()
        assert await stream.receive_some() == b"short"
        with pytest.raises(ConnectionClosedError):
            await stream.receive_some()


async def test_what_a_peer_sent_before_it_left_is_read_though_nothing_can_be_written(
    autojump_clock,
):
    async with attacked(close_timeout=2.0) as (server, peer, ends):
        await peer.send_many([frame(DATA, SYN, 1, body=b"first")])
        stream = await server.accept_stream()
        await peer.send_many([frame(DATA, FIN, 1, body=b"last"), frame(GO_AWAY, 0, 0, 0)])
        await peer.aclose()
        with pytest.raises((ConnectionClosedError, StreamResetError)):
            await stream.send_all(bytearray(MIB))  # meets the closed channel before the reader
        assert await stream.receive_some() == b"firstlast"
        assert await stream.receive_some() == b""
        assert not ends
