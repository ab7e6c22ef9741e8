import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.host.ranking import ips_of, is_relayed, rank
from p2pnode.wire.addresses import ip_of, parse_address

RELAY = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit"


def ranked(*texts, preferred=None, own=()):
    return [
        str(each)
        for each in rank(
            [parse_address(each) for each in texts],
            preferred=preferred and parse_address(preferred),
            own={ipaddress.ip_address(each) for each in own},
        )
    ]


def test_the_groups_follow_one_another_as_documented():
    expected = [
        "/ip4/8.8.4.4/tcp/1",  # worked last
        "/ip4/192.168.1.5/tcp/1",  # our network
        "/ip4/8.8.8.8/tcp/1",  # public
        "/ip4/10.1.1.1/tcp/1",  # somebody else's network
        f"/ip4/8.8.8.8/tcp/1{RELAY}",
    ]
    options = {"preferred": "/ip4/8.8.4.4/tcp/1", "own": ["192.168.1.7"]}
    assert ranked(*expected, **options) == expected
    assert ranked(*reversed(expected), **options) == expected


def test_families_take_turns_and_ip6_begins():
    assert ranked(
        "/ip4/8.0.0.1/tcp/1",
        "/ip4/8.0.0.2/tcp/1",
        "/ip4/8.0.0.3/tcp/1",
        "/ip6/2600::1/tcp/1",
        "/ip6/2600::2/tcp/1",
    ) == [
        "/ip6/2600::1/tcp/1",
        "/ip4/8.0.0.1/tcp/1",
        "/ip6/2600::2/tcp/1",
        "/ip4/8.0.0.2/tcp/1",
        "/ip4/8.0.0.3/tcp/1",
    ]


def test_tcp_goes_before_quic_before_ws_before_wss_before_what_is_unknown():
    expected = [
        "/ip4/8.0.0.1/tcp/4",
        "/ip4/8.0.0.1/udp/1/quic-v1",
        "/ip4/8.0.0.1/tcp/3/ws",
        "/ip4/8.0.0.1/tcp/2/wss",
        "/ip4/8.0.0.1/tcp/5/tls/ws",
        "/ip4/8.0.0.1/tcp/6/tls/sni/node.example/ws",
        "/ip4/8.0.0.1/udp/1/quic",
    ]
    assert ranked(*expected) == expected
    assert ranked(*reversed(expected))[:3] == expected[:3]
    assert ranked(*reversed(expected))[-1] == expected[-1]


@pytest.mark.parametrize(
    ("own", "loopback_first"),
    [
        (["8.8.8.8"], True),  # one of its addresses is ours: it runs on this machine
        (["9.9.9.9"], False),
        ([], False),
    ],
)
def test_loopback_comes_early_only_where_the_peer_is_on_this_machine(own, loopback_first):
    found = ranked("/ip4/8.8.8.8/tcp/1", "/ip4/127.0.0.1/tcp/1", own=own)
    assert (found[0] == "/ip4/127.0.0.1/tcp/1") is loopback_first


def test_a_peer_with_nothing_but_loopback_is_taken_to_be_here():
    assert ranked(f"/ip4/127.0.0.1/tcp/1{RELAY}", "/ip4/127.0.0.1/tcp/1")[0] == (
        "/ip4/127.0.0.1/tcp/1"
    )


@pytest.mark.parametrize(
    ("private", "own", "near"),
    [
        ("/ip4/10.1.2.3/tcp/1", "10.200.0.1", True),
        ("/ip4/10.1.2.3/tcp/1", "192.168.0.1", False),
        ("/ip4/100.64.0.9/tcp/1", "100.100.0.1", True),
        ("/ip6/fd00:1:2:3::1/tcp/1", "fd00:1:2:4::9", True),
        ("/ip6/fd00:1:2:3::1/tcp/1", "fd00:1:3:3::9", False),
        ("/ip6/fe80::1/tcp/1", "fe80::2", False),
        ("/ip4/10.1.2.3/tcp/1", "127.0.0.1", True),  # we know nothing of our network
    ],
)
def test_private_addresses_come_early_where_we_may_share_their_network(private, own, near):
    found = ranked("/ip4/8.8.8.8/tcp/1", private, own=[own])
    assert (found[0] == private) is near


def test_a_relayed_address_stays_behind_direct_ones_even_if_it_worked_last():
    relayed = f"/ip4/8.8.8.8/tcp/1{RELAY}"
    assert ranked(relayed, "/ip4/8.8.4.4/tcp/1", preferred=relayed)[-1] == relayed


IPS = st.ip_addresses().map(lambda ip: f"/ip{ip.version}/{ip}")
NAMES = st.sampled_from(["/dns4/a.example", "/dns6/b.example", "/dnsaddr/c.example"])
TAILS = st.sampled_from(
    ["", "/tcp/1", "/tcp/2/ws", "/tcp/3/wss", "/udp/1/quic-v1", f"/tcp/1{RELAY}"]
)
ADDRESSES = st.lists(
    st.builds(str.__add__, IPS | NAMES, TAILS).map(parse_address), max_size=12, unique=True
)


@given(ADDRESSES, st.data())
def test_any_ranking_is_a_permutation_with_relays_last_and_is_stable(addresses, data):
    preferred = data.draw(st.sampled_from(addresses) if addresses else st.none())
    own = data.draw(
        st.sets(st.sampled_from(sorted(ips_of(addresses), key=str)))
        if ips_of(addresses)
        else st.just(set())
    )
    found = rank(addresses, preferred=preferred, own=own)
    assert Counter(found) == Counter(addresses)
    relayed = [is_relayed(each) for each in found]
    assert relayed == sorted(relayed)
    if preferred is not None and not is_relayed(preferred):
        assert found[0] == preferred
    assert rank(found, preferred=preferred, own=own) == found


def test_what_starts_with_no_ip_has_none():
    assert ips_of(
        [parse_address("/dns4/a.example/tcp/1"), parse_address("/ip4/1.2.3.4/tcp/1")]
    ) == {ip_of(parse_address("/ip4/1.2.3.4/tcp/1"))}
