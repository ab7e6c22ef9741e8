import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import PortMappingError, ProtocolError
from p2pnode.host.portmap import natpmp
from p2pnode.host.portmap.interfaces import Port

NUMBERS = st.integers(1, 65535)
SECONDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["tcp", "udp"])


def test_requests_are_those_of_the_rfc():
    assert bytes.fromhex("0000") == natpmp.EXTERNAL_REQUEST
    asked = natpmp.map_request(Port("tcp", 4001), 4002, 7200)
    assert asked == bytes.fromhex("0002 0000 0fa1 0fa2 00001c20")
    assert natpmp.map_request(Port("udp", 4001), 4002, 0) == bytes.fromhex(
        "0001 0000 0fa1 0000 00000000"
    )


def test_responses_are_those_of_the_rfc():
    told = natpmp.read(bytes.fromhex("0080 0000 00000010 34000102"))
    assert told == natpmp.External(epoch=16, ip=IPv4Address("52.0.1.2"))
    told = natpmp.read(bytes.fromhex("0081 0000 00000010 0fa1 0fa2 00001c20"))
    assert told == natpmp.Mapped(
        epoch=16, port=Port("udp", 4001), external_port=4002, lifetime=7200
    )


@given(KINDS, NUMBERS, NUMBERS, SECONDS, SECONDS)
def test_what_a_router_grants_is_read(kind, internal, external, epoch, lifetime):
    opcode = 0x81 if kind == "udp" else 0x82
    data = bytes([0, opcode, 0, 0]) + epoch.to_bytes(4, "big")
    data += internal.to_bytes(2, "big") + external.to_bytes(2, "big") + lifetime.to_bytes(4, "big")
    told = natpmp.read(data)
    assert (told.port, told.external_port) == (Port(kind, internal), external)
    assert (told.epoch, told.lifetime) == (epoch, lifetime)


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "version"), (2, "switched off"), (4, "no room"), (99, "code 99")]
)
def test_a_refusal_says_why(code, reason):
    with pytest.raises(PortMappingError, match=reason):
        natpmp.read(bytes([0, 0x82, 0, code]) + bytes(12))
    with pytest.raises(PortMappingError, match=reason):
        natpmp.read(bytes([0, 0x80, 0, code]))  # some send no more


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        bytes.fromhex("0000"),  # a request
        bytes.fromhex("0280 0000 00000010 34000102"),
        bytes.fromhex("0080 0000 00000010 340001"),
        bytes.fromhex("0080 0000 00000010 3400010203"),
        bytes.fromhex("0083 0000 00000010 0fa1 0fa2 00001c20"),
    ],
)
def test_what_is_no_response_is_not_taken_for_one(data):
    with pytest.raises(ProtocolError):
        natpmp.read(data)


@given(st.binary(max_size=64))
def test_garbage_raises_nothing_else(data):
    with contextlib.suppress(PortMappingError, ProtocolError):
        natpmp.read(data)
