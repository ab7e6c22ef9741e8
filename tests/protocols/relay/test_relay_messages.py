import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.relay.messages import (
    MAX_ADDRESSES,
    HopMessage,
    HopType,
    Limit,
    Reservation,
    Status,
    StopMessage,
    StopType,
    decode_hop,
    decode_stop,
    describe,
    encode_hop,
    encode_stop,
)
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import relay_pb2

PEER = PrivateKey.from_seed(bytes(32)).peer_id
ADDRESS = parse_address("/ip4/1.2.3.4/tcp/5")
peers = st.binary(min_size=32, max_size=32).map(lambda seed: PrivateKey.from_seed(seed).peer_id)
limits = st.builds(
    Limit, duration=st.integers(0, (1 << 32) - 1), data=st.integers(0, (1 << 64) - 1)
)
reservations = st.builds(
    Reservation,
    expire=st.integers(0, (1 << 64) - 1),
    addresses=st.lists(
        st.integers(1, 65535).map(lambda port: parse_address(f"/ip4/1.2.3.4/tcp/{port}")),
        max_size=4,
        unique=True,
    ).map(tuple),
    voucher=st.none() | st.binary(max_size=100),
)
statuses = st.sampled_from(Status).map(int)


@settings(deadline=None)
@given(peer=peers, reservation=st.none() | reservations, limit=limits, status=statuses)
def test_what_is_encoded_is_decoded_again(peer, reservation, limit, status):
    answer = HopMessage(type=HopType.STATUS, reservation=reservation, limit=limit, status=status)
    assert decode_hop(encode_hop(answer)) == answer
    for message in (HopMessage(type=HopType.RESERVE), HopMessage(type=HopType.CONNECT, peer=peer)):
        assert decode_hop(encode_hop(message)) == message
    for stop in (
        StopMessage(type=StopType.CONNECT, peer=peer, limit=limit),
        StopMessage(type=StopType.STATUS, status=status),
    ):
        assert decode_stop(encode_stop(stop)) == stop


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    for decode, encode in ((decode_hop, encode_hop), (decode_stop, encode_stop)):
        try:
            message = decode(data)
        except ProtocolError:
            continue
        assert decode(encode(message)) == message


def test_the_bytes_are_those_of_the_specification():
    """Field numbers and values by hand: types are written even where they are 0."""
    assert encode_hop(HopMessage(type=HopType.RESERVE)) == b"\x08\x00"
    connect = encode_hop(HopMessage(type=HopType.CONNECT, peer=PEER))
    assert connect == b"\x08\x01\x12\x28\x0a\x26" + bytes(PEER)
    refusal = HopMessage(type=HopType.STATUS, status=Status.NO_RESERVATION)
    assert encode_hop(refusal) == b"\x08\x02\x28\xcc\x01"
    stop = StopMessage(type=StopType.CONNECT, peer=PEER, limit=Limit(duration=120, data=1 << 17))
    assert encode_stop(stop) == (
        b"\x08\x00\x12\x28\x0a\x26" + bytes(PEER) + b"\x1a\x06\x08\x78\x10\x80\x80\x08"
    )
    granted = HopMessage(
        type=HopType.STATUS, reservation=Reservation(expire=1, voucher=b"v"), status=100
    )
    assert encode_hop(granted) == b"\x08\x02\x1a\x05\x08\x01\x1a\x01v\x28\x64"


def test_no_limit_is_not_sent():
    assert b"\x22" not in encode_hop(HopMessage(type=HopType.STATUS, limit=Limit(), status=100))
    assert not Limit()
    assert Limit(duration=1)
    assert Limit(data=1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no type"),
        (b"\x08\x07", "unknown type 7"),
        (b"\x08\x01", "names no peer"),
        (b"\x08\x01\x12\x03\x0a\x01x", "no peer that could be"),
        (b"\x08\x02", "no status"),
        (b"\x0a", "malformed"),
    ],
)
def test_what_lacks_something_is_refused(data, why):
    with pytest.raises(ProtocolError, match=why):
        decode_hop(data)


def test_a_stop_message_needs_a_peer_or_a_status_too():
    with pytest.raises(ProtocolError, match="names no peer"):
        decode_stop(b"\x08\x00")
    with pytest.raises(ProtocolError, match="no status"):
        decode_stop(b"\x08\x01")


def test_a_status_that_nobody_named_is_kept():
    message = decode_hop(b"\x08\x02\x28\x8f\x4e")
    assert message.status == 9999
    assert describe(9999) == "status 9999"
    assert describe(Status.NO_RESERVATION) == "no reservation"


def test_addresses_that_cannot_be_read_are_left_out_and_too_many_not_looked_at():
    encoded = relay_pb2.HopMessage(type=2, status=100)
    encoded.reservation.expire = 1
    encoded.reservation.addrs.extend([b"\xff", ADDRESS.to_bytes(), *[b"\xff"] * 500])
    encoded.reservation.addrs.append(parse_address("/ip4/9.9.9.9/tcp/9").to_bytes())
    assert len(encoded.reservation.addrs) > MAX_ADDRESSES
    assert decode_hop(encoded.SerializeToString()).reservation.addresses == (ADDRESS,)
