import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    HandshakeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.security.tls import TlsIdentity
from p2pnode.testing.keys import KINDS, ForeignKey
from p2pnode.transport.quic.core import INITIAL_WINDOW
from p2pnode.transport.quic.engine import MAX_GAPS
from p2pnode.transport.session import Unmetered
from p2pnode.wire.error_codes import ConnectionCode, StreamCode

DATA = bytes(range(256)) * 40


class Meter(Unmetered):
    """Counts what is charged, and refuses from a limit on."""

    def __init__(self, *, streams=1000, growth=1 << 40):
        self.free_streams, self.free_growth = streams, growth
        self.charged = 0

    def open_stream(self, *, inbound, window, now):
        if not self.free_streams:
            raise ResourceLimitError("no room")
        self.free_streams -= 1
        self.charged += window
        return Charge(self, window)


class Charge:
    def __init__(self, meter, window):
        self.meter, self.window = meter, window

    def grow(self, size):
        if size > self.meter.free_growth:
            return False
        self.meter.free_growth -= size
        self.window += size
        self.meter.charged += size
        return True

    def end(self, unread):
        self.meter.charged -= self.window - unread
        self.window = unread


def opened(wire, core, other, data=b"hello"):
    """A stream that both ends know."""
    stream = core.open_stream(wire.now)
    core.send(stream, data)
    wire.flush(core)
    assert wire.run(until=lambda: stream.stream_id in other.streams, seconds=5)
    return stream, other.streams[stream.stream_id]


def read_all(wire, core, stream, *, seconds=60):
    """Read to the end as it comes."""
    found = bytearray()
    end = wire.now + seconds
    while wire.now < end:
        while stream.received:
            found += core.take(stream, None, wire.now)
            wire.flush(core)
        if stream.remote_finished or stream.receive_failure or not wire.step():
            break
    while stream.received:
        found += core.take(stream, None, wire.now)
    return bytes(found)


def test_both_sides_prove_who_they_are(wire):
    ours, theirs = wire.pair()
    assert ours.identity == wire.keys["192.0.2.2", 2000].public_key
    assert theirs.identity == wire.keys["192.0.2.1", 1000].public_key


@pytest.mark.parametrize("kind", KINDS)
def test_identities_of_every_kind_prove_themselves(make_wire, kind):
    key = ForeignKey.generate(kind)
    ours, _ = make_wire(server_identity=TlsIdentity(key)).pair()
    assert ours.identity == key.public_key


def test_data_arrives_whole_and_in_order_in_both_directions(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs, DATA)
    ours.finish(mine)
    wire.flush(ours)
    assert read_all(wire, theirs, its) == DATA
    theirs.send(its, DATA[::-1])
    theirs.finish(its)
    wire.flush(theirs)
    assert read_all(wire, ours, mine) == DATA[::-1]
    assert not ours.streams
    assert not theirs.streams


@pytest.mark.parametrize("seed", range(4))
def test_lost_and_reordered_datagrams_change_nothing(make_wire, seed):
    wire = make_wire(seed=seed)
    wire.loss, wire.jitter = 0.1, 0.05
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs, DATA)
    ours.send(mine, DATA * 9)
    ours.finish(mine)
    wire.flush(ours)
    assert read_all(wire, theirs, its) == DATA * 10
    assert wire.run(until=lambda: not ours.unconfirmed(mine))


def test_a_reader_that_does_not_read_stops_its_sender_at_the_window(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs, bytes(4 * INITIAL_WINDOW))
    wire.run(seconds=5)
    assert its.received_bytes == INITIAL_WINDOW
    assert ours.unconfirmed(mine) == 3 * INITIAL_WINDOW


def test_streams_nobody_reads_hold_up_no_other(wire):
    ours, theirs = wire.pair()
    for _ in range(12):  # three times what the connection's first window holds
        opened(wire, ours, theirs, bytes(4 * INITIAL_WINDOW))
        wire.run(seconds=2)
    assert all(each.received_bytes == INITIAL_WINDOW for each in theirs.streams.values())
    mine, its = opened(wire, ours, theirs, DATA)
    ours.finish(mine)
    wire.flush(ours)
    assert read_all(wire, theirs, its) == DATA


def test_before_it_is_admitted_a_peer_may_send_no_more_than_the_first_window(wire):
    ours = wire.connect()
    assert wire.run(until=lambda: wire.inbound and wire.inbound[0].identity and ours.identity)
    (theirs,) = wire.inbound
    for _ in range(12):
        stream = ours.open_stream(wire.now)
        ours.send(stream, bytes(INITIAL_WINDOW))
    wire.flush(ours)
    wire.run(seconds=5)
    held = sum(each.received_bytes for each in theirs.streams.values())
    assert held == wire.settings.quic_base_window
    theirs.charge_to(Unmetered(), wire.now)
    wire.flush(theirs)
    wire.run(seconds=5)
    assert sum(each.received_bytes for each in theirs.streams.values()) == 12 * INITIAL_WINDOW


def test_a_window_grows_for_a_fast_reader_as_far_as_its_account_allows(make_wire):
    wire = make_wire(NetworkSettings(quic_max_window=1 << 20), delay=0.1)
    ours, theirs = wire.pair()
    meter = Meter()
    theirs.charge_to(meter, wire.now)
    mine, its = opened(wire, ours, theirs, bytes(8 << 20))
    ours.finish(mine)
    wire.flush(ours)
    largest = 0

    def seen():
        nonlocal largest
        while its.received:
            theirs.take(its, None, wire.now)
            wire.flush(theirs)
        largest = max(largest, its.window)
        return its.remote_finished

    assert wire.run(until=seen)
    assert largest == 1 << 20
    ours_window = meter.charged
    assert ours_window == largest
    theirs.finish(its)
    assert meter.charged == 0


def test_an_account_without_room_keeps_the_window_as_it_is(make_wire):
    wire = make_wire(delay=0.1)
    ours, theirs = wire.pair()
    theirs.charge_to(Meter(growth=0), wire.now)
    mine, its = opened(wire, ours, theirs, bytes(2 << 20))
    ours.finish(mine)
    wire.flush(ours)
    assert len(read_all(wire, theirs, its)) == 2 << 20
    assert its.window == INITIAL_WINDOW


def test_a_stream_without_room_is_refused_with_the_reason(wire):
    ours, theirs = wire.pair()
    theirs.charge_to(Meter(streams=1), wire.now)
    opened(wire, ours, theirs)
    refused = ours.open_stream(wire.now)
    ours.send(refused, b"hello")
    wire.flush(ours)
    assert wire.run(until=lambda: refused.failure is not None, seconds=5)
    assert "resource limit exceeded" in str(refused.failure)
    assert len(theirs.streams) == 1


def test_unread_bytes_stay_charged_when_the_stream_is_over(wire):
    ours, theirs = wire.pair()
    meter = Meter()
    theirs.charge_to(meter, wire.now)
    mine, its = opened(wire, ours, theirs, DATA)
    ours.finish(mine)
    wire.flush(ours)
    wire.run(seconds=2)
    theirs.finish(its)
    assert (its.forgotten, meter.charged) == (True, len(DATA))
    assert theirs.take(its, 240, wire.now) == DATA[:240]
    assert meter.charged == len(DATA) - 240
    theirs.unread(its, b"put back")
    assert theirs.take(its, None, wire.now) == b"put back" + DATA[240:]
    assert meter.charged == 0


def test_a_reset_ends_both_directions_with_its_code(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs)
    theirs.send(its, DATA)
    theirs.reset(its, StreamResetError("enough"), StreamCode.RATE_LIMITED)
    wire.flush(theirs)
    wire.run(seconds=2)
    assert "rate limited" in str(mine.receive_failure)
    assert "rate limited" in str(mine.failure)
    assert not ours.streams
    assert not theirs.streams


def test_a_stream_reset_before_anything_was_sent_is_not_noticed(wire):
    ours, theirs = wire.pair()
    stream = ours.open_stream(wire.now)
    ours.reset(stream, StreamResetError("never mind"), 0)
    wire.flush(ours)
    wire.run(seconds=2)
    assert not theirs.streams
    assert theirs.failure is None


def test_a_peer_that_only_stops_reading_can_still_be_read(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs, DATA)
    ours.engine.stop_stream(mine.stream_id, 0)  # as go-libp2p closes a stream
    ours.finish(mine)
    wire.flush(ours)
    assert wire.run(until=lambda: its.failure is not None, seconds=5)
    assert read_all(wire, theirs, its) == DATA
    assert its.receive_failure is None


def test_what_comes_after_a_close_is_discarded_and_does_not_stop_its_sender(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs)
    theirs.discard(its, wire.now)
    wire.flush(theirs)
    ours.send(mine, bytes(8 * INITIAL_WINDOW))
    ours.finish(mine)
    wire.flush(ours)
    assert wire.run(until=lambda: not theirs.streams, seconds=20)
    assert ours.failure is theirs.failure is mine.receive_failure is None


def test_a_peer_that_never_finishes_a_closed_stream_is_told_so_in_the_end(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs)
    theirs.discard(its, wire.now)
    wire.flush(theirs)
    began = wire.now
    assert wire.run(until=lambda: mine.failure is not None, seconds=120)
    assert wire.now - began >= wire.settings.stream_close_timeout
    assert not theirs.streams


def test_no_more_streams_are_opened_than_the_peer_takes(make_wire):
    wire = make_wire(NetworkSettings(quic_max_streams=3))
    ours, theirs = wire.pair()
    streams = [opened(wire, ours, theirs)[0] for _ in range(3)]
    assert not ours.may_open_stream
    with pytest.raises(ResourceLimitError, match="no more streams"):
        ours.open_stream(wire.now)
    for mine in streams[:2]:
        ours.finish(mine)
        wire.flush(ours)
        theirs.discard(theirs.streams[mine.stream_id], wire.now)
        wire.flush(theirs)
    assert wire.run(until=lambda: ours.may_open_stream, seconds=5)
    opened(wire, ours, theirs)


def test_a_close_fails_all_streams_and_leaves_what_came_to_be_read(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs, DATA)
    wire.run(seconds=1)
    ours.close(ConnectionClosedError("done"), ConnectionCode.SHUTDOWN)
    wire.flush(ours)
    assert wire.run(until=lambda: theirs.failure is not None, seconds=2)
    assert isinstance(theirs.failure, ConnectionClosedError)
    assert "shutdown" in str(theirs.failure)
    assert theirs.take(its, None, wire.now) == DATA
    assert isinstance(its.receive_failure, ConnectionClosedError)
    assert isinstance(mine.failure, ConnectionClosedError)
    wire.run(seconds=60)
    assert len(wire.client) == len(wire.server) == 0


def test_an_idle_connection_lives_on_by_signs_of_life(wire):
    ours, theirs = wire.pair()
    wire.run(seconds=10 * wire.settings.quic_idle_timeout)
    assert ours.failure is theirs.failure is None


def test_a_peer_that_falls_silent_is_given_up(wire):
    ours, theirs = wire.pair()
    wire.drops = lambda *_: True
    assert wire.run(until=lambda: ours.failure and theirs.failure, seconds=100)
    assert str(ours.failure) == "the peer has fallen silent"
    assert len(wire.client) == len(wire.server) == 0


def test_a_handshake_nobody_answers_ends_in_time(wire):
    wire.drops = lambda *_: True
    ours = wire.connect()
    wire.run(seconds=60)
    assert isinstance(ours.failure, HandshakeError)
    assert "longer than 10 s" in str(ours.failure)
    assert len(wire.client) == 0


def refuse(_chain):
    raise HandshakeError("the peer's certificate is bad")


def test_a_server_that_proves_nothing_is_refused_and_told(wire):
    wire.client._verify = refuse
    ours = wire.connect()
    assert wire.run(until=lambda: ours.failure and wire.inbound[0].failure, seconds=5)
    assert isinstance(ours.failure, HandshakeError)
    assert "certificate is bad" in str(wire.inbound[0].failure)


def test_a_client_that_proves_nothing_is_refused_and_its_streams_are_never_seen(wire):
    wire.server._verify = refuse
    ours = wire.connect()
    assert wire.run(until=lambda: ours.identity is not None, seconds=5)
    ours.send(ours.open_stream(wire.now), DATA)
    wire.flush(ours)
    assert wire.run(until=lambda: ours.failure is not None, seconds=5)
    assert "certificate is bad" in str(ours.failure)
    assert not wire.inbound[0].streams
    assert wire.inbound[0].bytes_received == 0


def test_a_client_without_a_certificate_is_refused(wire):
    wire.client._client.certificate = wire.client._client.private_key = None
    wire.connect()
    assert wire.run(until=lambda: wire.inbound and wire.inbound[0].failure, seconds=5)
    assert "0 certificates" in str(wire.inbound[0].failure)


def test_a_client_of_another_protocol_is_refused(wire):
    wire.client._client.alpn_protocols = ["h3"]
    ours = wire.connect()
    assert wire.run(until=lambda: ours.failure is not None, seconds=5)
    assert isinstance(ours.failure, HandshakeError)


def test_a_client_that_names_no_protocol_is_refused(wire):
    wire.client._client.alpn_protocols = None
    ours = wire.connect()
    assert wire.run(until=lambda: ours.failure is not None, seconds=5)
    assert isinstance(wire.inbound[0].failure, HandshakeError | ProtocolError)


def test_a_peer_that_makes_holes_without_end_loses_the_connection(wire):
    ours, theirs = wire.pair()
    mine, _ = opened(wire, ours, theirs)
    # Every other byte, as if the others were lost.
    ours.send(mine, bytes(4 * MAX_GAPS))
    pending = ours.engine._streams[mine.stream_id].sender._pending
    for offset in range(10, 10 + 3 * MAX_GAPS, 2):
        pending.subtract(offset, offset + 1)
    wire.flush(ours)
    assert wire.run(until=lambda: theirs.failure is not None)
    assert isinstance(theirs.failure, ProtocolError)
    assert "gaps" in str(theirs.failure)


def test_a_peer_that_breaks_a_rule_is_told_and_named(wire):
    ours, theirs = wire.pair()
    mine, _ = opened(wire, ours, theirs)
    ours.engine._streams[mine.stream_id].max_stream_data_remote = 1 << 40
    ours.engine._remote_max_data = 1 << 40
    ours.send(mine, bytes(4 * INITIAL_WINDOW))
    wire.flush(ours)
    assert wire.run(until=lambda: theirs.failure and ours.failure, seconds=10)
    assert isinstance(theirs.failure, ProtocolError)
    assert "data limit" in str(theirs.failure)
    assert isinstance(ours.failure, ConnectionClosedError)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
    pieces=st.lists(st.binary(min_size=1, max_size=3000), max_size=30),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=10),
)
def test_whatever_the_pieces_the_reads_and_the_losses_the_bytes_are_the_same(
    make_wire, seed, loss, pieces, sizes
):
    wire = make_wire(seed=seed)
    ours, theirs = wire.pair()
    wire.loss, wire.jitter = loss, 0.02
    mine, its = opened(wire, ours, theirs, b"first")
    for number, piece in enumerate(pieces):
        if number % 3:
            ours.send(mine, piece)
        else:
            ours.send_later(mine, piece, wire.now)
        wire.flush(ours)
        wire.step()
    ours.finish(mine)
    wire.flush(ours)
    found = bytearray()
    reads = itertools.cycle(sizes)

    def is_read():
        while its.received:
            piece = theirs.take(its, next(reads), wire.now)
            if len(piece) > 1:  # as who negotiates does with what is not his
                theirs.unread(its, piece[-1:])
                piece = piece[:-1]
            found.extend(piece)
            wire.flush(theirs)
        return its.remote_finished

    assert wire.run(until=is_read)
    assert found == b"first" + b"".join(pieces)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_many_streams_at_once_all_arrive_and_none_waits_for_all_others(make_wire, loss):
    wire = make_wire(seed=5)
    ours, theirs = wire.pair()
    wire.loss = loss
    streams = [ours.open_stream(wire.now) for _ in range(60)]
    for stream in streams:
        ours.send(stream, stream.stream_id.to_bytes(2, "big") * 5000)
        ours.finish(stream)
    wire.flush(ours)
    found = {stream.stream_id: b"" for stream in streams}
    begun, ended = [], []

    def all_read():
        for number, stream in list(theirs.streams.items()):
            if stream.received:
                if number not in begun:
                    begun.append(number)
                found[number] += theirs.take(stream, None, wire.now)
            if stream.remote_finished:
                theirs.finish(stream)
                ended.append((number, len(begun)))
        for core in (theirs, ours):
            wire.flush(core)
        return len(ended) == len(streams)

    assert wire.run(until=all_read)
    assert found == {number: number.to_bytes(2, "big") * 5000 for number in found}
    assert ended[0][1] > 10  # when the first one was through, many others were on their way


def test_a_peer_that_stopped_reading_a_stream_does_not_mind_its_end(wire):
    ours, theirs = wire.pair()
    mine, its = opened(wire, ours, theirs)
    ours.engine.stop_stream(mine.stream_id, 0)
    wire.flush(ours)
    assert wire.run(until=lambda: its.unwanted, seconds=5)
    assert theirs.finish(its) == []
    assert theirs.unconfirmed(its) == 0
    assert theirs.failure is None


def test_a_goodbye_that_is_lost_is_said_again_to_a_peer_that_goes_on_but_not_each_time(wire):
    ours, theirs = wire.pair()
    stream = theirs.open_stream(wire.now)
    ours.close(ConnectionClosedError("done"), ConnectionCode.NONE)
    wire.drops = lambda *_: True
    wire.flush(ours)
    wire.drops = None
    theirs.send(stream, DATA)
    wire.flush(theirs)
    assert wire.run(until=lambda: theirs.failure is not None, seconds=1)
    assert str(theirs.failure) == "the peer closed the connection"
    said = 0
    for _ in range(64):
        ours.receive_datagram(b"more", ("192.0.2.2", 2000), wire.now)
        said += len(ours.datagrams_to_send(wire.now))
    assert 2 <= said <= 6  # at each doubling
