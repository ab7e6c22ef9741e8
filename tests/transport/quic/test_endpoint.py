from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.transport.quic.endpoint import ID_BYTES, VERSIONS, Received

CLIENT, SERVER = ("192.0.2.1", 1000), ("192.0.2.2", 2000)
STRANGER = ("198.51.100.7", 7)
FEW = NetworkSettings(quic_max_handshakes=4, quic_retry_above=2)


def header_of(data):
    return pull_quic_header(Buffer(data=data), host_cid_length=ID_BYTES)


def first_datagram(wire):
    """What a client begins with that is never heard of again."""
    client = wire.endpoint(wire.identity)
    ((data, _),) = client.datagrams_to_send(client.connect(SERVER, wire.now), wire.now)
    return data


def established(wire, count):
    return sum(core.identity is not None for core in wire.inbound) == count


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=1400))
def test_noise_begins_nothing_and_gets_no_answer_but_the_versions(shared_wire, data):
    wire = shared_wire
    before = len(wire.server)
    received = wire.server.receive_datagram(data, STRANGER, wire.now)
    assert received.core is None
    assert len(wire.server) == before
    assert sum(len(reply) for reply, _ in received.replies) <= len(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_first_datagram_never_breaks_the_endpoint(shared_wire, data):
    wire = shared_wire
    datagram = bytearray(first_datagram(wire))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 60) | st.integers(0, len(datagram) - 1))
        datagram[place] ^= data.draw(st.integers(1, 255))
    size = data.draw(st.just(len(datagram)) | st.integers(0, len(datagram)))
    received = wire.server.receive_datagram(bytes(datagram[:size]), STRANGER, wire.now)
    replies = list(received.replies)
    if received.core is not None:
        replies += wire.server.datagrams_to_send(received.core, wire.now)
    assert sum(len(reply) for reply, _ in replies) <= 3 * size


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 1199), bits=st.integers(1, 255))
def test_damaged_datagrams_within_a_connection_never_end_it(shared_pair, place, bits):
    wire, ours, theirs = shared_pair
    stream = next(iter(ours.streams.values()), None) or ours.open_stream(wire.now)
    ours.send(stream, b"hello")
    ours.engine.send_ping(1)
    for datagram, _ in wire.client.datagrams_to_send(ours, wire.now):
        damaged = bytearray(datagram)
        damaged[place % len(damaged)] ^= bits
        wire.deliver(bytes(damaged), CLIENT, SERVER)
    assert theirs.failure is None


def test_a_version_we_do_not_speak_is_answered_with_those_we_do(wire):
    data = bytearray(first_datagram(wire))
    data[1:5] = bytes.fromhex("1a2a3a4a")
    (reply,) = wire.server.receive_datagram(bytes(data), STRANGER, wire.now).replies
    header = header_of(reply[0])
    assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert header.supported_versions == list(VERSIONS)
    assert reply[1] == STRANGER
    # To a small datagram there is no answer that would be larger, nor one to an answer.
    nothing = Received()
    assert wire.server.receive_datagram(bytes(data[:1199]), STRANGER, wire.now) == nothing
    padded = reply[0].ljust(1200, b"\0")
    assert wire.server.receive_datagram(padded, STRANGER, wire.now) == nothing


def test_a_first_datagram_that_is_too_small_begins_nothing(wire):
    data = first_datagram(wire)[:1199]
    assert wire.server.receive_datagram(data, STRANGER, wire.now) == Received()
    assert len(wire.server) == 0


def test_a_first_datagram_that_cannot_be_read_begins_nothing(wire):
    data = bytearray(first_datagram(wire))
    data[100] ^= 1
    assert wire.server.receive_datagram(bytes(data), STRANGER, wire.now) == Received()
    assert len(wire.server) == 0


def test_who_does_not_listen_lets_nobody_begin(wire):
    wire.server.is_listening = False
    assert wire.server.receive_datagram(first_datagram(wire), CLIENT, wire.now) == Received()


def test_a_stranger_gets_no_more_than_three_times_back_what_he_sent(wire):
    data = first_datagram(wire)
    core = wire.server.receive_datagram(data, STRANGER, wire.now).core
    sent = 0
    for _ in range(200):
        sent += sum(len(each) for each, _ in wire.server.datagrams_to_send(core, wire.now))
        if (at := wire.server.next_deadline()) > wire.now + 100:
            break
        wire.now = at
        wire.server.due(at)
    assert 0 < sent <= 3 * len(data)


def test_when_many_are_half_open_clients_must_prove_their_address(make_wire):
    wire = make_wire(FEW)
    for number in range(2):
        wire.server.receive_datagram(first_datagram(wire), (STRANGER[0], number), wire.now)
    assert wire.server.handshakes == 2
    ((retry, _),) = wire.server.receive_datagram(first_datagram(wire), STRANGER, wire.now).replies
    assert header_of(retry).packet_type is QuicPacketType.RETRY
    assert wire.server.handshakes == 2  # it costs nothing but the answer
    ours = wire.connect()
    assert wire.run(until=lambda: ours.identity is not None and established(wire, 1), seconds=5)


def test_a_token_of_another_address_proves_nothing(make_wire):
    wire = make_wire(FEW)
    for number in range(2):
        wire.server.receive_datagram(first_datagram(wire), (STRANGER[0], number), wire.now)
    core = wire.connect()
    wire.run(until=lambda: core.engine._retry_count, seconds=1)
    wire._under_way.clear()
    ((data, _), *_) = wire.client.datagrams_to_send(core, wire.now) or [(None, None)]
    if data is None:  # it left with the retry's arrival
        wire.now += 2
        wire.client.due(wire.now)
        ((data, _), *_) = wire.client.datagrams_to_send(core, wire.now)
    assert header_of(data).token
    received = wire.server.receive_datagram(data, STRANGER, wire.now)
    assert received.core is None
    assert header_of(received.replies[0][0]).packet_type is QuicPacketType.RETRY


def test_of_too_many_half_open_ones_the_oldest_of_the_largest_crowd_gives_way(make_wire):
    wire = make_wire(NetworkSettings(quic_max_handshakes=4, quic_retry_above=100))
    crowd = [
        wire.server.receive_datagram(first_datagram(wire), (STRANGER[0], number), wire.now).core
        for number in range(3)
    ]
    lone = wire.server.receive_datagram(first_datagram(wire), ("203.0.113.9", 9), wire.now).core
    ours = wire.connect()
    assert wire.run(until=lambda: ours.identity is not None, seconds=5)
    assert crowd[0].failure is not None
    assert crowd[1].failure is crowd[2].failure is lone.failure is None
    assert wire.server.handshakes == 4  # the one that is through waits to be taken


def test_half_open_ones_end_in_time_and_leave_nothing(wire):
    for number in range(8):
        wire.server.receive_datagram(first_datagram(wire), (STRANGER[0], number), wire.now)
    for core in list(wire.server._names_of):
        wire.flush(core)
    wire.run(seconds=60)
    assert (len(wire.server), wire.server.handshakes, wire.server._names) == (0, 0, {})


def test_a_connection_survives_a_new_port_of_its_client(wire):
    ours, theirs = wire.pair()
    stream = ours.open_stream(wire.now)
    ours.send(stream, b"before")
    wire.flush(ours)
    wire.run(seconds=2)
    moved = (CLIENT[0], 1234)  # a router has forgotten the mapping, and made another one
    wire.aliases[CLIENT] = moved
    ours.send(stream, b"after")
    ours.finish(stream)
    wire.flush(ours)
    its = theirs.streams[stream.stream_id]
    assert wire.run(until=lambda: its.remote_finished, seconds=5)
    assert theirs.take(its, None, wire.now) == b"beforeafter"
    theirs.send(its, b"answer")
    theirs.finish(its)
    wire.flush(theirs)
    assert wire.run(until=lambda: stream.remote_finished, seconds=10)
    assert ours.take(stream, None, wire.now) == b"answer"
    assert theirs.engine.get_peer_address() == moved


def test_datagrams_of_others_do_not_move_a_connection(wire):
    ours, theirs = wire.pair()
    stream = ours.open_stream(wire.now)
    ours.send(stream, b"seen on the wire")
    for data, _ in wire.client.datagrams_to_send(ours, wire.now):
        wire.deliver(data, CLIENT, SERVER)
        wire.deliver(data, STRANGER, SERVER)  # a copy, from somewhere else
    assert theirs.engine.get_peer_address() == CLIENT


def test_connections_do_not_leave_timers_behind(wire):
    for _ in range(30):
        ours, _ = wire.pair()
        for _ in range(20):
            wire.client.set_timer(ours)
    assert len(wire.client._timers) <= 64 + 4 * len(wire.client)


def test_a_handshake_full_of_holes_is_given_up(wire):
    core = wire.client.connect(SERVER, wire.now)
    pending = core.engine._crypto_streams[Epoch.INITIAL].sender._pending
    for offset in range(1, 200, 2):
        pending.subtract(offset, offset + 1)
    wire.flush(core)
    assert wire.run(until=lambda: wire.inbound and wire.inbound[0].failure, seconds=9)
    assert "gaps" in str(wire.inbound[0].failure)
