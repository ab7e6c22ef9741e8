import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.wire.pb import kad_pb2
from p2pnode.wire.protobuf import walk_fields


def walked(data):
    return [(number, bytes(value)) for number, value in walk_fields(memoryview(data))]


@given(
    key=st.binary(max_size=40),
    peers=st.lists(st.builds(kad_pb2.Message.Peer, id=st.binary(max_size=20)), max_size=5),
)
def test_every_field_of_a_message_is_walked_in_order(key, peers):
    message = kad_pb2.Message(type="GET_VALUE", key=key, closerPeers=peers)
    expected = [(1, b""), (2, key), *((8, each.SerializeToString()) for each in peers)]
    assert walked(message.SerializeToString(deterministic=True)) == expected


def test_numbers_of_every_width_are_walked_past():
    assert walked(b"\x08\xff\xff\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4)) == [
        (1, b""),
        (2, b""),
        (3, b""),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x05abc",
        b"\x0a",
        b"\x80",
        b"\x08" + b"\x80" * 11,
        b"\x11" + bytes(7),
        b"\x0b",
        b"\x0f",
    ],
)
def test_what_is_cut_off_or_of_an_unknown_kind_is_refused(data):
    with pytest.raises(ProtocolError):
        walked(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused_and_what_is_walked_covers_what_decodes(data):
    try:
        fields = walked(data)
    except ProtocolError:
        return
    try:
        message = kad_pb2.Message.FromString(data)
    except DecodeError:
        return
    assert sum(number == 8 for number, _ in fields) >= len(message.closerPeers)
