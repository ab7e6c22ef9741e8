import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import ProtocolError
from p2pnode.protocols.kad.messages import (
    MAX_ADDRESSES,
    MAX_KEY_BYTES,
    MAX_PEERS,
    MAX_TIME_CHARACTERS,
    Contact,
    Message,
    MessageType,
    Record,
    decode,
    encode,
)
from p2pnode.wire import varint
from p2pnode.wire.addresses import with_p2p
from p2pnode.wire.pb import kad_pb2
from p2pnode.wire.peer_id import PeerId

PEER = PeerId(b"\x12\x20" + bytes(range(32)))
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/4001")

contacts = st.builds(
    Contact,
    st.binary(min_size=32, max_size=32).map(lambda digest: PeerId(b"\x12\x20" + digest)),
    st.lists(st.integers(1, 65535), max_size=3).map(
        lambda ports: tuple(Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in ports)
    ),
    st.booleans(),
)


@st.composite
def messages(draw):
    key = draw(st.binary(max_size=60))
    record = st.builds(Record, st.just(key), st.binary(max_size=60), st.text(max_size=9))
    return Message(
        type=draw(st.sampled_from(MessageType)),
        key=key,
        record=draw(st.none() | record),
        closer=tuple(draw(st.lists(contacts, max_size=3))),
        providers=tuple(draw(st.lists(contacts, max_size=3))),
    )


@given(messages())
def test_every_message_reads_back(message):
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert decode(encode(message)) == message


def test_messages_have_the_bytes_other_implementations_write():
    find = Message(type=MessageType.FIND_NODE, key=b"k")
    assert encode(find).hex() == "080412016b"
    put = Message(type=MessageType.PUT_VALUE, key=b"/pk/x", record=Record(b"/pk/x", b"v"))
    assert encode(put).hex() == "0800" + "12052f706b2f78" + "1a0a0a052f706b2f78120176"
    answer = Message(
        type=MessageType.GET_PROVIDERS, key=b"k", providers=(Contact(PEER, (ADDRESS,), True),)
    )
    peer = "0a22" + PEER.hex() + "1208" + "047f00000106" + "0fa1" + "1801"
    assert encode(answer).hex() == "080312016b" + "4a30" + peer


@pytest.mark.parametrize(
    "raw",
    [
        kad_pb2.Message(type="PING", key=bytes(MAX_KEY_BYTES + 1)),
        kad_pb2.Message(type="GET_VALUE", key=b"k", record={"key": b"other", "value": b""}),
        kad_pb2.Message(type="FIND_NODE", key=b"k", closerPeers=[{"id": b"nonsense"}]),
        kad_pb2.Message(type="FIND_NODE", key=b"k", closerPeers=[{}]),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused(raw):
    with pytest.raises(ProtocolError):
        decode(raw.SerializeToString())


def test_a_message_without_a_type_puts_a_value():
    raw = bytes.fromhex("12052f706b2f78" + "1a0a0a052f706b2f78120176")  # as js-libp2p writes it
    put = Message(type=MessageType.PUT_VALUE, key=b"/pk/x", record=Record(b"/pk/x", b"v"))
    assert decode(raw) == put


def test_an_unknown_type_is_refused():
    with pytest.raises(ProtocolError, match="type"):
        decode(bytes.fromhex("080912016b"))


def test_addresses_are_read_without_their_p2p_part_and_strange_ones_left_out():
    other = PeerId(b"\x12\x20" + bytes(32))
    raw = kad_pb2.Message(
        type="FIND_NODE",
        closerPeers=[
            {
                "id": bytes(PEER),
                "addrs": [
                    with_p2p(ADDRESS, PEER).to_bytes(),
                    with_p2p(Multiaddr("/ip4/127.0.0.1/tcp/1"), other).to_bytes(),
                    b"\xff\xff\xff",
                    b"",
                    Multiaddr("/ip4/127.0.0.1/tcp/2").to_bytes(),
                ],
            }
        ],
    )
    (contact,) = decode(raw.SerializeToString()).closer
    assert [str(each) for each in contact.addresses] == [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/2",
    ]
    assert not contact.connected


def test_peers_and_addresses_beyond_the_bounds_are_not_read():
    addrs = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}").to_bytes() for port in range(1, 100)]
    talkative, others = {"id": bytes(PEER), "addrs": addrs}, [{"id": bytes(PEER)}] * (MAX_PEERS + 4)
    raw = kad_pb2.Message(type="FIND_NODE", closerPeers=[talkative, *others])
    closer = decode(raw.SerializeToString()).closer
    assert len(closer) == MAX_PEERS
    assert len(closer[0].addresses) == MAX_ADDRESSES


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x42\x00" * 100_000,  # peers of nothing
        b"\x42" + varint.prefixed(b"\x12\x00" * 100_000),  # one with addresses of nothing
        b"\x78\x01" * 100_000,  # fields nobody knows
    ],
)
def test_a_message_of_too_many_elements_is_refused_before_it_is_decoded(bomb, monkeypatch):
    monkeypatch.setattr(kad_pb2.Message, "FromString", None, raising=False)
    with pytest.raises(ProtocolError, match="too many elements"):
        decode(b"\x08\x04" + bomb)


def test_an_answer_as_large_as_we_read_is_decoded():
    addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in range(1, MAX_ADDRESSES + 1)]
    peers = tuple(Contact(PEER, tuple(addresses)) for _ in range(MAX_PEERS))
    message = Message(type=MessageType.GET_PROVIDERS, key=b"k", providers=peers)
    assert decode(encode(message)).providers == peers


def test_an_answer_with_as_many_providers_and_closer_peers_as_we_read_is_decoded():
    """Whoever fills a key with providers must not make honest answers unreadable."""
    addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in range(1, MAX_ADDRESSES + 1)]
    peers = tuple(Contact(PEER, tuple(addresses)) for _ in range(MAX_PEERS))
    message = Message(type=MessageType.GET_PROVIDERS, key=b"k", providers=peers, closer=peers)
    assert decode(encode(message)) == message


def test_no_more_addresses_of_a_peer_are_told_than_are_read():
    addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in range(1, 2 * MAX_ADDRESSES)]
    message = Message(type=MessageType.FIND_NODE, key=b"k", closer=(Contact(PEER, (*addresses,)),))
    assert len(kad_pb2.Message.FromString(encode(message)).closerPeers[0].addrs) == MAX_ADDRESSES


def test_a_time_that_is_too_long_to_be_one_is_left_out():
    """Values are sent on with their times: a long one would be multiplied."""
    text = "9" * (MAX_TIME_CHARACTERS + 1)
    message = Message(type=MessageType.GET_VALUE, key=b"k", record=Record(b"k", b"v", text))
    assert decode(encode(message)).record == Record(b"k", b"v")
