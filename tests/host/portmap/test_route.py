from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.host.portmap.route import read_default_route

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
LINE = "{}\t{}\t{}\t{}\t0\t0\t{}\t{}\t0\t0\t0\n"


def hexed(ip):
    return IPv4Address(ip).packed[::-1].hex().upper()  # tests run on little-endian machines


def line(destination="0.0.0.0", gateway="192.168.1.1", flags="0003", metric=0, mask="0.0.0.0"):
    return LINE.format("eth0", hexed(destination), hexed(gateway), flags, metric, hexed(mask))


@pytest.mark.parametrize(
    ("table", "gateway"),
    [
        ("", None),
        (HEAD, None),
        (HEAD + line(), "192.168.1.1"),
        (HEAD + line("192.168.1.0", "0.0.0.0", "0001", mask="255.255.255.0"), None),
        (HEAD + line("10.0.0.0", "192.168.1.9", mask="255.0.0.0") + line(), "192.168.1.1"),
        (HEAD + line(flags="0001"), None),  # a tunnel: no router there
        (HEAD + line(flags="0002"), None),  # down
        (HEAD + line(metric=600) + line(gateway="10.0.0.1", metric=100), "10.0.0.1"),
        (HEAD + "eth0\tnonsense\n" + line(), "192.168.1.1"),
    ],
)
def test_the_preferred_default_route_leads_to_the_router(table, gateway):
    assert read_default_route(table) == (gateway and IPv4Address(gateway))


@given(st.text())
def test_any_text_is_read_without_a_fault(text):
    read_default_route(text)
