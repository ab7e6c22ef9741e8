import pytest
from multiaddr import Multiaddr

from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub.colocation import Networks


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("/ip4/192.0.2.7/tcp/1", "192.0.2.7/32"),
        ("/ip6/2001:db8:1:2:3::4/tcp/1", "2001:db8:1:2::/64"),
        ("/ip4/127.0.0.9/tcp/1", None),
        ("/ip6/::1/tcp/1", None),
        ("/dns4/example.org/tcp/1", None),
    ],
)
def test_a_network_is_what_one_household_has(address, network):
    assert Networks(PubSubSettings()).of(Multiaddr(address)) == network


def test_prefixes_and_whitelist_are_settings():
    settings = PubSubSettings(
        ip_colocation_ip4_prefix=24, ip_colocation_factor_whitelist=("192.0.2.0/25",)
    )
    networks = Networks(settings)
    assert networks.of(Multiaddr("/ip4/192.0.2.7/tcp/1")) is None
    assert networks.of(Multiaddr("/ip4/192.0.2.200/tcp/1")) == "192.0.2.0/24"
    assert networks.of(Multiaddr("/ip4/127.0.0.1/tcp/1")) == "127.0.0.0/24"
