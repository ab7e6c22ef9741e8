import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.errors import NegotiationError, ProtocolNotSupportedError, StreamResetError
from p2pnode.host import PROGRESS_BYTES
from p2pnode.host.streams import NetworkStream
from p2pnode.mux.multistream import Dialer
from p2pnode.mux.multistream.core import HEADER, NOT_AVAILABLE, encode_line
from p2pnode.transport.session import MuxedStream

PROTOCOL = "/test/1.0.0"
PROPOSAL = encode_line(HEADER) + encode_line(PROTOCOL)
REFUSAL = encode_line(HEADER) + encode_line(NOT_AVAILABLE)


class Muxed:
    """Stands in for the muxer's stream: records what is sent, and plays back what is received."""

    def __init__(self):
        self.sent = []
        self.ended = False
        self.resets = 0
        self._send, self._receive = trio.open_memory_channel(100)
        self._rest = b""

    def answer(self, data):
        self._send.send_nowait(data)

    async def send_all(self, data):
        self.sent.append(bytes(data))  # in the order of calls, as the muxer's streams do
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes=None):
        if not self._rest:
            self._rest = await self._receive.receive()
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes or len(self._rest) :]
        return taken

    def send_later(self, data):
        self.sent.append(bytes(data))

    def unread(self, data):
        self._rest = data + self._rest

    receive_pieces_nowait = MuxedStream.receive_pieces_nowait

    def receive_nowait(self):
        if not self._rest:
            try:
                return self._receive.receive_nowait()
            except trio.WouldBlock:
                return b""
        taken, self._rest = self._rest, b""
        return taken

    def receive_into_nowait(self, buffer):
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    async def receive_into(self, buffer, until=math.inf):
        filled = 0
        with trio.move_on_at(until):
            while filled < len(buffer):
                data = await self.receive_some(len(buffer) - filled)
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        return filled

    async def send_eof(self):
        self.ended = True

    def reset(self, code=0):
        self.resets += 1


@pytest.fixture
def muxed():
    return Muxed()


@pytest.fixture
def stream(muxed):
    return NetworkStream(muxed, None, PROTOCOL, unsettled=Dialer([PROTOCOL]), optimistic_bytes=100)


async def test_the_proposal_and_the_first_data_leave_in_one_write(stream, muxed):
    await stream.send_all(b"request")
    assert muxed.sent == [PROPOSAL + b"request"]
    await stream.send_all(b"more")
    assert muxed.sent[1:] == [b"more"]


async def test_the_answer_is_taken_off_the_front_of_what_is_read(stream, muxed):
    await stream.send_all(b"request")
    muxed.answer(PROPOSAL + b"reply")
    assert await stream.receive_some() == b"reply"


async def test_a_reader_that_comes_first_sends_the_proposal(stream, muxed):
    muxed.answer(PROPOSAL + b"reply")
    assert await stream.receive_exactly(5) == b"reply"
    assert muxed.sent == [PROPOSAL]


async def test_no_more_than_a_window_is_sent_before_the_answer(stream, muxed):
    data = bytes(range(256))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        await wait_all_tasks_blocked()
        assert b"".join(muxed.sent) == (PROPOSAL + data)[:100]
        muxed.answer(PROPOSAL)
    assert b"".join(muxed.sent) == PROPOSAL + data


async def test_small_writes_before_the_answer_share_the_window(stream, muxed):
    async def write():
        for _ in range(10):
            await stream.send_all(b"0123456789")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert len(b"".join(muxed.sent)) == 100
        muxed.answer(PROPOSAL)
    assert b"".join(muxed.sent) == PROPOSAL + b"0123456789" * 10


async def test_a_refusal_is_raised_by_every_later_operation(stream, muxed):
    await stream.send_all(b"request")
    muxed.answer(REFUSAL)
    for operation in (stream.receive_some, lambda: stream.send_all(b"x"), stream.receive_some):
        with pytest.raises(ProtocolNotSupportedError, match=PROTOCOL):
            await operation()
    assert muxed.resets == 1


async def test_a_sender_of_much_data_learns_of_a_refusal(stream, muxed):
    muxed.answer(REFUSAL)
    with pytest.raises(ProtocolNotSupportedError):
        await stream.send_all(bytes(1000))


async def test_the_end_waits_for_the_answer_and_leaves_a_refusal_to_the_reader(stream, muxed):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_eof)
        await wait_all_tasks_blocked()
        assert not muxed.ended
        muxed.answer(REFUSAL)
    assert not muxed.ended
    with pytest.raises(ProtocolNotSupportedError):
        await stream.receive_some()


async def test_a_reader_and_a_writer_may_wait_for_the_answer_together(stream, muxed):
    received = []

    async def read():
        received.append(await stream.receive_exactly(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(stream.send_all, bytes(1000))
        await wait_all_tasks_blocked()
        muxed.answer(PROPOSAL + b"reply")
    assert received == [b"reply"]
    assert b"".join(muxed.sent) == PROPOSAL + bytes(1000)


async def test_a_cancelled_reader_leaves_the_answer_to_the_next(stream, muxed):
    await stream.send_all(b"request")
    muxed.answer(PROPOSAL[:7])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    muxed.answer(PROPOSAL[7:] + b"reply")
    assert await stream.receive_some() == b"reply"


async def test_a_peer_that_hangs_up_instead_of_answering_is_an_error(stream, muxed):
    muxed.answer(b"")
    with pytest.raises(NegotiationError, match="hung up"):
        await stream.receive_some()


async def test_a_reset_instead_of_an_answer_stays_a_reset(stream, muxed, monkeypatch):
    async def fail(_max_bytes=None):
        raise StreamResetError("reset by the peer")

    monkeypatch.setattr(muxed, "receive_some", fail)
    for _ in range(2):
        with pytest.raises(StreamResetError):
            await stream.receive_some()


async def test_wide_items_are_sent_as_bytes(muxed):
    stream = NetworkStream(muxed, None, PROTOCOL)
    await stream.send_all(memoryview(bytearray(16)).cast("d"))
    assert muxed.sent == [bytes(16)]


async def test_all_that_has_come_is_received_at_once(stream, muxed):
    muxed.answer(PROPOSAL)
    for piece in (b"one", b"two", b"three"):
        muxed.answer(piece)
    assert await stream.receive_pieces(100) == [b"one", b"two", b"three"]
    for piece in (b"one", b"two", b"three"):
        muxed.answer(piece)
    assert await stream.receive_pieces(4) == [b"one", b"t"]
    assert await stream.receive_pieces(2) == [b"wo"]
    assert await stream.receive_pieces(100) == [b"three"]
    muxed.answer(b"")
    assert await stream.receive_pieces(100) == []


async def test_a_cancelled_sender_of_pieces_has_sent_none_of_them(stream, muxed):
    muxed.answer(PROPOSAL + b"x")
    await stream.send_all(b"request")
    await stream.receive_some()
    before = list(muxed.sent)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_pieces([b"one", b"two"])
    assert muxed.sent == before
    await stream.send_pieces([b"one", b"two"])
    assert b"".join(muxed.sent[len(before) :]) == b"onetwo"


async def test_a_sender_may_be_slow_as_long_as_it_gets_on(autojump_clock, stream, muxed):
    async def send():
        muxed.answer(PROPOSAL)
        for _ in range(4):
            await trio.sleep(9)
            muxed.answer(bytes([1]) * PROGRESS_BYTES)

    buffer = bytearray(4 * PROGRESS_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await stream.receive_into(memoryview(buffer), patience=10)
    assert trio.current_time() == 36
    assert all(buffer)


@pytest.mark.parametrize(
    ("answers", "waited"),
    [([], 10), ([PROPOSAL, b"x"], 10), ([PROPOSAL, bytes(PROGRESS_BYTES), b"x"], 20)],
)
async def test_a_sender_that_is_too_slow_is_not_waited_for(
    autojump_clock, stream, muxed, answers, waited
):
    for answer in answers:
        muxed.answer(answer)
    with pytest.raises(trio.TooSlowError):
        await stream.receive_into(memoryview(bytearray(4 * PROGRESS_BYTES)), patience=10)
    assert trio.current_time() == waited
