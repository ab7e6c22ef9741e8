"""The rules of a byte stream in WebSocket frames, without a network."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from p2pnode.errors import HandshakeError, ProtocolError, SimultaneousOpenError
from p2pnode.transport.websocket.core import ByteStreamWebSocket

MAX_EMPTY = 5
MASKS = itertools.cycle([b"abcd", b"\xff\x00\x01\x80"])


def end(kind):
    return ByteStreamWebSocket(
        kind,
        max_empty_frames=MAX_EMPTY,
        draw_mask=lambda: next(MASKS),
        notify=lambda: None,
    )


def upgraded(ours):
    """One of our ends behind its upgrade, and wsproto's own at the other side."""
    theirs = WSConnection(
        ConnectionType.SERVER if ours is ConnectionType.CLIENT else ConnectionType.CLIENT
    )
    us = end(ours)
    client, server = (us, theirs) if us.client else (theirs, us)
    server.receive_data(client.send(Request(host="x", target="/")))
    list(server.events())
    client.receive_data(server.send(AcceptConnection()))
    list(client.events())
    return us, theirs


BOTH = pytest.mark.parametrize("kind", list(ConnectionType))


def data_of(events):
    return b"".join(event.data for event in events if isinstance(event, BytesMessage))


@BOTH
@given(data=st.lists(st.binary(max_size=200_000), max_size=4))
def test_wsproto_reads_our_frames(kind, data):
    us, theirs = upgraded(kind)
    for each in data:
        theirs.receive_data(us.send(BytesMessage(data=each)))
    assert data_of(theirs.events()) == b"".join(data)


@BOTH
@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 127, 65_535, 65_536, 65_537])
def test_frames_of_every_length_form_are_read_by_wsproto(kind, size):
    us, theirs = upgraded(kind)
    data = bytes(number % 251 for number in range(size))
    theirs.receive_data(us.send(BytesMessage(data=data)))
    assert data_of(theirs.events()) == data


@BOTH
@given(
    messages=st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    finals=st.lists(st.booleans(), min_size=5, max_size=5),
    cut=st.integers(1, 50),
)
def test_bytes_come_through_whatever_the_frames_messages_and_reads(kind, messages, finals, cut):
    us, theirs = upgraded(kind)
    wire = b"".join(
        theirs.send(BytesMessage(data=each, message_finished=final))
        for each, final in zip(messages, finals, strict=False)
    )
    received = b""
    for start in range(0, len(wire), cut):
        us.receive_data(wire[start : start + cut])
        events = list(us.events())
        assert all(event.message_finished for event in events)
        received += data_of(events)
    assert received == b"".join(messages)


def test_frames_that_came_with_the_upgrade_are_not_lost():
    us, theirs = end(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    theirs.receive_data(us.send(Request(host="x", target="/")))
    list(theirs.events())
    us.receive_data(theirs.send(AcceptConnection()) + theirs.send(BytesMessage(data=b"early")))
    assert us.is_open
    accepted, early = us.events()
    assert isinstance(accepted, AcceptConnection)
    assert early.data == b"early"


@BOTH
def test_one_read_makes_one_message_and_one_pong(kind):
    us, theirs = upgraded(kind)
    parts = [Ping(b"1"), BytesMessage(b"a"), Ping(b"2"), BytesMessage(b"b"), CloseConnection(1000)]
    us.receive_data(b"".join(map(theirs.send, parts)))
    ping, data, close = us.events()
    assert (ping.payload, data.data, close.code) == (b"2", b"ab", 1000)
    assert us.failure is None


@BOTH
@pytest.mark.parametrize("frame", [Ping(), Pong(), BytesMessage(b"", message_finished=False)])
def test_frames_that_carry_nothing_are_bounded_in_a_row(kind, frame):
    us, theirs = upgraded(kind)
    for _ in range(3):
        for _ in range(MAX_EMPTY):
            us.receive_data(theirs.send(frame))
        us.receive_data(theirs.send(BytesMessage(b"x", message_finished=False)))
    list(us.events())
    with pytest.raises(RemoteProtocolError) as refused:
        us.receive_data(theirs.send(frame) * (MAX_EMPTY + 1))
    assert refused.value.event_hint.code == 1008
    assert isinstance(us.failure, ProtocolError)
    assert "carried nothing" in str(us.failure)


@BOTH
@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (b"\x81\x01x", 1003, "text"),
        (b"\xb2\x01x", 1002, "Reserved bit"),
        (b"\x83\x01x", 1002, "Invalid opcode"),
        (b"\x80\x01x", 1002, "CONTINUATION"),
        (b"\x09\x01x", 1002, "fragment control frame"),
        (b"\x82\x7e\x00\x01x", 1002, "2 bytes"),
        (b"\x82\x7f" + bytes(8), 1002, "8 bytes"),
        (b"\x82\x7f" + b"\xff" * 8, 1002, "MSB"),
        (b"\x89\x7e\x00\x7e", 1002, "control frame"),
        (b"\x88\x01x", 1002, "CLOSE"),
        (b"\x88\x02\x03\xed", 1002, "CLOSE"),
    ],
)
def test_each_broken_frame_is_one_typed_failure_with_a_goodbye(kind, frame, code, reason):
    us, _ = upgraded(kind)
    if not us.client:  # what a client sends is masked; zeros mask nothing
        size = {126: 4, 127: 10}.get(frame[1], 2)
        frame = frame[:1] + bytes([frame[1] | 0x80]) + frame[2:size] + bytes(4) + frame[size:]
    with pytest.raises(RemoteProtocolError) as refused:
        us.receive_data(frame)
    assert refused.value.event_hint.code == code
    assert type(us.failure) is ProtocolError
    assert reason.lower() in str(us.failure).lower()
    assert us.send(refused.value.event_hint)


@BOTH
def test_the_wrong_mask_is_a_broken_frame(kind):
    us, _ = upgraded(kind)
    frame = b"\x82\x01x" if not us.client else b"\x82\x81\x00\x00\x00\x00x"
    with pytest.raises(RemoteProtocolError, match="masked"):
        us.receive_data(frame)


@BOTH
def test_a_pong_that_was_under_way_when_we_said_goodbye_is_dropped(kind):
    us, _ = upgraded(kind)
    us.send(CloseConnection(code=1000))
    assert us.send(Pong(b"x")) == b""


@BOTH
def test_rules_broken_after_our_goodbye_get_no_second_one(kind):
    us, theirs = upgraded(kind)
    us.send(CloseConnection(code=1000))
    with pytest.raises(RemoteProtocolError) as refused:
        us.receive_data(theirs.send(TextMessage("x")))
    assert refused.value.event_hint is None


# --- upgrades ------------------------------------------------------------------------------------

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
HEADERS = [
    "Host",
    "Connection",
    "Upgrade",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Accept",
    "Sec-WebSocket-Extensions",
    "Sec-WebSocket-Protocol",
]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x13/multistream/1.0.0\n\r\n\r\n",
        b"\r\n\r\n\x00\x00\r\n\r\n",
        REQUEST.replace(b"GET", b"POST"),
        REQUEST.replace(b"Host: x\r\n", b""),
        REQUEST.replace(b"Host: x", b"Host: " + "é".encode()),
        REQUEST.replace(b"Upgrade: websocket\r\n", b""),
        REQUEST.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        REQUEST.replace(b"Connection: Upgrade", b"Connection: \xff"),
        REQUEST.replace(b"Version: 13", b"Version: 8"),
        REQUEST.replace(b"Sec-WebSocket-Key", b"X-Key"),
        REQUEST.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 20_000),
    ],
)
def test_each_bad_request_is_refused_with_an_answer_and_a_typed_failure(request_):
    us = end(ConnectionType.SERVER)
    with pytest.raises(RemoteProtocolError) as refused:
        us.receive_data(request_)
    assert isinstance(us.failure, HandshakeError)
    assert us.send(refused.value.event_hint).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x13/multistream/1.0.0\n\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n12345",
        b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        SWITCHING + b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000,
    ],
)
def test_each_bad_answer_is_a_typed_failure(answer):
    us = end(ConnectionType.CLIENT)
    us.send(Request(host="x", target="/"))
    with pytest.raises(RemoteProtocolError) as refused:
        us.receive_data(answer)
    assert refused.value.event_hint is None
    assert isinstance(us.failure, HandshakeError)
    assert not us.is_open


@BOTH
@given(data=st.lists(st.binary(min_size=1, max_size=60), max_size=6), after=st.booleans())
def test_no_bytes_make_more_than_a_typed_failure(kind, data, after):
    if after:
        us, _ = upgraded(kind)
    else:
        us = end(kind)
        if us.client:
            us.send(Request(host="x", target="/"))
    try:
        for each in data:
            us.receive_data(each)
            if any(isinstance(event, CloseConnection) for event in us.events()):
                break
    except RemoteProtocolError as error:
        assert isinstance(us.failure, ProtocolError)
        if error.event_hint is not None:
            us.send(error.event_hint)


@given(
    line=st.sampled_from([b"GET / HTTP/1.1", b"HTTP/1.1 101 X", b"HTTP/1.1 200 OK"]),
    headers=st.lists(
        st.tuples(
            st.sampled_from(HEADERS),
            st.binary(max_size=20) | st.sampled_from([b"websocket", b"Upgrade", b"13"]),
        )
    ),
    kind=st.sampled_from(list(ConnectionType)),
)
def test_no_headers_make_more_than_a_typed_failure(line, headers, kind):
    us = end(kind)
    if us.client:
        us.send(Request(host="x", target="/"))
    text = b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in headers)
    try:
        us.receive_data(line + b"\r\n" + text + b"\r\n")
    except RemoteProtocolError as error:
        assert isinstance(us.failure, HandshakeError)
        if error.event_hint is not None:
            us.send(error.event_hint)
    else:
        assert us.state in {ConnectionState.CONNECTING, ConnectionState.OPEN}


def test_two_that_ask_each_other_for_an_upgrade_notice_that_both_have_dialled():
    one, other = end(ConnectionType.CLIENT), end(ConnectionType.CLIENT)
    requests = [each.send(Request(host="x", target="/")) for each in (one, other)]
    for side, request_ in zip((one, other), reversed(requests), strict=True):
        with pytest.raises(RemoteProtocolError) as refused:
            side.receive_data(request_)
        assert refused.value.event_hint is None
        assert isinstance(side.failure, SimultaneousOpenError)
