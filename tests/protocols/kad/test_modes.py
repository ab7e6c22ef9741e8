"""Servers that become clients, and clients that become servers, while they run."""

import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.host import PeerIdentified, Reachability, ReachabilityChanged
from p2pnode.protocols.kad.service import DhtModeChanged, KadDht
from p2pnode.testing.hosts import full_hosts

PROTOCOL = DhtSettings().protocol
KEY = b"/set/key"


def _identify(host, peer, protocols):
    """Tell a light host what an identify push would."""
    host.events.emit(
        PeerIdentified(
            peer_id=peer.peer_id,
            protocols=frozenset(protocols),
            addresses=tuple(peer.host.addresses),
            agent="test",
            observed_address=None,
        )
    )


def _found(node, reachability):
    node.host.events.emit(ReachabilityChanged(reachability=reachability))


@pytest.mark.parametrize(
    ("mode", "unknown", "private"),
    [("auto", True, False), ("server", True, True), ("client", False, False)],
)
async def test_reachability_decides_the_mode_where_it_may(
    dht_network, autojump_clock, mode, unknown, private
):
    async with dht_network() as net:
        node = await net.start(mode=mode)
        assert node.dht.serves is (PROTOCOL in node.host.handlers) is unknown
        _found(node, Reachability.PRIVATE)
        assert node.dht.serves is (PROTOCOL in node.host.handlers) is private
        _found(node, Reachability.UNKNOWN)  # what was found out still is the best guess
        assert node.dht.serves is private
        _found(node, Reachability.PUBLIC)
        assert node.dht.serves is (PROTOCOL in node.host.handlers) is unknown


async def test_who_becomes_a_client_is_dropped_by_all_that_hear_of_it(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(6)
        with nodes[2].host.events.subscribe(DhtModeChanged) as events:
            nodes[2].dht.set_mode("client")
            assert (await events.get()).serves is False
        for node in nodes[:2]:
            _identify(node.host, nodes[2], [])
            assert nodes[2].peer_id not in node.dht.peers
        # The others are told by its refusal.
        assert not await nodes[3].dht._peers.check(nodes[2].peer_id)
        assert nodes[2].peer_id not in nodes[3].dht.peers
        await nodes[2].dht.put_value(KEY, b"v")  # it still asks
        assert nodes[2].dht.record_count == 0


async def test_who_becomes_a_client_hands_over_its_values_and_serves_no_stream(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(12, bucket_size=4)
        await nodes[0].dht.put_value(KEY, b"v")
        holder = next(node for node in nodes if node.dht.record_count)
        holder.dht.set_mode("client")
        await trio.testing.wait_all_tasks_blocked()
        holders = [node for node in nodes if node.dht._core.value(KEY, wall_time())]
        assert len(holders) == 4 + 1
        assert holder.dht._server._streams == {}


async def test_who_becomes_a_server_is_taken_in_again(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(4)
        late = await net.start(nodes[:1], mode="client")
        assert all(late.peer_id not in node.dht.peers for node in nodes)
        late.dht.set_mode("server")
        for node in nodes:
            _identify(node.host, late, [PROTOCOL])
            assert late.peer_id in node.dht.peers


async def test_identify_pushes_tell_real_peers_of_the_mode(autojump_clock):
    async with full_hosts() as net, trio.open_nursery() as nursery:
        one, other = [await net.add_host() for _ in range(2)]
        stays, changes = KadDht(one), KadDht(other)
        for dht in (stays, changes):
            await nursery.start(dht.run)
        assert await stays.bootstrap([(other.peer_id, other.addresses[0])]) == 1
        await trio.sleep(5)
        for mode, peers in (("client", []), ("server", [other.peer_id])):
            changes.set_mode(mode)
            await trio.sleep(5)
            assert stays.peers == peers
        nursery.cancel_scope.cancel()
