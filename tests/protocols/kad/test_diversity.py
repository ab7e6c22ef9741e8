import pytest
from multiaddr import Multiaddr

from p2pnode.protocols.kad.diversity import group_of


def _group(*texts, private_too=False):
    return group_of(map(Multiaddr, texts), private_too=private_too)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/ip4/8.8.1.1/tcp/1", "/ip4/8.8.200.9/tcp/2", True),
        ("/ip4/8.8.1.1/tcp/1", "/ip4/8.9.1.1/tcp/1", False),
        ("/ip6/2a00:1450:1::1/tcp/1", "/ip6/2a00:1450:ffff::2/tcp/1", True),
        ("/ip6/2a00:1450::1/tcp/1", "/ip6/2a00:1451::1/tcp/1", False),
        ("/ip4/8.8.1.1/tcp/1", "/ip6/::ffff:8.8.2.2/tcp/1", True),
    ],
)
def test_addresses_of_one_network_are_of_one_group(one, other, same):
    assert _group(one) is not None
    assert (_group(one) == _group(other)) is same


@pytest.mark.parametrize(
    "text",
    ["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.1/tcp/1", "/ip6/::1/tcp/1", "/ip6/fe80::1/tcp/1"],
)
def test_private_addresses_are_of_no_group_unless_wanted(text):
    assert _group(text) is None
    assert _group(text, private_too=True) is not None


def test_names_are_of_no_group_and_the_first_address_with_one_counts():
    assert _group("/dns4/example.org/tcp/1", private_too=True) is None
    assert _group() is None
    assert _group("/ip4/10.0.0.1/tcp/1", "/dns/a.b/tcp/1", "/ip4/9.9.9.9/tcp/1") == b"\x09\x09"
