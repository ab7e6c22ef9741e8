"""Look-ups that are shared, remembered or cached, and what that must not break."""

from collections import Counter

import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError, NotFoundError, ProtocolError
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import MessageType
from p2pnode.protocols.kad.queries import DhtLookupEnded

KEY = b"/set/key"


def _values(count):
    return {b"/set/%d" % number: bytes([number % 128]) for number in range(count)}


def _distance_to(key):
    return lambda node: point(node.peer_id) ^ point(key)


def _lookups(node):
    """Count the look-ups of a node, by kind."""
    counts = Counter()
    node.host.events.on(DhtLookupEnded, lambda event: counts.update([event.kind]))
    return counts


async def test_many_values_are_stored_and_found_with_few_look_ups(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        nodes = await net.grow(40, bucket_size=8)
        writer = await net.start(nodes[:1], mode="client", bucket_size=8)
        values, counts = _values(200), _lookups(writer)
        assert set((await writer.dht.put_many(values)).values()) == {8}
        assert counts[MessageType.FIND_NODE] < 50
        for key in list(values)[::20]:
            near = sorted(nodes, key=_distance_to(key))[:4]
            assert all(node.dht._core.value(key, wall_time()) for node in near)
        reader = await net.start(nodes[3:4], mode="client", bucket_size=8)
        assert await reader.dht.get_many([*values, b"/set/missing"]) == values
        counts = _lookups(writer)
        assert await writer.dht.get_many(list(values)) == values
        assert counts[MessageType.GET_VALUE] < 30  # it knows who holds them


async def test_one_bad_value_of_many_stores_none(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(3)
        with pytest.raises(ProtocolError):
            await nodes[0].dht.put_many({b"/set/a": b"v", b"/set/b": b"\xff"})
        assert [node.dht.record_count for node in nodes] == [0, 0, 0]


@pytest.mark.parametrize("mode", ["server", "client"])
async def test_without_peers_every_call_says_so_at_once(dht_network, autojump_clock, mode):
    async with dht_network() as net:
        node = await net.start(mode=mode)
        before = trio.current_time()
        assert await node.dht.put_many({}) == {}
        assert await node.dht.get_many([]) == {}
        with pytest.raises(NoPeersError):
            await node.dht.get_many([KEY, b"/set/other"])
        await node.dht.refresh()
        assert await node.dht.rejoin() == 0
        assert await node.dht.leave() == 0
        if mode == "client":
            with pytest.raises(NoPeersError):
                await node.dht.put_many(_values(20))
        else:
            assert set((await node.dht.put_many(_values(20))).values()) == {1}
            assert await node.dht.get_many(list(_values(20))) == _values(20)
        assert trio.current_time() == before


async def test_an_absent_key_is_not_searched_for_again_at_once(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(10)
        client = await net.start(nodes[:1], mode="client")
        counts = _lookups(client)
        for _ in range(5):
            with pytest.raises(NotFoundError):
                await client.dht.get_value(KEY)
        assert counts[MessageType.GET_VALUE] == 1
        await nodes[3].dht.put_value(KEY, b"v")
        await trio.sleep(DhtSettings().absence_reuse)
        assert await client.dht.get_value(KEY) == b"v"


async def test_a_value_stored_here_or_by_this_node_is_never_taken_for_absent(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(4)
        client = await net.start(nodes[:1], mode="client")
        for node in (client, nodes[1]):
            with pytest.raises(NotFoundError):
                await node.dht.get_value(KEY)
        await client.dht.put_value(KEY, b"v")
        assert await client.dht.get_value(KEY) == b"v"
        assert await nodes[1].dht.get_value(KEY) == b"v"


async def test_a_value_in_demand_is_kept_on_the_way_for_a_short_time(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(40, bucket_size=4)
        await nodes[0].dht.put_value(KEY, b"v")

        def holders():
            return [node for node in nodes if node.dht._core.value(KEY, wall_time()) is not None]

        first = holders()
        for node in nodes:
            assert await node.dht.get_value(KEY) == b"v"
        await trio.testing.wait_all_tasks_blocked()
        most = len(holders())
        assert most > len(first)
        await trio.sleep(DhtSettings().cache_ttl + 1)
        assert len(first) <= len(holders()) < most


async def test_a_look_up_tells_what_it_took(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.02) as net:
        nodes = await net.grow(30, bucket_size=4)
        with nodes[7].host.events.subscribe(DhtLookupEnded) as events:
            closest = await nodes[7].dht.closest_peers(KEY)
            event = await events.get()
        assert (event.kind, event.key) == (MessageType.FIND_NODE, KEY)
        assert event.asked >= event.answered >= len(closest) == 4
        assert 1 <= event.hops <= 5
        assert event.seconds >= 0.04


async def test_a_search_that_began_before_a_value_was_stored_does_not_hide_it(
    dht_network, autojump_clock
):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        nodes = await net.grow(10)
        client = await net.start(nodes[:1], mode="client")
        early = client.dht.begin_get(KEY)
        await trio.sleep(0.025)
        await client.dht.put_value(KEY, b"v")
        with pytest.raises(NotFoundError):
            await early.wait()
        assert await client.dht.get_value(KEY) == b"v"
