import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.pubsub.framing import FrameSplitter
from p2pnode.wire import varint


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_frames_come_out_however_the_stream_is_cut(frames, data):
    stream = b"".join(map(varint.prefixed, frames))
    splitter = FrameSplitter(300)
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:cut])
        stream = stream[cut:]
    assert found == frames
    assert len(splitter) == 0


@given(st.binary(max_size=100))
def test_any_bytes_are_kept_cut_or_refused(data):
    splitter = FrameSplitter(20)
    try:
        frames = list(splitter.feed(data))
    except ProtocolError:
        return
    assert all(len(each) <= 20 for each in frames)
    assert len(splitter) <= 21  # a length of one byte, and less than a whole frame


def test_a_frame_that_is_too_long_is_refused_by_its_length_alone():
    splitter = FrameSplitter(1000)
    frames = splitter.feed(varint.prefixed(b"good") + varint.encode(1001))
    assert next(frames) == b"good"
    with pytest.raises(ProtocolError, match="1001"):
        next(frames)


def test_a_reader_that_stops_in_between_loses_nothing():
    splitter = FrameSplitter(10)
    frames = splitter.feed(varint.prefixed(b"one") + varint.prefixed(b"two"))
    assert next(frames) == b"one"
    frames.close()
    assert list(splitter.feed(b"")) == [b"two"]
