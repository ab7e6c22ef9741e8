import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.wire.addresses import parse_address, tcp_address
from p2pnode.wire.envelope import seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.records import DOMAIN, MAX_RECORD_ADDRESSES, PAYLOAD_TYPE, PeerRecord

KEY = PrivateKey.from_seed(b"\x07" * 32)
OTHER = PrivateKey.from_seed(b"\x08" * 32)
RECORD = PeerRecord(
    peer_id=KEY.peer_id,
    seq=1_700_000_000_000,
    addresses=(
        parse_address("/ip4/127.0.0.1/tcp/4001"),
        parse_address("/dns4/example.org/tcp/443"),
    ),
)
# The envelope @libp2p/peer-record of js-libp2p seals around the same record with the same key.
JS_ENVELOPE = bytes.fromhex(
    "0a2408011220ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"
    "120203011a4f0a26002408011220ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92"
    "421eea691446d22c1080d095ffbc311a0a0a08047f000001060fa11a120a10360b6578616d70"
    "6c652e6f72670601bb2a409f55b84c8c0839fe1cbc8636ddbda6a4aabcf21202f752fff7843b"
    "7efc35125440c2e70b7ef43a5b7895fa931ddc340d48c5432eca4a745603224da745c2cc02"
)


def test_a_record_has_the_very_bytes_js_libp2p_gives_it():
    assert RECORD.seal(KEY) == JS_ENVELOPE
    assert PeerRecord.open(JS_ENVELOPE) == RECORD


@given(st.integers(0, (1 << 64) - 1), st.lists(st.integers(1, 65535), max_size=5, unique=True))
def test_every_record_survives_a_round_trip(seq, ports):
    record = PeerRecord(
        peer_id=KEY.peer_id,
        seq=seq,
        addresses=tuple(tcp_address("10.0.0.1", port) for port in ports),
    )
    assert PeerRecord.open(record.seal(KEY)) == record


@given(st.binary(max_size=200))
def test_a_well_signed_payload_of_any_bytes_is_refused_or_is_a_record(payload):
    try:
        record = PeerRecord.open(seal(KEY, DOMAIN, PAYLOAD_TYPE, payload))
    except ProtocolError:
        return
    assert record.peer_id == KEY.peer_id


def test_a_peer_cannot_sign_for_another():
    with pytest.raises(ValueError, match="peer it speaks of"):
        RECORD.seal(OTHER)
    payload = JS_ENVELOPE[JS_ENVELOPE.index(b"\x1a\x4f") + 2 :][:0x4F]
    with pytest.raises(ProtocolError, match="another peer"):
        PeerRecord.open(seal(OTHER, DOMAIN, PAYLOAD_TYPE, payload))


def test_another_payload_type_or_domain_is_refused():
    with pytest.raises(ProtocolError, match="payload type"):
        PeerRecord.open(seal(KEY, DOMAIN, b"\x03\x02", b""))
    with pytest.raises(ProtocolError, match="signature"):
        PeerRecord.open(seal(KEY, "libp2p-relay-rsvp", PAYLOAD_TYPE, b""))


def test_addresses_beyond_the_limit_are_dropped():
    many = tuple(tcp_address("10.0.0.1", port) for port in range(1, MAX_RECORD_ADDRESSES + 10))
    record = PeerRecord(peer_id=KEY.peer_id, seq=1, addresses=many)
    assert PeerRecord.open(record.seal(KEY)).addresses == many[:MAX_RECORD_ADDRESSES]
