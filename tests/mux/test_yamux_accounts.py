from itertools import count

import pytest

from p2pnode.config import KIB, MIB, NetworkSettings
from p2pnode.errors import Limit, ResourceLimitError, StreamResetError
from p2pnode.mux.yamux.core import YamuxCore
from p2pnode.mux.yamux.frames import HEADER_BYTES, Flag, FrameType, Header

WINDOW = 256 * KIB


class Purse:
    """An account that holds so many bytes, and whose refusals name `limit`."""

    def __init__(self, size, limit=Limit.PEER_BYTES):
        self.left = size
        self.limit = limit

    def open_stream(self, *, inbound, window, now):
        if window > self.left:
            raise ResourceLimitError("no room", self.limit)
        self.left -= window
        return Slip(self, window)


class Slip:
    def __init__(self, purse, charged):
        self.purse = purse
        self.charged = charged

    def grow(self, size):
        if size > self.purse.left:
            return False
        self.purse.left -= size
        self.charged += size
        return True

    def end(self, unread):
        self.purse.left += self.charged - unread
        self.charged = unread


def core_with(purse, *, is_client=False, **settings):
    core = YamuxCore(is_client=is_client, settings=NetworkSettings(**settings), now=0.0)
    core.account = purse
    core.handle_timeout(0.0)  # sends the first ping
    sent_by(core)
    core.liveness.round_trip = 1.0
    return core


def frame(kind, flags, stream_id, body=b"", length=0):
    return Header(kind, flags, stream_id, length or len(body)).encode() + body


def sent_by(core):
    output = core.outbox.next_frames(MIB)
    data = b"".join(map(bytes, output.buffers))
    core.wrote(output)
    found = []
    while data:
        found.append(Header.decode(data[:HEADER_BYTES]))
        size = found[-1].length if found[-1].kind == FrameType.DATA else 0
        data = data[HEADER_BYTES + size :]
    return found


def receive_stream(core, stream_id=1, body=b"", flags=Flag.SYN):
    core.receive_data(frame(FrameType.DATA, flags, stream_id, body), 0.0)
    stream = core.streams[stream_id]
    core.accept(stream, 0.0)
    return stream


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        (Limit.PEER_BYTES, 0x1002),
        (Limit.CONNECTION_STREAMS, 0x1002),
        (Limit.PEER_STREAM_RATE, 0x1003),
    ],
)
def test_an_inbound_stream_without_room_is_reset_with_the_reason_in_numbers(limit, code):
    core = core_with(Purse(WINDOW, limit))
    receive_stream(core)
    core.receive_data(frame(FrameType.DATA, Flag.SYN, 3, b"never kept"), 0.0)
    assert list(core.streams) == [1]
    (reset,) = [each for each in sent_by(core) if each.flags & Flag.RST]
    assert (reset.stream_id, reset.length) == (3, code)


def test_an_own_stream_without_room_is_an_error_and_uses_up_no_id():
    purse = Purse(0)
    core = core_with(purse, is_client=True)
    with pytest.raises(ResourceLimitError) as refused:
        core.open_stream(0.0)
    assert refused.value.limit is Limit.PEER_BYTES
    purse.left = WINDOW
    assert core.open_stream(0.0).stream_id == 1


def test_a_window_grows_as_far_as_the_account_allows_and_no_further():
    purse = Purse(4 * WINDOW)
    core = core_with(purse)
    stream = receive_stream(core)
    for _ in range(8):
        core.receive_data(frame(FrameType.DATA, 0, 1, bytes(stream.receive_window)), 0.0)
        while stream.received:
            core.take(stream, None, 0.0)
    assert stream.receive_target == 4 * WINDOW
    assert purse.left == 0
    core.reset(stream, StreamResetError("test"))
    assert purse.left == 4 * WINDOW


def ends():
    """Each way in which a stream may come to its end."""

    def both_finish(core, stream):
        core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.FIN, stream.stream_id), 0.0)
        core.finish(stream)
        sent_by(core)

    def we_reset(core, stream):
        core.reset(stream, StreamResetError("test"), 5)

    def it_is_reset(core, stream):
        core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.RST, stream.stream_id), 0.0)

    def we_discard(core, stream):
        core.discard(stream, 0.0)
        sent_by(core)
        core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.FIN, stream.stream_id), 0.0)

    def nobody_reads_on(core, stream):
        core.discard(stream, 0.0)
        sent_by(core)
        core.handle_timeout(stream.due_at)

    return [both_finish, we_reset, it_is_reset, we_discard, nobody_reads_on]


@pytest.mark.parametrize("end", ends(), ids=lambda end: end.__name__)
def test_every_end_of_a_stream_gives_its_window_back_once(end):
    purse = Purse(WINDOW)
    core = core_with(purse, keepalive_timeout=1e6)
    numbers = count(1, 2)
    for _ in range(3):
        stream = receive_stream(core, next(numbers))
        assert purse.left == 0
        end(core, stream)
        assert purse.left == WINDOW
        core.reset(stream, StreamResetError("again"))
        core.discard(stream, 0.0)
        assert purse.left == WINDOW


def test_what_has_come_but_was_not_read_stays_charged_until_it_is():
    purse = Purse(WINDOW)
    core = core_with(purse)
    stream = receive_stream(core, body=b"x" * 1000, flags=Flag.SYN | Flag.FIN)
    core.finish(stream)
    sent_by(core)
    assert not core.streams
    assert purse.left == WINDOW - 1000
    core.take(stream, 400, 0.0)
    assert purse.left == WINDOW - 1000
    core.take(stream, None, 0.0)
    assert purse.left == WINDOW


def test_closing_unread_data_of_a_stream_that_is_over_gives_it_back():
    purse = Purse(WINDOW)
    core = core_with(purse)
    stream = receive_stream(core, body=b"x" * 1000, flags=Flag.SYN | Flag.FIN)
    core.finish(stream)
    sent_by(core)
    core.discard(stream, 0.0)
    assert purse.left == WINDOW
