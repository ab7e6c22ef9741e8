"""One network, however many peers it has, does not crowd out the others."""

import itertools
from collections import Counter

import pytest
import trio

from p2pnode.config import DhtSettings
from p2pnode.protocols.kad.diversity import group_of
from p2pnode.protocols.kad.keys import common_prefix, point
from p2pnode.protocols.kad.service import KadDht


async def _crowd(net, nursery, count, ip):
    """Start servers whose machines are at addresses of one pattern."""
    found = []
    for number in range(count):
        machine = net.world.network.add_machine(ip=ip.format(number + 1))
        host = await net.world.add_host(machine=machine)
        dht = KadDht(host, DhtSettings())
        await nursery.start(dht.run)
        found.append((host, dht))
    return found


@pytest.mark.parametrize(("ip", "limited"), [("8.8.0.{}", True), ("192.168.7.{}", False)])
async def test_a_table_takes_few_peers_of_one_public_network(
    dht_network, autojump_clock, nursery, ip, limited
):
    async with dht_network() as net:
        node = await net.start()
        others = await net.grow(3)
        for host, _ in await _crowd(net, nursery, 40, ip):
            await host.connect(node.peer_id, node.host.addresses)
        for other in others:
            await other.host.connect(node.peer_id, node.host.addresses)
        await trio.sleep(1)
        groups, buckets = Counter(), Counter()
        for peer in node.dht.peers:
            group = group_of(node.host.addresses_of(peer), private_too=True)
            groups[group] += 1
            buckets[group, common_prefix(point(peer), point(node.peer_id))] += 1
        if limited:
            assert {other.peer_id for other in others} <= set(node.dht.peers)
            assert max(groups.values()) <= DhtSettings().max_peers_per_network
            assert max(buckets.values()) <= DhtSettings().max_peers_per_network_in_bucket
        else:
            assert max(groups.values()) > DhtSettings().max_peers_per_network


async def test_private_networks_are_limited_where_the_settings_say_so(
    dht_network, autojump_clock, nursery
):
    async with dht_network() as net:
        node = await net.start(limit_private_networks=True)
        for host, _ in await _crowd(net, nursery, 30, "192.168.7.{}"):
            await host.connect(node.peer_id, node.host.addresses)
        await trio.sleep(1)
        most = DhtSettings().max_peers_per_network_in_bucket
        depths = (common_prefix(point(peer), point(node.peer_id)) for peer in node.dht.peers)
        assert max(Counter(depths).values()) == most


async def test_a_crowd_in_one_network_does_not_take_all_places_near_a_key(
    dht_network, autojump_clock, nursery
):
    async with dht_network() as net:
        nodes = await net.grow(25)
        for host, dht in await _crowd(net, nursery, 30, "8.8.0.{}"):
            way = nodes[1]
            await dht.bootstrap([way.address])
            assert host.connection_to(way.peer_id)
        most = DhtSettings().max_peers_per_network_in_lookup
        for number, node in itertools.product(range(3), nodes[::12]):
            found = await node.dht.closest_peers(b"/set/%d" % number)
            crowd = set(found) - {each.peer_id for each in nodes}
            assert len(found) == DhtSettings().bucket_size
            assert len(crowd) <= most
