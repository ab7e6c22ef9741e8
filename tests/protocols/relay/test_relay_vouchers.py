import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.relay.vouchers import DOMAIN, PAYLOAD_TYPE, Voucher
from p2pnode.wire.envelope import seal
from p2pnode.wire.keys import PrivateKey

KEY = PrivateKey.from_seed(bytes(32))
PEER = PrivateKey.from_seed(bytes([1]) * 32).peer_id
VOUCHER = Voucher(relay=KEY.peer_id, peer=PEER, expiration=1_700_000_000)


def test_a_voucher_is_read_as_it_was_sealed():
    assert Voucher.open(VOUCHER.seal(KEY)) == VOUCHER


def test_it_is_sealed_as_the_specification_says():
    assert DOMAIN == "libp2p-relay-rsvp"
    assert b"\x12\x02\x03\x02" in VOUCHER.seal(KEY)  # the payload type, two raw bytes


@settings(deadline=None)
@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_voucher_with_any_bit_changed_does_not_hold(at, bit):
    data = bytearray(VOUCHER.seal(KEY))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(ProtocolError):
        Voucher.open(bytes(data))


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_other_bytes_are_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        Voucher.open(data)


@settings(deadline=None)
@given(payload=st.binary(max_size=100))
def test_a_signed_envelope_of_something_else_is_a_protocol_error(payload):
    with pytest.raises(ProtocolError):
        Voucher.open(seal(KEY, DOMAIN, PAYLOAD_TYPE, payload))


def test_only_the_relay_itself_gives_its_vouchers():
    with pytest.raises(ValueError, match="signed by the relay"):
        Voucher(relay=PEER, peer=PEER, expiration=1).seal(KEY)
    lie = VOUCHER.seal(KEY)
    other = PrivateKey.from_seed(bytes([2]) * 32)
    payload = lie[lie.index(b"\x1a") :]
    size = payload[1]
    with pytest.raises(ProtocolError, match="another peer than its relay"):
        Voucher.open(seal(other, DOMAIN, PAYLOAD_TYPE, payload[2 : 2 + size]))
    with pytest.raises(ProtocolError, match="not that of a voucher"):
        Voucher.open(seal(KEY, DOMAIN, b"\x03\x01", payload[2 : 2 + size]))
