import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import HandshakeError
from p2pnode.security.tls.signed_key import MAX_BYTES, SignedKey

FIELDS = st.binary(max_size=600)


@given(FIELDS, FIELDS)
def test_what_was_written_is_read(public_key, signature):
    assert SignedKey.from_bytes(SignedKey(public_key, signature).to_bytes()) == SignedKey(
        public_key, signature
    )


@given(st.binary(max_size=300))
def test_other_bytes_are_refused_or_are_the_one_encoding_of_what_they_say(data):
    try:
        read = SignedKey.from_bytes(data)
    except HandshakeError:
        return
    assert read.to_bytes() == data


@given(FIELDS, FIELDS, st.data())
def test_a_changed_byte_never_raises_anything_else(public_key, signature, draw):
    data = bytearray(SignedKey(public_key, signature).to_bytes())
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    try:
        read = SignedKey.from_bytes(bytes(data))
    except HandshakeError:
        return
    assert read != SignedKey(public_key, signature)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "30",
        "3004040004",  # the second string is cut short
        "300404000400ff",  # a byte behind the end
        "30050400040000",  # a byte behind the strings
        "3081040400 0400",  # a long form that is not needed
        "308200040400 0400",  # a length with a leading zero
        "3080040004000000",  # an indefinite length, which is BER
        "310404000400",  # a set
        "300403000400",  # a bit string, as a draft of the specification had it
        "30840000000404000400",  # four bytes of length
    ],
)
def test_what_is_not_der_is_refused(data):
    with pytest.raises(HandshakeError, match="malformed"):
        SignedKey.from_bytes(bytes.fromhex(data))


def test_one_that_is_too_long_is_refused_unread():
    with pytest.raises(HandshakeError, match="too long"):
        SignedKey.from_bytes(SignedKey(bytes(MAX_BYTES), b"").to_bytes())
