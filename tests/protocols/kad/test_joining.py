"""Finding the DHT, and finding it again: after restarts, cuts and with several ways in."""

import pytest
import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError, NotFoundError
from p2pnode.protocols.kad.service import KadDht

PROTOCOL = DhtSettings().protocol
REFRESH = DhtSettings().refresh_interval


def _everybody(nodes):
    return {node.peer_id for node in nodes}


async def _all_find_all(nodes):
    """Tell of how many pairs one finds the other among the peers closest to it."""
    found = 0
    for node in nodes:
        for target in nodes:
            if target is not node:
                closest = await node.dht.closest_peers(bytes(target.peer_id))
                found += closest[0] == target.peer_id
    return found / len(nodes) / (len(nodes) - 1)


async def test_nodes_that_joined_by_different_ways_in_form_one_network(dht_network, autojump_clock):
    """hivemind's issue 624: a common list of bootstrap peers, and two networks all the same."""
    async with dht_network() as net:
        ways = [await net.start(), await net.start()]
        list_ = [way.address for way in ways]
        halves = []
        for number, way in enumerate(ways):
            net.world.network.take_down(ways[1 - number].host.machine)
            nodes = [await net.start() for _ in range(2)]
            for node in nodes:
                await node.dht.bootstrap(list_)
            halves += nodes
            net.world.network.bring_up(ways[1 - number].host.machine)
            assert way.peer_id in nodes[0].dht.peers
        await trio.sleep(2 * REFRESH)
        for node in halves:
            assert set(node.dht.peers) == _everybody((*halves, *ways)) - {node.peer_id}


async def test_two_networks_of_20_with_a_common_bootstrap_list_merge(dht_network, autojump_clock):
    async with dht_network() as net:
        halves = [await net.grow(20, bucket_size=8) for _ in range(2)]
        list_ = [half[0].address for half in halves]
        first, second = halves[0][5], halves[1][5]
        await first.dht.put_value(b"/set/a", b"a")
        await second.dht.put_value(b"/set/b", b"b")
        net.world.network.partition(*([node.host.machine for node in half] for half in halves))
        for half in halves:
            for node in half[1:6]:
                await node.dht.bootstrap(list_)
        net.world.network.heal()
        await trio.sleep(2 * REFRESH)
        for half, key in zip(halves, (b"/set/b", b"/set/a"), strict=True):
            for node in half[::6]:
                assert await node.dht.get_value(key) == key[-1:]
        assert await _all_find_all((*halves[0][::6], *halves[1][::6])) == 1.0


async def test_after_a_cut_of_ten_minutes_the_halves_are_one_network_again(
    dht_network, autojump_clock
):
    async with dht_network(delay=lambda _a, _b: 0.02) as net:
        nodes = await net.grow(24, bucket_size=8)
        await nodes[0].dht.put_value(b"/set/before", b"v")
        halves = nodes[::2], nodes[1::2]
        network = net.world.network
        network.partition(*([node.host.machine for node in half] for half in halves))
        await trio.sleep(600)
        await halves[0][1].dht.put_value(b"/set/left", b"l")
        await halves[1][1].dht.put_value(b"/set/right", b"r")
        with pytest.raises(NotFoundError):
            await halves[0][2].dht.get_value(b"/set/right")
        network.heal()
        await trio.sleep(2 * REFRESH)
        assert await _all_find_all((*halves[0][::4], *halves[1][::4])) == 1.0
        for half in halves:
            for key, value in (("before", b"v"), ("left", b"l"), ("right", b"r")):
                assert await half[5].dht.get_value(f"/set/{key}".encode()) == value


async def test_a_bootstrap_peer_without_room_in_the_table_is_not_asked_all_the_time(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        way = await net.start()
        others = await net.grow(8, bucket_size=1)
        node = await net.start(others[:1], bucket_size=1)
        full = {node.dht._core.table.is_full(0)}
        await node.dht.bootstrap([way.address])
        asked = []
        ask = node.dht._peers.join_by

        async def counted(peer, *arguments, **more):
            asked.append(peer)
            await ask(peer, *arguments, **more)

        node.dht._peers.join_by = counted
        await trio.sleep(4 * REFRESH)
        assert full == {True}
        assert len(asked) <= 6


async def test_a_node_finds_its_network_after_a_restart_without_any_bootstrap_peer(
    dht_network, autojump_clock, tmp_path
):
    async with dht_network() as net:
        nodes = await net.grow(8)
        file = tmp_path / "table.json"
        host = await net.world.add_host()
        async with trio.open_nursery() as nursery:
            dht = KadDht(host, table_file=file)
            await nursery.start(dht.run)
            await dht.bootstrap([nodes[0].address])
            with trio.move_on_after(1.25 * dht.settings.save_interval):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        await nodes[0].crash()
        net.world.kill(host)
        host = await net.world.add_host(host.key, machine=host.machine)
        async with trio.open_nursery() as nursery:
            dht = KadDht(host, table_file=file)
            await nursery.start(dht.run)
            with pytest.raises(NoPeersError):
                await dht.bootstrap([nodes[0].address])
            assert await dht.rejoin() == 7
            assert set(dht.peers) == _everybody(nodes[1:])
            nursery.cancel_scope.cancel()


async def test_a_node_that_leaves_saves_its_table(dht_network, autojump_clock, tmp_path):
    async with dht_network() as net:
        nodes = await net.grow(3)
        host = await net.world.add_host()
        async with trio.open_nursery() as nursery:
            dht = KadDht(host, table_file=tmp_path / "table.json")
            await nursery.start(dht.run)
            await dht.bootstrap([nodes[0].address])
            await dht.leave()
            nursery.cancel_scope.cancel()
        text = (tmp_path / "table.json").read_text()
        assert all(str(node.peer_id) in text for node in nodes)


async def test_a_bootstrap_peer_hands_out_live_peers_after_half_of_its_table_died(
    dht_network, autojump_clock
):
    async with dht_network(delay=lambda _a, _b: 0.02) as net:
        nodes = await net.grow(30)
        await trio.sleep(60)
        for node in nodes[1::2]:
            net.world.crash(node.host)  # silent: no connection tells of it
            node.scope.cancel()
        await trio.sleep(DhtSettings().liveness_interval)
        client = await net.world.add_host()
        await client.connect(nodes[0].peer_id, nodes[0].host.addresses)
        core, peers = nodes[0].dht._core, nodes[0].dht._peers
        for target in nodes[1::2]:
            found = core._closer(
                bytes(target.peer_id), client.peer_id, peers.contact_of, trio.current_time()
            )
            assert {contact.peer_id for contact in found} <= _everybody(nodes[::2])
            assert len(found) >= 12


async def test_lost_peers_are_retried_seldom_and_forgotten_when_found(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(12)
        for node in nodes[6:]:
            await node.crash()
        await trio.sleep(DhtSettings().liveness_interval)
        joining = nodes[0].dht._joining
        lost = _everybody(nodes[6:])
        assert lost <= set(joining.remembered)
        dials = []
        connect = nodes[0].host.connect

        async def counted(peer, *arguments, **more):
            dials.append(peer)
            return await connect(peer, *arguments, **more)

        nodes[0].host.connect = counted
        await trio.sleep(3600)
        assert len([peer for peer in dials if peer in lost]) <= 6 * 9


async def test_losses_every_few_seconds_do_not_put_off_trying_bootstrap_peers(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        way, *others = await net.grow(2)
        node = await net.start(others)
        net.world.network.take_down(way.host.machine)
        with pytest.raises(NoPeersError):
            await node.dht.bootstrap([way.address])
        net.world.network.bring_up(way.host.machine)
        node.dht._core.table.remove(way.peer_id)
        for _ in range(100):
            node.dht._joining.receive_lost(others[0].peer_id)
            await trio.sleep(0.5 * DhtSettings().rejoin_interval)
        assert way.peer_id in node.dht.peers
