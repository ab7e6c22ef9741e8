import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.kad.framing import MessageStream
from p2pnode.protocols.kad.messages import Message, MessageType, encode
from p2pnode.wire import varint

MESSAGES = [Message(type=MessageType.FIND_NODE, key=bytes(size)) for size in (1, 300, 5)]


class Chunks:
    """A stream that delivers given chunks, and then ends."""

    def __init__(self, chunks):
        self.chunks = list(chunks)

    async def receive_some(self, _max_bytes):
        return self.chunks.pop(0) if self.chunks else b""


def _cut(data, places):
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def _drive(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something else than the stream")


@given(st.lists(st.integers(0, 10_000)))
def test_messages_arrive_whole_however_they_are_cut(places):
    data = b"".join(varint.prefixed(encode(each)) for each in MESSAGES)
    stream = MessageStream(Chunks(_cut(data, places)), 1000)
    assert [_drive(stream.receive()) for _ in range(4)] == [*MESSAGES, None]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x80", "inside a length prefix"),
        (b"\x05abc", "after 4 of 6 bytes"),
        (varint.encode(1001), "exceeds the limit"),
        (b"\xff" * 10, "varint"),
        (b"\x01\xff", "ends inside"),
    ],
)
def test_a_message_cut_off_or_too_long_is_refused(data, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        _drive(MessageStream(Chunks([data]), 1000).receive())
