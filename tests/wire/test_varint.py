import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.wire import varint

MAX = (1 << 63) - 1


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (MAX, "ffffffffffffffff7f")],
)
def test_known_values_have_the_bytes_of_the_specification(value, encoded):
    assert varint.encode(value).hex() == encoded
    assert varint.decode(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


@given(st.integers(0, MAX), st.binary(max_size=4), st.binary(max_size=4))
def test_every_value_survives_at_any_offset(value, before, after):
    encoded = varint.encode(value)
    decoded = varint.decode(before + encoded + after, len(before))
    assert decoded == (value, len(before) + len(encoded))


@given(st.integers(0, MAX))
def test_a_truncated_varint_asks_for_more(value):
    encoded = varint.encode(value)
    assert all(varint.decode(encoded[:length]) is None for length in range(len(encoded)))


@given(st.binary(max_size=12))
def test_any_bytes_decode_to_their_minimal_form_or_are_refused(data):
    try:
        decoded = varint.decode(data)
    except ProtocolError:
        return
    if decoded is not None:
        value, end = decoded
        assert varint.encode(value) == data[:end]


@pytest.mark.parametrize("encoded", ["8000", "ff00", "80808000"])
def test_padded_forms_are_refused(encoded):
    with pytest.raises(ProtocolError, match="minimal"):
        varint.decode(bytes.fromhex(encoded))


@pytest.mark.parametrize("length", [9, 10, 20])
def test_more_than_nine_bytes_are_refused_without_reading_on(length):
    with pytest.raises(ProtocolError, match="longer than 9"):
        varint.decode(b"\x80" * length)


@pytest.mark.parametrize("value", [-1, 1 << 63])
def test_values_outside_63_bits_cannot_be_encoded(value):
    with pytest.raises(ValueError, match="63 bits"):
        varint.encode(value)


@given(st.binary(max_size=300))
def test_a_prefixed_payload_is_found_behind_its_length(payload):
    data = varint.prefixed(payload)
    size, start = varint.decode(data)
    assert (size, data[start:]) == (len(payload), payload)
