import ipaddress
import socket

import pytest

from p2pnode.transport import reuse
from p2pnode.transport.reuse import Endpoint, choose_source, route_source


def endpoint(ip, port):
    return Endpoint(ipaddress.ip_address(ip), port)


LOOPBACK = endpoint("127.0.0.1", 4001)
LAN = endpoint("192.168.0.2", 4001)
ANY = endpoint("0.0.0.0", 4001)


@pytest.fixture
def routes(monkeypatch):
    """A machine with a loopback and one network."""

    def source(target):
        return ipaddress.ip_address("127.0.0.1" if target.ip.is_loopback else "192.168.0.2")

    monkeypatch.setattr(reuse, "route_source", source)


@pytest.mark.parametrize(
    ("target", "listening", "expected"),
    [
        (endpoint("127.0.0.1", 1), [LOOPBACK], LOOPBACK),
        (endpoint("8.8.8.8", 1), [LOOPBACK], None),  # nothing leaves the loopback
        (endpoint("127.0.0.1", 1), [LAN], None),
        (endpoint("8.8.8.8", 1), [LOOPBACK, LAN], LAN),
        (endpoint("8.8.8.8", 1), [ANY, LAN], LAN),
        (endpoint("8.8.8.8", 1), [ANY], ANY),
        (endpoint("127.0.0.1", 1), [ANY], ANY),
        (LOOPBACK, [LOOPBACK], None),  # it would meet itself
        (LOOPBACK, [ANY], None),
        (LOOPBACK, [endpoint("127.0.0.1", 4002), LOOPBACK], endpoint("127.0.0.1", 4002)),
        (endpoint("::1", 1), [LOOPBACK, ANY], None),
        (endpoint("8.8.8.8", 1), [], None),
    ],
)
@pytest.mark.usefixtures("routes")
def test_the_source_is_the_listener_that_the_route_leads_past(target, listening, expected):
    assert choose_source(target, listening) == expected


def test_without_a_route_nothing_is_reused(monkeypatch):
    monkeypatch.setattr(reuse, "route_source", lambda _target: None)
    assert choose_source(endpoint("8.8.8.8", 1), [ANY]) is None


@pytest.mark.real
def test_loopback_is_reached_from_loopback():
    assert route_source(endpoint("127.0.0.1", 0)) == ipaddress.ip_address("127.0.0.1")


def test_a_machine_without_the_protocol_has_no_route(monkeypatch):
    def refuse(*_args):
        raise OSError("no such protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    assert route_source(endpoint("2001:db8::1", 1)) is None
