import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import (
    BadRequestError,
    CallError,
    LocalError,
    P2PNodeError,
    ProtocolError,
    SchemaError,
)
from p2pnode.wire import varint
from p2pnode.wire.packing import (
    MAX_SENTENCE,
    framed,
    pack_error,
    read_error,
    unpack,
    unpack_map,
)

plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(st.dictionaries(st.text(), values))
def test_a_framed_message_is_read_as_it_was(message):
    data = framed(message)
    packed = msgpack.packb(message)
    assert data == varint.encode(len(packed)) + packed
    assert unpack_map(packed, "a message") == message


@given(st.binary() | values.map(msgpack.packb))
def test_any_bytes_are_read_or_a_protocol_error(data):
    try:
        found = unpack(data, "a message")
    except ProtocolError:
        return
    if isinstance(found, dict):
        assert unpack_map(data, "a message") == found
        return
    with pytest.raises(ProtocolError, match="a message must be a map"):
        unpack_map(data, "a message")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",  # cut short
        b"\x91" * 5000 + b"\xc0",  # lists within lists
        b"\x81\x01\x02",  # a number for a key
        b"\x81\x90\x02",  # a list for a key
        b"\xa1\xff",  # no UTF-8
        b"\xd6\xff" + b"\xff" * 4 + b"\xc0",  # more than one value
        b"\xdd\xff\xff\xff\xff",  # four thousand million entries announced
    ],
)
def test_what_is_malformed_is_named(data):
    with pytest.raises(ProtocolError, match="a greeting is not msgpack"):
        unpack(data, "a greeting")


@pytest.mark.parametrize(
    ("error", "read"),
    [
        (SchemaError("64 features are wanted"), SchemaError("64 features are wanted")),
        (BadRequestError("no\x1b[2Jthing"), BadRequestError("no [2Jthing")),
        (LocalError("the disk is full"), CallError("the disk is full")),  # it has no code
        (CallError("x" * 600), CallError("x" * MAX_SENTENCE)),
    ],
)
def test_an_error_is_read_as_the_kind_it_was_and_cannot_move_a_cursor(error, read):
    found = read_error(msgpack.unpackb(msgpack.packb(pack_error(error))))
    assert (type(found), str(found)) == (type(read), str(read))


@given(values)
def test_any_value_is_an_error_or_malformed(value):
    try:
        found = read_error(value)
    except ProtocolError:
        return
    assert isinstance(found, P2PNodeError)
    assert str(found).isprintable()
