import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import record_pb2

KEY = PrivateKey.from_seed(b"\x07" * 32)


@given(st.text(max_size=20), st.binary(max_size=8), st.binary(max_size=200))
def test_what_was_sealed_opens_for_its_own_domain_only(domain, kind, payload):
    data = seal(KEY, domain, kind, payload)
    assert open_envelope(data, domain) == (KEY.public_key, kind, payload)
    with pytest.raises(ProtocolError, match="signature"):
        open_envelope(data, domain + "x")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(ProtocolError):
        open_envelope(data, "d")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_opens_as_something_else(position, flip):
    data = bytearray(seal(KEY, "d", b"\x01", b"payload"))
    data[position % len(data)] ^= flip
    try:
        opened = open_envelope(bytes(data), "d")
    except ProtocolError:
        return
    # A flip may only touch how protobuf frames the same contents.
    assert opened == (KEY.public_key, b"\x01", b"payload")


def test_the_border_between_type_and_payload_is_signed():
    envelope = record_pb2.Envelope.FromString(seal(KEY, "d", b"ab", b"cd"))
    envelope.payload_type, envelope.payload = b"a", b"bcd"
    with pytest.raises(ProtocolError, match="signature"):
        open_envelope(envelope.SerializeToString(), "d")


def test_an_envelope_without_a_signature_is_refused():
    envelope = record_pb2.Envelope.FromString(seal(KEY, "d", b"ab", b"cd"))
    envelope.ClearField("signature")
    with pytest.raises(ProtocolError, match="malformed"):
        open_envelope(envelope.SerializePartialToString(), "d")
