import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import PortMappingError, ProtocolError
from p2pnode.host.portmap import pcp
from p2pnode.host.portmap.interfaces import Port

OWN = IPv4Address("192.168.1.10")
PUBLIC = IPv4Address("52.0.1.2")
NONCE = bytes(range(12))
NUMBERS = st.integers(1, 65535)
SECONDS = st.integers(0, 2**32 - 1)


def wide(ip):
    return IPv6Address(f"::ffff:{ip}").packed


def response(
    *, nonce=NONCE, protocol=6, internal=4001, external=4002, ip=None, lifetime=7200, epoch=16
):
    head = bytes([2, 0x81, 0, 0]) + lifetime.to_bytes(4, "big") + epoch.to_bytes(4, "big")
    body = nonce + bytes([protocol, 0, 0, 0]) + internal.to_bytes(2, "big")
    return head + bytes(12) + body + external.to_bytes(2, "big") + (ip or wide(PUBLIC))


def test_requests_are_those_of_the_rfc():
    assert pcp.announce_request(OWN) == bytes.fromhex("02000000 00000000") + wide(OWN)
    asked = pcp.map_request(OWN, NONCE, Port("tcp", 4001), 4002, 7200)
    assert len(asked) == 60
    assert asked == (
        bytes.fromhex("02010000 00001c20")
        + wide(OWN)
        + NONCE
        + bytes.fromhex("06000000 0fa1 0fa2")
        + wide("0.0.0.0")
    )
    freed = pcp.map_request(OWN, NONCE, Port("udp", 4001), 4002, 0)
    assert freed[36:44] == bytes.fromhex("11000000 0fa1 0000")


def test_responses_are_those_of_the_rfc():
    told = pcp.read(bytes.fromhex("02800000 00000000 00000010") + bytes(12))
    assert told == pcp.Announced(epoch=16)
    assert pcp.read(response()) == pcp.Mapped(
        epoch=16,
        nonce=NONCE,
        port=Port("tcp", 4001),
        external_ip=PUBLIC,
        external_port=4002,
        lifetime=7200,
    )
    assert pcp.read(response() + bytes(8)) == pcp.read(response())  # options


MAPPED = st.builds(
    pcp.Mapped,
    epoch=SECONDS,
    nonce=st.binary(min_size=12, max_size=12),
    port=st.builds(Port, st.sampled_from(["tcp", "udp"]), NUMBERS),
    external_ip=st.integers(0, 2**32 - 1).map(IPv4Address),
    external_port=NUMBERS,
    lifetime=SECONDS,
)


@given(MAPPED)
def test_what_a_router_grants_is_read(granted):
    data = response(
        nonce=granted.nonce,
        protocol={"tcp": 6, "udp": 17}[granted.port.kind],
        internal=granted.port.number,
        external=granted.external_port,
        ip=wide(granted.external_ip),
        lifetime=granted.lifetime,
        epoch=granted.epoch,
    )
    assert pcp.read(data) == granted


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "version"), (2, "switched off"), (12, "another transl"), (99, "99")]
)
def test_a_refusal_says_why(code, reason):
    with pytest.raises(PortMappingError, match=reason):
        pcp.read(bytes([2, 0x81, 0, code]) + bytes(20))


@pytest.mark.parametrize("data", ["0080 0001", "0081 0001 00000000", "0080 0000 00000000"])
def test_a_router_that_answers_in_nat_pmp_has_no_pcp(data):
    with pytest.raises(PortMappingError, match="NAT-PMP"):
        pcp.read(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(24),
        response()[:-4],
        response() + b"x",
        response() + bytes(1100),
        response(protocol=1),
        response(ip=IPv6Address("2001:db8::1").packed),
        b"\x03" + response()[1:],
        pcp.announce_request(OWN),
    ],
)
def test_what_is_no_response_is_not_taken_for_one(data):
    with pytest.raises(ProtocolError):
        pcp.read(data)


@given(st.binary(max_size=80), st.booleans())
def test_garbage_raises_nothing_else(data, begins_well):
    with contextlib.suppress(PortMappingError, ProtocolError):
        pcp.read(b"\x02\x81\0\0" + data if begins_well else data)
