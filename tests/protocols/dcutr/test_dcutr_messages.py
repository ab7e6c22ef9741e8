import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import ProtocolError
from p2pnode.protocols.dcutr.messages import (
    MAX_ADDRESSES,
    MAX_FIELDS,
    HolePunch,
    MessageType,
    decode,
    encode,
)

ADDRESS = Multiaddr("/ip4/8.0.0.1/tcp/4001")

messages = st.builds(
    HolePunch,
    type=st.sampled_from(MessageType),
    addresses=st.lists(st.integers(1, 65535), max_size=8, unique=True).map(
        lambda ports: tuple(Multiaddr(f"/ip4/8.0.0.1/tcp/{port}") for port in ports)
    ),
)


@given(messages)
def test_every_message_reads_back(message):
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert message.type in MessageType


@given(messages, st.integers(0, 60), st.integers(0, 255))
def test_a_message_with_a_changed_byte_is_a_message_or_refused(message, place, byte):
    data = bytearray(encode(message))
    data[place % len(data)] = byte
    try:
        decode(bytes(data))
    except ProtocolError:
        return


def test_the_bytes_are_those_of_the_specification():
    """Field 1 is the type, 100 or 300; field 2 an address in its binary form."""
    connect = HolePunch(type=MessageType.CONNECT, addresses=(ADDRESS,))
    assert encode(connect).hex() == "0864" + "1208" + "0408000001060fa1"
    assert encode(HolePunch(type=MessageType.SYNC)).hex() == "08ac02"


def test_an_address_nobody_here_can_read_is_left_out():
    data = bytes.fromhex("0864" + "1202ffff" + "12080408000001060fa1")
    assert decode(data).addresses == (ADDRESS,)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "type 0"),
        (bytes.fromhex("0800"), "type 0"),
        (bytes.fromhex("08c801"), "type 200"),
        (bytes.fromhex("0864") + b"\x12\x00" * MAX_FIELDS, "too many fields"),
        (bytes.fromhex("08"), "ends inside"),
    ],
)
def test_what_is_no_message_is_refused(data, reason):
    with pytest.raises(ProtocolError, match=reason):
        decode(data)


def test_only_so_many_addresses_are_read():
    many = [Multiaddr(f"/ip4/8.0.0.1/tcp/{port}") for port in range(1, MAX_ADDRESSES + 9)]
    message = HolePunch(type=MessageType.CONNECT, addresses=tuple(many))
    assert decode(encode(message)).addresses == tuple(many[:MAX_ADDRESSES])
