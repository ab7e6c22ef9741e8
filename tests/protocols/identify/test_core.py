import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.identify.core import Introduction, decode, encode
from p2pnode.wire import varint
from p2pnode.wire.addresses import parse_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import identify_pb2
from p2pnode.wire.records import PeerRecord

KEY = PrivateKey.from_seed(b"\x07" * 32)
OTHER = PrivateKey.from_seed(b"\x08" * 32)
LISTEN = tcp_address("127.0.0.1", 4001)
REMOTE = tcp_address("127.0.0.1", 50_000)
RECORD = PeerRecord(peer_id=KEY.peer_id, seq=7, addresses=(LISTEN,)).seal(KEY)
FULL = Introduction(
    public_key=KEY.public_key,
    addresses=(LISTEN,),
    protocols=("/a/1", "/b/1"),
    observed_address=REMOTE,
    protocol_version="p2pnode/1.0.0",
    agent="p2pnode/test",
    record=RECORD,
    seq=7,
)
# The order is that of the field numbers, which is how js-libp2p and go-libp2p write it, too.
GOLDEN = (
    "8a020a24"  # 266 bytes follow, the key first
    + KEY.public_key.protobuf.hex()
    + "1208047f000001060fa1"
    "1a042f612f31"
    "1a042f622f31"
    "2208047f00000106c350"
    "2a0d7032706e6f64652f312e302e30"
    "320c7032706e6f64652f74657374"
)


def messages_of(data):
    found, start = [], 0
    while start < len(data):
        size, start = varint.decode(data, start)
        found.append(data[start : start + size])
        start += size
    return found


def read(data, remote=REMOTE, key=KEY.public_key, limit=32):
    return decode(messages_of(data), key, remote, limit=limit)


def test_an_introduction_has_these_very_bytes():
    assert encode(FULL).hex() == GOLDEN + "42" + varint.prefixed(RECORD).hex()


def test_every_field_survives():
    assert read(encode(FULL)) == FULL


def test_every_field_may_be_missing():
    assert read(b"\x00") == Introduction()
    assert read(encode(Introduction())) == Introduction()


def test_a_long_introduction_is_split_with_the_record_last():
    long = Introduction(
        public_key=KEY.public_key,
        addresses=(LISTEN,),
        protocols=tuple(f"/protocol/{number}" for number in range(200)),
        record=RECORD,
        seq=7,
    )
    messages = messages_of(encode(long))
    assert len(messages) == 2
    assert identify_pb2.Identify.FromString(messages[1]).ListFields()[0][0].name == (
        "signedPeerRecord"
    )
    assert read(encode(long)) == long


def test_split_messages_are_merged_lists_appended_and_later_scalars_over_earlier_ones():
    first = identify_pb2.Identify(protocols=["/a"], agentVersion="old", protocolVersion="kept")
    second = identify_pb2.Identify(protocols=["/b", "/a"], agentVersion="new")
    parts = [first.SerializeToString(), second.SerializeToString()]
    merged = decode(parts, KEY.public_key, REMOTE, limit=32)
    assert merged.protocols == ("/a", "/b")
    assert (merged.agent, merged.protocol_version) == ("new", "kept")


def test_signed_addresses_count_more_than_listed_ones():
    signed = tcp_address("127.0.0.1", 1)
    record = PeerRecord(peer_id=KEY.peer_id, seq=1, addresses=(signed,)).seal(KEY)
    listed = Introduction(addresses=(LISTEN,), record=record)
    assert read(encode(listed)).addresses == (signed,)


def test_a_record_of_another_peer_is_refused():
    foreign = PeerRecord(peer_id=OTHER.peer_id, seq=1, addresses=(LISTEN,)).seal(OTHER)
    with pytest.raises(ProtocolError, match="record of another peer"):
        read(encode(Introduction(record=foreign)))


def test_another_key_than_the_handshakes_is_refused():
    with pytest.raises(ProtocolError, match="another key"):
        read(encode(Introduction(public_key=OTHER.public_key)))


def test_the_peers_own_id_is_stripped_and_addresses_of_others_are_left_out():
    told = (with_p2p(LISTEN, KEY.peer_id), with_p2p(tcp_address("127.0.0.1", 2), OTHER.peer_id))
    found = read(
        encode(Introduction(addresses=told, observed_address=with_p2p(REMOTE, KEY.peer_id)))
    )
    assert found.addresses == (LISTEN,)
    assert found.observed_address == REMOTE


@pytest.mark.parametrize(
    ("remote", "kept"),
    [
        ("/ip4/127.0.0.1/tcp/1", {"loopback", "private", "public", "name"}),
        ("/ip4/10.0.0.9/tcp/1", {"private", "public", "name"}),
        ("/ip4/8.8.8.8/tcp/1", {"public", "name"}),
        ("/dns4/relay.example/tcp/1", {"loopback", "private", "public", "name"}),
    ],
)
def test_addresses_nearer_than_the_peer_itself_are_left_out(remote, kept):
    told = {
        "loopback": LISTEN,
        "private": tcp_address("192.168.1.1", 1),
        "public": tcp_address("9.9.9.9", 1),
        "name": parse_address("/dns4/node.example/tcp/1"),
    }
    found = read(encode(Introduction(addresses=tuple(told.values()))), parse_address(remote))
    assert {name for name, address in told.items() if address in found.addresses} == kept


def test_of_too_many_addresses_the_first_are_kept():
    told = tuple(tcp_address("127.0.0.1", port) for port in range(1, 50))
    assert read(encode(Introduction(addresses=told)), limit=8).addresses == told[:8]


def test_unreadable_addresses_and_control_characters_do_no_harm():
    message = identify_pb2.Identify(
        listenAddrs=[b"\xff\xff", LISTEN.to_bytes()],
        observedAddr=b"\x01",
        agentVersion="evil\x1b[31m\nagent" + "x" * 1000,
    )
    found = decode([message.SerializeToString()], KEY.public_key, REMOTE, limit=32)
    assert found.addresses == (LISTEN,)
    assert found.observed_address is None
    assert found.agent.startswith("evil[31magent")
    assert len(found.agent) <= 256


@given(st.lists(st.binary(max_size=100), max_size=4))
def test_any_bytes_are_refused_or_understood(parts):
    try:
        found = decode(parts, KEY.public_key, REMOTE, limit=32)
    except ProtocolError:
        return
    assert found.agent.isprintable()
