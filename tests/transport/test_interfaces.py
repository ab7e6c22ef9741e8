import ipaddress
import socket

import pytest

from p2pnode.transport import interfaces
from p2pnode.transport.interfaces import own_addresses


@pytest.mark.parametrize("version", [4, 6])
def test_loopback_is_last_and_link_local_addresses_are_left_out(version):
    found = own_addresses(version)
    assert found[-1].is_loopback
    assert not any(ip.is_link_local for ip in found)
    assert {ip.version for ip in found} == {version}


def test_elsewhere_than_on_linux_the_default_route_tells(monkeypatch):
    monkeypatch.setattr(interfaces.sys, "platform", "darwin")
    monkeypatch.setattr(interfaces, "_ELSEWHERE", {4: (socket.AF_INET, "127.0.0.1")})
    assert own_addresses(4) == [ipaddress.ip_address("127.0.0.1")]


def test_a_machine_without_a_route_has_its_loopback(monkeypatch):
    monkeypatch.setattr(interfaces.sys, "platform", "darwin")
    monkeypatch.setattr(interfaces, "_ELSEWHERE", {4: (socket.AF_INET, "256.0.0.1")})
    assert own_addresses(4) == [ipaddress.ip_address("127.0.0.1")]
