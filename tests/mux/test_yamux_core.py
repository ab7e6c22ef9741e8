"""Two cores wired together without a channel: what they say, keep, refuse and forget."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pnode.config import KIB, MIB, NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.mux.yamux.core import MAX_CONTROL_FRAMES, YamuxCore
from p2pnode.mux.yamux.frames import Flag, FrameType, GoAwayCode, Header
from p2pnode.mux.yamux.nuisances import NUISANCE_BURST, NUISANCE_RATE
from p2pnode.mux.yamux.outbox import ACK_DELAY
from p2pnode.mux.yamux.state import EventKind

WINDOW = 256 * KIB
RESET = StreamResetError("test")
BUDGET = 1 * MIB


def make(*, is_client=True, now=0.0, **changes):
    return YamuxCore(is_client=is_client, settings=NetworkSettings(**changes), now=now)


def quiet(core, now=0.0):
    """Get the first keep-alive ping out of the way."""
    core.handle_timeout(now)
    out(core)
    core.liveness._pings.clear()
    return core


def out(core, budget=BUDGET):
    output = core.outbox.next_frames(budget)
    data = b"".join(map(bytes, output.buffers))
    core.wrote(output)
    return data


def out_all(core):
    data = b""
    while core.outbox.has_output:
        data += out(core)
    return data


def frame(kind, flags=Flag.NONE, stream_id=1, length=0, body=b""):
    return Header(kind, flags, stream_id, length or len(body)).encode() + body


def data_frame(body, stream_id=1, flags=Flag.NONE):
    return frame(FrameType.DATA, flags, stream_id, len(body), body)


def headers(data):
    """Cut bytes into frames; returns their headers."""
    found = []
    while data:
        header = Header.decode(data[:12])
        found.append(header)
        data = data[12 + (header.length if header.kind == FrameType.DATA else 0) :]
    return found


def exchange(one, other, now=0.0):
    """Carry everything both have to say."""
    while one.outbox.has_output or other.outbox.has_output:
        other.receive_data(out(one), now)
        one.receive_data(out(other), now)


def take_all(core, stream, now=0.0):
    data = b""
    while stream.received:
        data += bytes(core.take(stream, None, now))
    return data


def connected(now=0.0, **changes):
    client, server = make(**changes), make(is_client=False, **changes)
    quiet(client, now)
    quiet(server, now)
    return client, server


def opened(client, server, now=0.0):
    """Open a stream that both know of."""
    ours = client.open_stream(now)
    client.greet(ours)
    exchange(client, server, now)
    theirs = server.streams[ours.stream_id]
    server.accept(theirs, now)
    server.greet(theirs)
    exchange(client, server, now)
    return ours, theirs


def is_empty(core):
    """Whether nothing is left of any stream."""
    leftovers = (core.streams, core._discarding, core.outbox._unanswered, core.outbox._held)
    return (
        not any(leftovers)
        and core._backlog == core.outbox.unacknowledged == core._windows.grown == 0
    )


# --- the wire ------------------------------------------------------------------------------------


def test_the_wire_is_pinned():
    client, server = make(), quiet(make(is_client=False))
    client.handle_timeout(0.0)
    stream = client.open_stream(0.0)
    client.send(stream, memoryview(b"hello"))
    client.finish(stream)
    said = out(client)
    assert said.hex() == (
        "000200010000000000000000"  # ping
        "00000001000000010000000568656c6c6f"  # data, SYN
        "000100040000000100000000"  # window update, FIN
    )  # fmt: skip
    server.receive_data(said, 0.0)
    theirs = server.streams[1]
    server.accept(theirs, 0.0)
    server.send(theirs, memoryview(b"hi"))
    assert out(server).hex() == (
        "000200020000000000000000"  # ping, ACK
        "0000000200000001000000026869"  # data, ACK
    )  # fmt: skip
    server.reset(theirs, RESET, code=7)
    server.go_away(GoAwayCode.PROTOCOL_ERROR)
    assert out(server).hex() == (
        "000100080000000100000007"  # window update, RST
        "000300000000000000000001"  # go away
    )  # fmt: skip


def test_the_dialer_has_the_odd_ids_and_the_listener_the_even_ones():
    client, server = connected()
    assert [client.open_stream(0.0).stream_id for _ in range(3)] == [1, 3, 5]
    assert [server.open_stream(0.0).stream_id for _ in range(3)] == [2, 4, 6]


def test_a_stream_that_is_read_first_opens_with_a_window_update():
    core = quiet(make())
    core.greet(core.open_stream(0.0))
    assert headers(out(core)) == [Header(FrameType.WINDOW_UPDATE, Flag.SYN, 1, 0)]


def test_an_end_never_rides_on_data():
    client, server = connected()
    ours, _ = opened(client, server)
    client.send(ours, memoryview(b"last words"))
    client.finish(ours)
    assert [(each.kind, each.flags) for each in headers(out(client))] == [
        (FrameType.DATA, Flag.NONE),
        (FrameType.WINDOW_UPDATE, Flag.FIN),
    ]


def test_a_stream_nobody_used_leaves_no_trace():
    core = quiet(make())
    core.discard(core.open_stream(0.0), 0.0)
    core.reset(core.open_stream(0.0), RESET)
    assert not out_all(core)
    assert is_empty(core)


def test_data_goes_out_from_where_it_lies():
    core = quiet(make())
    data = bytearray(100_000)
    core.send(core.open_stream(0.0), memoryview(data))
    buffers = core.outbox.next_frames(BUDGET).buffers
    views = [each for each in buffers if isinstance(each, memoryview)]
    assert sum(map(len, views)) == len(data)
    assert all(view.obj is data for view in views)


@given(st.lists(st.integers(1, 40), max_size=60), st.data())
def test_frames_may_be_cut_anywhere(sizes, data):
    whole = (
        data_frame(b"first", flags=Flag.SYN)
        + frame(FrameType.PING, Flag.SYN, 0, 99)
        + data_frame(b"second")
        + frame(FrameType.WINDOW_UPDATE, Flag.SYN, 3, 100)
        + data_frame(b"third", 3, Flag.FIN)
        + data_frame(b"and last", 1, Flag.FIN)
    )
    core = quiet(make(is_client=False))
    events = []
    for size in [*sizes, len(whole)]:
        events += core.receive_data(whole[:size], 0.0)
        whole = whole[size:]
    streams = core.streams
    assert take_all(core, streams[1]) == b"firstsecondand last"
    assert take_all(core, streams[3]) == b"third"
    assert streams[1].remote_finished
    assert streams[3].remote_finished
    assert streams[3].send_window == WINDOW + 100
    assert [each.stream.stream_id for each in events if each.kind is EventKind.OPENED] == [1, 3]
    assert headers(out(core)) == [Header(FrameType.PING, Flag.ACK, 0, 99)]


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.builds(
                frame,
                st.integers(0, 3),
                st.integers(0, 31),
                st.integers(0, 6),
                st.integers(0, 2**18 + 1),
                st.binary(max_size=30),
            ),
        ),
        max_size=30,
    )
)
def test_garbage_is_refused_or_survived(pieces):
    core = make(is_client=False)
    try:
        for piece in pieces:
            core.receive_data(piece, 0.0)
            core.outbox.next_frames(BUDGET)
            if core.remote_closed:
                break
    except (ProtocolError, ConnectionClosedError) as error:
        core.close(error)
        assert is_empty(core)
    held = sum(stream.received_bytes for stream in core.streams.values())
    assert held <= WINDOW * len(core.streams)


# --- breaking the rules --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"\x01" + bytes(11), "version 1"),
        (b"\x00\x04" + bytes(10), "type 4"),
        (data_frame(b"x", 2, Flag.SYN), "an id of ours"),
        (data_frame(b"x", 1, Flag.SYN) * 2, "twice"),
        (data_frame(b"x", 0), "session's own id"),
        (frame(FrameType.WINDOW_UPDATE, Flag.NONE, 0, 5), "session's own id"),
        (frame(FrameType.DATA, Flag.SYN, 1, WINDOW + 1), "with a window of 262144"),
        (data_frame(b"x", 1, Flag.SYN | Flag.FIN) + data_frame(b"y"), "behind the end"),
        (
            frame(FrameType.WINDOW_UPDATE, Flag.SYN)
            + frame(FrameType.WINDOW_UPDATE, Flag.NONE, 1, 2**32 - 1),
            "exceeds 32 bits",
        ),
    ],
)
def test_a_broken_rule_ends_the_session(broken, reason):
    with pytest.raises(ProtocolError, match=reason):
        make(is_client=False).receive_data(broken, 0.0)


def test_the_window_counts_over_frames():
    core = make(is_client=False)
    core.receive_data(data_frame(bytes(WINDOW - 1), 1, Flag.SYN), 0.0)
    core.receive_data(data_frame(b"x"), 0.0)
    with pytest.raises(ProtocolError, match="window of 0"):
        core.receive_data(data_frame(b"x"), 0.0)


def test_unknown_flags_are_ignored():
    core = make(is_client=False)
    core.receive_data(data_frame(b"x", 1, Flag.SYN | 0xFFF0), 0.0)
    assert take_all(core, core.streams[1]) == b"x"


def test_frames_of_a_dead_stream_are_read_past():
    client, server = connected()
    ours, theirs = opened(client, server)
    server.receive_data(data_frame(bytes(10))[:15], 0.0)  # reset in the middle of a body
    server.reset(theirs, RESET)
    server.receive_data(bytes(7), 0.0)
    events = server.receive_data(
        data_frame(b"late")
        + frame(FrameType.WINDOW_UPDATE, Flag.NONE, 1, 50)
        + frame(FrameType.WINDOW_UPDATE, Flag.FIN)
        + frame(FrameType.WINDOW_UPDATE, Flag.RST)
        + data_frame(b"of a stream never opened", 77),
        0.0,
    )
    assert not events
    assert is_empty(server)
    assert ours.stream_id == 1


def test_a_peer_cannot_speak_on_a_stream_it_was_not_told_of():
    core = quiet(make())
    stream = core.open_stream(0.0)
    core.receive_data(data_frame(b"boo") + frame(FrameType.WINDOW_UPDATE, Flag.RST), 0.0)
    assert stream.failure is None
    assert not stream.received


@pytest.mark.parametrize(
    "nuisance",
    [
        lambda number: frame(FrameType.PING, Flag.SYN, 0, number),
        lambda number: (
            frame(FrameType.WINDOW_UPDATE, Flag.SYN, 2 * number + 1)
            + frame(FrameType.WINDOW_UPDATE, Flag.RST, 2 * number + 1)
        ),
        lambda number: data_frame(b""),
        lambda number: frame(FrameType.WINDOW_UPDATE),
    ],
    ids=["pings", "rapid resets", "empty data", "empty grants"],
)
def test_a_flood_of_frames_without_content_ends_the_session(nuisance):
    core = make(is_client=False)
    core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN, 2**31 + 1), 0.0)
    numbers = itertools.count()

    def flood():
        for number in itertools.islice(numbers, 100_000):
            core.receive_data(nuisance(number), 0.0)
            out_all(core)

    with pytest.raises(ProtocolError, match="floods"):
        flood()
    assert next(numbers) == NUISANCE_BURST + 1


def test_nuisances_are_forgiven_at_an_honest_rate():
    core = make(is_client=False)
    for number in range(20_000):
        core.receive_data(
            frame(FrameType.PING, Flag.SYN, 0, number), number / (NUISANCE_RATE * 0.99)
        )
        out_all(core)


def test_streams_beyond_the_limit_are_refused_one_by_one_and_then_for_good():
    core = quiet(make(is_client=False, yamux_accept_backlog=3))
    syns = [frame(FrameType.WINDOW_UPDATE, Flag.SYN, number) for number in range(1, 11, 2)]
    core.receive_data(b"".join(syns), 0.0)
    assert list(core.streams) == [1, 3, 5]
    assert [(each.flags, each.stream_id) for each in headers(out(core))] == [
        (Flag.RST, 7),
        (Flag.RST, 9),
    ]
    core.accept(core.streams[1], 0.0)
    core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN, 11), 0.0)
    assert 11 in core.streams

    def flood():
        for number in range(13, 100_000, 2):
            core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN, number), 0.0)
            out_all(core)

    with pytest.raises(ProtocolError, match="floods"):
        flood()


def test_a_peer_that_never_reads_cannot_make_answers_pile_up():
    core = make(is_client=False)

    def flood():
        for number in range(100_000):
            core.receive_data(frame(FrameType.PING, Flag.SYN, 0, number), number * 1.0)

    with pytest.raises(ProtocolError, match="faster than it reads"):
        flood()
    assert len(core.outbox._control) <= MAX_CONTROL_FRAMES + 1


def test_used_up_ids_are_refused():
    core = make()
    core._next_id = 2**32 - 1
    core.open_stream(0.0)
    with pytest.raises(ResourceLimitError, match="used up"):
        core.open_stream(0.0)


# --- windows -------------------------------------------------------------------------------------


def test_a_sender_stops_at_the_window_and_goes_on_when_it_is_granted():
    client, server = connected()
    ours, theirs = opened(client, server)
    client.send(ours, memoryview(bytes(WINDOW + 1000)))
    server.receive_data(out_all(client), 0.0)
    assert theirs.received_bytes == WINDOW
    assert not client.outbox.has_output
    assert ours.unwritten == 1000
    taken = len(take_all(server, theirs))
    exchange(client, server)
    assert taken + len(take_all(server, theirs)) == WINDOW + 1000
    assert ours.unwritten == 0


def test_nothing_is_granted_before_half_a_window_is_read():
    client, server = connected()
    ours, theirs = opened(client, server)
    client.send(ours, memoryview(bytes(WINDOW)))
    server.receive_data(out_all(client), 0.0)
    server.take(theirs, 30_000, 0.0)
    assert not server.outbox.has_output
    while theirs.received_bytes > WINDOW // 2:
        server.take(theirs, 1000, 0.0)
    grants = headers(out(server))
    assert [each.kind for each in grants] == [FrameType.WINDOW_UPDATE]
    assert grants[0].length == WINDOW - theirs.received_bytes


def fill(client, server, ours, theirs, *, now):
    """Send one window's worth and read it."""
    client.send(ours, memoryview(bytes(theirs.receive_target)))
    while theirs.receive_window or theirs.received:
        server.receive_data(out_all(client), now)
        if not theirs.received:
            break
        take_all(server, theirs, now)
        client.receive_data(out_all(server), now)


def test_the_window_doubles_while_it_is_used_up_quickly_up_to_its_limit():
    client, server = connected()
    server.liveness.round_trip = 0.1
    ours, theirs = opened(client, server)
    targets = []
    for round_number in range(12):
        fill(client, server, ours, theirs, now=round_number * 0.1)
        targets.append(theirs.receive_target)
    assert targets[0] >= 2 * WINDOW
    assert targets == sorted(targets)
    assert targets[-1] == 16 * MIB


@pytest.mark.parametrize(("round_trip", "pause"), [(None, 0.0), (0.1, 0.5)])
def test_the_window_stays_when_it_is_used_up_slowly_or_the_delay_is_unknown(round_trip, pause):
    client, server = connected(keepalive_interval=1e9)
    server.liveness.round_trip = round_trip
    ours, theirs = opened(client, server)
    for number in range(1, 20):
        client.send(ours, memoryview(bytes(WINDOW // 2)))
        exchange(client, server, number * pause)
        assert len(take_all(server, theirs, number * pause)) == WINDOW // 2
        exchange(client, server, number * pause)
    assert theirs.receive_target == WINDOW


def test_all_windows_of_a_session_grow_within_one_budget_which_comes_back():
    client, server = connected(yamux_session_window=1 * MIB)
    server.liveness.round_trip = 1.0
    pairs = [opened(client, server) for _ in range(4)]
    for _ in range(4):
        for ours, theirs in pairs:
            fill(client, server, ours, theirs, now=0.0)
    grown = sum(theirs.receive_target - WINDOW for _, theirs in pairs)
    assert WINDOW < grown <= 1 * MIB
    for ours, _ in pairs:
        client.reset(ours, RESET)
    exchange(client, server)
    assert is_empty(client)
    assert is_empty(server)


def test_small_pieces_cost_no_more_than_their_bytes():
    core = make(is_client=False)
    core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN), 0.0)
    whole = b"".join(data_frame(b"x") for _ in range(5000))
    for start in range(0, len(whole), 65_000):
        core.receive_data(whole[start : start + 65_000], 0.0)
    assert core.streams[1].received_bytes == 5000
    assert len(core.streams[1].received) <= 3
    assert take_all(core, core.streams[1]) == b"x" * 5000


# --- whose turn it is ----------------------------------------------------------------------------


def test_bulk_streams_take_turns():
    core = quiet(make(yamux_max_frame=10_000))
    streams = [core.open_stream(0.0) for _ in range(3)]
    for stream in streams:
        core.send(stream, memoryview(bytes(50_000)))
    assert [each.stream_id for each in headers(out_all(core))] == [1, 3, 5] * 5


def test_control_frames_go_first_then_small_messages_then_bulk():
    core = quiet(make())
    bulk, small = core.open_stream(0.0), core.open_stream(0.0)
    core.send(bulk, memoryview(bytes(200_000)))
    core.send(small, memoryview(b"urgent"))
    core.ping(0.0)
    order = [(each.kind, each.stream_id) for each in headers(out(core))[:3]]
    assert order == [(FrameType.PING, 0), (FrameType.DATA, 3), (FrameType.DATA, 1)]


def test_small_messages_without_end_do_not_starve_bulk():
    core = quiet(make(yamux_accept_backlog=5000))
    bulk = core.open_stream(0.0)
    core.send(bulk, memoryview(bytes(WINDOW)))
    sent = 0
    for _ in range(40):
        while len(core.outbox._small) < 100:
            core.send(core.open_stream(0.0), memoryview(bytes(4000)))
        sent += sum(each.length for each in headers(out(core, 100_000)) if each.stream_id == 1)
    assert sent == WINDOW


def test_a_budget_bounds_what_is_given_out_at_once():
    core = quiet(make())
    for _ in range(10):
        core.send(core.open_stream(0.0), memoryview(bytes(WINDOW)))
    frame_size = NetworkSettings().yamux_max_frame
    assert 300_000 <= len(out(core, 300_000)) <= 300_000 + frame_size + 12
    assert core.outbox.has_output


# --- opening and answering -----------------------------------------------------------------------


def test_an_acknowledgement_rides_on_the_first_frame_back():
    client, server = connected()
    ours = client.open_stream(0.0)
    client.send(ours, memoryview(b"hi"))
    server.receive_data(out(client), 0.0)
    assert not server.outbox.has_output
    theirs = server.streams[1]
    server.accept(theirs, 0.0)
    server.send(theirs, memoryview(b"hello"))
    assert headers(out(server)) == [Header(FrameType.DATA, Flag.ACK, 1, 5)]
    assert not server.handle_timeout(ACK_DELAY)
    assert not server.outbox.has_output


def test_an_acknowledgement_does_not_wait_for_long():
    server = quiet(make(is_client=False))
    server.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN), 0.0)
    assert server.next_deadline() > 1.0  # not before somebody accepts it
    server.accept(server.streams[1], 0.0)
    assert server.next_deadline() == ACK_DELAY
    server.handle_timeout(ACK_DELAY)
    assert headers(out(server)) == [Header(FrameType.WINDOW_UPDATE, Flag.ACK, 1, 0)]
    assert server.next_deadline() > 1.0


def test_streams_the_peer_has_not_answered_are_bounded_and_the_others_wait():
    client = quiet(make(yamux_accept_backlog=2))
    streams = [client.open_stream(0.0) for _ in range(5)]
    for stream in streams:
        client.send(stream, memoryview(b"x"))
    assert [each.stream_id for each in headers(out_all(client))] == [1, 3]
    client.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.ACK, 3), 0.0)
    assert [each.stream_id for each in headers(out_all(client))] == [5]
    client.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.RST, 1), 0.0)  # refused: room again
    client.reset(streams[3], RESET)  # given up while it waited
    assert [each.stream_id for each in headers(out_all(client))] == [9]
    client.receive_data(data_frame(b"an answer, too", 9) + data_frame(b"likewise", 5), 0.0)
    for stream in streams:
        client.reset(stream, RESET)
    assert is_empty(client)


def test_a_stream_reset_before_it_is_accepted_leaves_the_backlog():
    server = quiet(make(is_client=False, yamux_accept_backlog=1))
    for number in range(1, 21, 2):
        server.receive_data(
            frame(FrameType.WINDOW_UPDATE, Flag.SYN, number)
            + frame(FrameType.WINDOW_UPDATE, Flag.RST, number),
            0.0,
        )
    assert is_empty(server)
    assert not server.outbox.has_output


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_first", [True, False])
def test_each_direction_ends_by_itself_and_then_the_stream_is_forgotten(client_first):
    client, server = connected()
    ours, theirs = opened(client, server)
    first, last = (client, ours), (server, theirs)
    if not client_first:
        first, last = last, first
    first[0].finish(first[1])
    exchange(client, server)
    assert last[1].remote_finished
    assert not first[1].remote_finished
    last[0].send(last[1], memoryview(b"still here"))
    exchange(client, server)
    assert take_all(*first) == b"still here"
    last[0].finish(last[1])
    exchange(client, server)
    assert is_empty(client)
    assert is_empty(server)


def test_a_reset_drops_what_nobody_has_read_and_tells_why():
    client, server = connected()
    ours, theirs = opened(client, server)
    client.send(ours, memoryview(b"never read"))
    exchange(client, server)
    client.reset(ours, RESET, code=42)
    exchange(client, server)
    assert isinstance(theirs.receive_failure, StreamResetError)
    assert "42" in str(theirs.failure)
    assert not theirs.received
    assert is_empty(server)


def test_a_closed_stream_lets_its_peer_finish_and_read_our_last_words():
    client, server = connected()
    ours, theirs = opened(client, server)
    client.send(ours, memoryview(bytes(8 * MIB)))
    server.send(theirs, memoryview(b"too large"))
    server.discard(theirs, 0.0)
    exchange(client, server)
    assert ours.unwritten == 0
    assert take_all(client, ours) == b"too large"
    assert ours.remote_finished
    assert theirs.received_bytes == 0
    client.finish(ours)
    exchange(client, server)
    assert is_empty(server)


def test_a_peer_that_does_not_finish_a_closed_stream_loses_it():
    client, server = connected(stream_close_timeout=60.0, keepalive_interval=1e9)
    ours, theirs = opened(client, server)
    server.discard(theirs, 10.0)
    assert server.next_deadline() == 70.0
    server.handle_timeout(69.9)
    assert theirs.failure is None
    events = server.handle_timeout(70.0)
    assert EventKind.FORGOTTEN in {each.kind for each in events}
    assert is_empty(server)
    exchange(client, server)
    assert isinstance(ours.failure, StreamResetError)


def test_a_session_that_ends_keeps_what_was_received():
    client, server = connected()
    whole, partial = opened(client, server), opened(client, server)
    for ours, _ in (whole, partial):
        client.send(ours, memoryview(b"data"))
    client.finish(whole[0])
    exchange(client, server)
    server.close(ConnectionClosedError("gone"))
    assert take_all(server, whole[1]) == take_all(server, partial[1]) == b"data"
    assert whole[1].receive_failure is None  # it had ended cleanly
    assert isinstance(partial[1].receive_failure, ConnectionClosedError)
    assert isinstance(whole[1].failure, ConnectionClosedError)
    assert is_empty(server)
    with pytest.raises(ConnectionClosedError, match="gone"):
        server.open_stream(0.0)


def test_what_is_queued_on_a_lost_stream_does_not_hold_up_the_goodbye():
    core = quiet(make(is_client=False))
    core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN), 0.0)
    stream = core.streams[1]
    core.accept(stream, 0.0)
    core.close(ProtocolError("broken"))
    core.send_later(stream, memoryview(b"an answer to a proposal"))
    core.go_away(GoAwayCode.PROTOCOL_ERROR)
    assert headers(out_all(core))[-1].kind == FrameType.GO_AWAY
    assert core.outbox.queued == 0


def test_goodbye_is_said_behind_all_that_can_be_sent():
    client, server = connected()
    ours, theirs = opened(client, server)
    client.send(ours, memoryview(bytes(100_000)))
    client.finish(ours)
    client.go_away(GoAwayCode.NORMAL)
    with pytest.raises(ConnectionClosedError):
        client.open_stream(0.0)
    server.receive_data(out_all(client), 0.0)
    assert server.remote_closed
    assert len(take_all(server, theirs)) == 100_000
    assert theirs.remote_finished


def test_after_goodbye_new_streams_are_refused_and_nothing_more_is_heard():
    client, server = connected()
    server.go_away(GoAwayCode.NORMAL)
    server.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN), 0.0)
    assert [(each.kind, each.flags) for each in headers(out(server))] == [
        (FrameType.WINDOW_UPDATE, Flag.RST),
        (FrameType.GO_AWAY, Flag.NONE),
    ]
    client.receive_data(frame(FrameType.GO_AWAY, Flag.NONE, 0) + b"\xff" * 100, 0.0)
    assert client.remote_closed


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "broke the rules"), (2, "failed itself"), (77, "code 77")]
)
def test_a_peer_that_ends_the_session_for_an_error_is_quoted(code, reason):
    with pytest.raises(ConnectionClosedError, match=reason):
        make().receive_data(frame(FrameType.GO_AWAY, Flag.NONE, 0, code), 0.0)


# --- signs of life -------------------------------------------------------------------------------


def test_the_peer_is_asked_for_a_sign_of_life_at_once_and_then_regularly():
    core = make(keepalive_interval=30.0)
    pings = []
    for now in (0.0, 29.0, 30.0, 59.0, 60.0):
        core.handle_timeout(now)
        pings += [(now, each.length) for each in headers(out(core))]
        core.receive_data(
            b"".join(frame(FrameType.PING, Flag.ACK, 0, number) for _, number in pings), now
        )
    assert pings == [(0.0, 0), (30.0, 1), (60.0, 2)]


def test_a_silent_peer_is_given_up():
    core = make(keepalive_timeout=10.0)
    core.handle_timeout(0.0)
    assert core.next_deadline() == 10.0
    core.handle_timeout(9.9)
    with pytest.raises(ConnectionClosedError, match="stopped answering"):
        core.handle_timeout(10.0)


def test_any_traffic_is_a_sign_of_life():
    core = make(is_client=False, keepalive_timeout=10.0)
    core.handle_timeout(0.0)
    core.receive_data(data_frame(b"x", 1, Flag.SYN), 9.0)  # the answer is behind it
    core.handle_timeout(18.0)
    with pytest.raises(ConnectionClosedError):
        core.handle_timeout(19.0)


def test_the_round_trip_is_the_shortest_recent_one():
    core = make()
    for sent_at, answered_at, expected in [(0, 5, 5), (10, 11, 1), (20, 29, 1.25)]:
        number = core.ping(sent_at)
        core.receive_data(frame(FrameType.PING, Flag.ACK, 0, number), answered_at)
        assert not core.liveness.is_waiting_for(number)
        assert core.liveness.round_trip == expected


def test_an_answer_nobody_asked_for_means_nothing():
    core = make()
    core.receive_data(frame(FrameType.PING, Flag.ACK, 0, 12345), 1.0)
    assert core.liveness.round_trip is None
    assert not core.outbox.has_output


# --- everything at once --------------------------------------------------------------------------


class TwoCores(RuleBasedStateMachine):
    """Any order of operations: bytes arrive unchanged and in order, and nothing leaks."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        changes = {"yamux_max_frame": 40_000, "yamux_accept_backlog": 4}
        self.sides = [make(**changes), make(is_client=False, **changes)]
        self.streams = [{}, {}]  # by side: id -> state
        self.sent = {}  # (side, id) -> bytes
        self.taken = {}
        self.counter = 0

    def pick(self, side, number):
        ids = sorted(self.streams[side])
        return self.streams[side][ids[number % len(ids)]] if ids else None

    @rule(side=st.integers(0, 1))
    def open_one(self, side):
        stream = self.sides[side].open_stream(self.now)
        self.streams[side][stream.stream_id] = stream

    @rule(side=st.integers(0, 1), number=st.integers(0, 9), size=st.integers(1, 300_000))
    def send_some(self, side, number, size):
        stream = self.pick(side, number)
        if stream and stream.failure is None and not stream.finish_wanted:
            self.counter += 1
            data = (self.counter.to_bytes(4, "big") * (size // 4 + 1))[:size]
            self.sides[side].send(stream, memoryview(data))
            key = (side, stream.stream_id)
            self.sent[key] = self.sent.get(key, b"") + data

    @rule(side=st.integers(0, 1), number=st.integers(0, 9), size=st.integers(1, 400_000))
    def take_some(self, side, number, size):
        stream = self.pick(side, number)
        if stream and stream.received:
            piece = bytes(self.sides[side].take(stream, size, self.now))
            key = (1 - side, stream.stream_id)
            self.taken[key] = self.taken.get(key, b"") + piece

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def finish_one(self, side, number):
        stream = self.pick(side, number)
        if stream and stream.failure is None:
            self.sides[side].finish(stream)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def close_one(self, side, number):
        stream = self.pick(side, number)
        if stream and stream.failure is None and not stream.discarding:
            self.sides[side].discard(stream, self.now)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def reset_one(self, side, number):
        if stream := self.pick(side, number):
            self.sides[side].reset(stream, RESET)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def read_first(self, side, number):
        if stream := self.pick(side, number):
            self.sides[side].greet(stream)

    @rule(side=st.integers(0, 1), budget=st.integers(1, 500_000))
    def carry(self, side, budget):
        data = out(self.sides[side], budget)
        receiver = self.sides[1 - side]
        for event in receiver.receive_data(data, self.now):
            if event.kind is EventKind.OPENED:
                receiver.accept(event.stream, self.now)
                self.streams[1 - side][event.stream.stream_id] = event.stream

    @rule(seconds=st.floats(0.001, 5.0))
    def wait(self, seconds):
        self.now += seconds
        for side in self.sides:
            side.handle_timeout(self.now)
        for side in (0, 1, 0, 1):
            self.carry(side, 10_000_000)

    @precondition(lambda self: self.taken)
    @invariant()
    def bytes_arrive_unchanged_and_in_order(self):
        for key, data in self.taken.items():
            assert self.sent[key].startswith(data)

    @invariant()
    def buffers_are_bounded(self):
        for side in self.sides:
            for stream in side.streams.values():
                assert stream.received_bytes + stream.receive_window <= stream.receive_target

    def teardown(self):
        for side in (0, 1):
            for stream in self.streams[side].values():
                if stream.failure is None and not stream.discarding:
                    self.sides[side].discard(stream, self.now)
        for _ in range(200):
            self.carry(0, 10_000_000)
            self.carry(1, 10_000_000)
        self.now += 1000
        for side in self.sides:
            side.liveness._pings.clear()
            side.handle_timeout(self.now)
        self.carry(0, 10_000_000)
        self.carry(1, 10_000_000)
        assert all(map(is_empty, self.sides))


TestTwoCores = TwoCores.TestCase
TestTwoCores.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_no_command_of_ours_fails_because_of_the_peer():
    # What an application calls must not raise because answers pile up: the session ends instead.
    core = quiet(make(is_client=False))
    for number in range(1, 500, 2):
        core.receive_data(frame(FrameType.WINDOW_UPDATE, Flag.SYN, number), 0.0)
        core.accept(core.streams[number], 0.0)
    core.outbox._control.extend([b"x" * 12] * (MAX_CONTROL_FRAMES + 1))
    for stream in list(core.streams.values()):
        core.reset(stream, RESET)
    with pytest.raises(P2PNodeError, match="faster than it reads"):
        core.receive_data(data_frame(b"x", 1), 0.0)


# --- straight to the reader ---------------------------------------------------------------------


def deliver(core, wire, cuts):
    """Give the peer's bytes to `core` in pieces, as a channel does, wherever it wants them."""
    cuts = itertools.cycle(cuts)
    while wire:
        size = min(next(cuts), len(wire))
        piece, wire = wire[:size], wire[size:]
        destination = core.destination(size)
        if destination is None:
            core.receive_data(piece, 0.0)
        else:
            destination[:] = piece
            core.receive_placed(size, 0.0)
        yield


@given(
    frames=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    cuts=st.lists(st.sampled_from([1, 7, 12, 500, 4096, 30_000]), min_size=1),
    wants=st.lists(st.integers(1, 6000), min_size=1),
    late=st.booleans(),
)
@settings(deadline=None)
def test_a_readers_buffers_get_the_bytes_in_order_however_they_come(frames, cuts, wants, late):
    core = quiet(make())
    stream = core.open_stream(0.0)
    core.greet(stream)
    out(core)
    bodies = [bytes([number + 1]) * size for number, size in enumerate(frames)]
    wire = b"".join(map(data_frame, bodies)) + frame(FrameType.WINDOW_UPDATE, Flag.FIN)
    arriving = deliver(core, wire, cuts)
    if late:  # everything is there before anyone reads
        for _ in arriving:
            pass
    received = b""
    for size in itertools.cycle(wants):
        buffer = bytearray(size)
        filled = 0
        while stream.received and filled < size:
            piece = core.take(stream, size - filled, 0.0)
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        if filled < size:
            core.expect(stream, memoryview(buffer)[filled:])
            while stream.destination and not stream.remote_finished:
                next(arriving)
            filled = size - core.stop_expecting(stream)
        received += buffer[:filled]
        if filled < size:
            break
    assert received == b"".join(bodies)
    assert core.bytes_received == len(received)


def test_bytes_go_straight_to_a_reader_only_if_they_are_all_its_own():
    core = quiet(make())
    stream = core.open_stream(0.0)
    core.greet(stream)
    out(core)
    assert core.destination(1) is None  # a header comes first
    core.receive_data(data_frame(bytes(100))[:12], 0.0)
    assert core.destination(100) is None  # nobody waits
    core.expect(stream, memoryview(bytearray(50)))
    assert core.destination(101) is None  # the next frame's header is among them
    assert core.destination(51) is None  # its reader wants less
    assert len(core.destination(50)) == 50
    core.reset(stream, StreamResetError("enough"))
    assert core.destination(50) is None


def test_what_went_straight_to_a_reader_is_granted_again():
    core = quiet(make())
    stream = core.open_stream(0.0)
    core.greet(stream)
    out(core)
    core.expect(stream, memoryview(bytearray(WINDOW)))
    core.receive_data(data_frame(bytes(WINDOW))[:12], 0.0)
    core.destination(WINDOW // 2)
    core.receive_placed(WINDOW // 2, 0.0)
    (grant,) = headers(out_all(core))
    assert (grant.kind, grant.length) == (FrameType.WINDOW_UPDATE, WINDOW // 2)


# --- company -------------------------------------------------------------------------------------


def inbound(core):
    event, *_ = core.receive_data(data_frame(b"?", 2, Flag.SYN), 0.0)
    core.accept(event.stream, 0.0)
    return event.stream


def test_what_can_wait_goes_with_the_next_data():
    core = quiet(make())
    stream = inbound(core)
    core.send_later(stream, memoryview(b"first "))
    assert not core.outbox.has_output
    core.send(stream, memoryview(b"second"))
    assert out(core) == data_frame(b"first second", 2, Flag.ACK)
    assert core.outbox.queued == 0


@pytest.mark.parametrize("acknowledged", [False, True])
def test_what_can_wait_does_not_wait_for_long(acknowledged):
    core = quiet(make())
    stream = inbound(core)
    core.send_later(stream, memoryview(b"alone"))
    if acknowledged:  # by a grant, so that no acknowledgement is due any more
        core.receive_data(data_frame(bytes(WINDOW - 1), 2), 0.0)
        while stream.received:
            core.take(stream, None, 0.0)
        assert Flag.ACK in [each.flags for each in headers(out_all(core))]
    core.handle_timeout(core.next_deadline())
    assert b"alone" in out_all(core)


def test_small_pieces_that_wait_are_copied_together():
    core = quiet(make())
    stream = core.open_stream(0.0)
    for number in range(1000):
        core.send(stream, memoryview(bytes([number % 251]) * 32))
    assert core.outbox.queued == 32_000
    assert len(stream.outgoing) <= 1000 * 32 // 4096 + 2
    wire = out_all(core)
    assert wire[12:] == b"".join(bytes([number % 251]) * 32 for number in range(1000))


def test_unread_bytes_are_read_again_and_cost_no_window():
    core = quiet(make())
    stream = inbound(core)
    core.receive_data(data_frame(b"abc", 2), 0.0)
    taken = bytes(core.take(stream, None, 0.0))
    core.unread(stream, taken[2:])
    assert stream.taken == 2
    assert bytes(core.take(stream, None, 0.0)) == b"bc"
    assert stream.taken == len(taken) == 4
