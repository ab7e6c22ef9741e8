import itertools
import math
from collections import Counter

import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings, NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    NoPeersError,
    NotFoundError,
    ProtocolError,
    ProtocolNotSupportedError,
    RemoteError,
    StreamResetError,
)
from p2pnode.host import PeerMisbehaved
from p2pnode.protocols.kad.framing import MessageStream
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import (
    MAX_ADDRESSES,
    Contact,
    Message,
    MessageType,
    Record,
    decode,
    encode,
)
from p2pnode.protocols.kad.peers import DhtPeerAdded, DhtPeerLost
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey

PROTOCOL = DhtSettings().protocol
KEY = b"/set/key"


def _by_distance(target, peers):
    return sorted(peers, key=lambda peer: point(peer) ^ target)


async def _exchange(stream, request):
    await stream.send_all(varint.prefixed(encode(request)))
    data = await stream.receive_prefixed(2**20)
    return None if data is None else decode(data)


def _requests(net):
    """Count the requests that each node receives, by type."""
    counts = Counter()
    for host in net.world.hosts.values():
        dht_handler = host.handlers.get(PROTOCOL)
        if dht_handler is None:
            continue
        core = dht_handler.__self__._core
        original = core.receive_request

        def counted(sender, request, *more, original=original):
            counts[request.type.name] += 1
            return original(sender, request, *more)

        core.receive_request = counted
    return counts


def _silence(host):
    """Make a host accept streams but never answer."""

    async def handler(stream):
        await trio.sleep_forever()

    host.set_handler(PROTOCOL, handler)
    for connection in host.connections():
        for stream in list(connection.streams):
            stream.reset()


async def test_a_joining_node_is_known_to_all_of_a_small_swarm(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(5)
        for node in nodes:
            others = {each.peer_id for each in nodes} - {node.peer_id}
            assert set(node.dht.peers) == others


@pytest.mark.parametrize(("count", "delay"), [(30, 0.0), (60, 0.02)])
async def test_every_value_is_found_from_every_side(dht_network, autojump_clock, count, delay):
    async with dht_network(delay=lambda _a, _b: delay) as net:
        nodes = await net.grow(count)
        for number, node in enumerate(nodes[:40]):
            stored = await node.dht.put_value(b"/set/%d" % number, bytes([number]))
            assert stored == 20
        for number in range(min(count, 40)):
            reader = nodes[(7 * number + 3) % count]
            assert await reader.dht.get_value(b"/set/%d" % number) == bytes([number])


async def test_closest_peers_are_the_true_closest_of_60(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(60)
        for number in range(20):
            key, asker = b"/set/%d" % number, nodes[number * 3]
            others = [node.peer_id for node in nodes if node is not asker]
            found = await asker.dht.closest_peers(key)
            assert found == _by_distance(point(key), others)[:20]


async def test_values_survive_the_sudden_death_of_a_third(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        nodes = await net.grow(60)
        for number in range(30):
            await nodes[number].dht.put_value(b"/set/%d" % number, bytes([number]))
        for node in nodes[1::3]:
            await node.crash()
        alive = [node for number, node in enumerate(nodes) if number % 3 != 1]
        for number in range(30):
            reader = alive[(7 * number) % len(alive)]
            assert await reader.dht.get_value(b"/set/%d" % number) == bytes([number])
        gone = {node.peer_id for node in nodes[1::3]}
        assert not gone & set(await alive[5].dht.closest_peers(KEY))


async def test_lookups_with_silent_peers_end_soon_and_drop_them(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        nodes = await net.grow(40, ban_time=100.0)
        await nodes[0].dht.put_value(KEY, b"v")
        for node in nodes[30:]:
            _silence(node.host)
        silent = {node.peer_id for node in nodes[30:]}
        reader = nodes[1].dht
        before = trio.current_time()
        assert await reader.get_value(KEY) == b"v"
        assert not silent & set(await reader.closest_peers(KEY))
        assert trio.current_time() - before < DhtSettings().query_timeout
        for _ in range(3):  # each look-up reaches a little farther, until all are found out
            await trio.sleep(DhtSettings().query_timeout)
            await reader.closest_peers(KEY)
        await trio.sleep(DhtSettings().query_timeout)
        before = trio.current_time()
        assert len(await reader.closest_peers(KEY)) == 20
        assert trio.current_time() - before < 1.0


async def test_a_silent_peer_is_banned_twice_as_long_each_time(dht_network, autojump_clock):
    async with dht_network() as net:
        node, other = await net.grow(2, rejoin_interval=1e6)
        _silence(other.host)
        core = node.dht._core
        for ban in (5.0, 10.0, 20.0):
            assert not await node.dht._peers.check(other.peer_id)
            assert core.bans.banned_until(other.peer_id) == trio.current_time() + ban
            assert node.dht.peers == []
            await trio.sleep_until(core.bans.banned_until(other.peer_id))
        other.host.set_handler(PROTOCOL, other.dht._server.handle)
        assert await node.dht._peers.check(other.peer_id)
        assert len(core.bans) == 0
        assert node.dht.peers == [other.peer_id]


async def test_a_banned_peer_named_by_others_is_not_asked(dht_network, autojump_clock):
    async with dht_network() as net:
        node, other, silent = await net.grow(3)
        _silence(silent.host)
        assert not await node.dht._peers.check(silent.peer_id)
        before = trio.current_time()
        assert await node.dht.closest_peers(KEY) == [other.peer_id]
        assert trio.current_time() == before


async def test_two_writers_values_are_merged_for_every_reader(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(30)
        await nodes[3].dht.put_value(KEY, b"a")
        await nodes[9].dht.put_value(KEY, b"b")
        assert await nodes[20].dht.get_value(KEY) == b"ab"


async def test_holders_that_lack_something_are_sent_the_merged_value(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(4)
        nodes[1].dht._core.store(KEY, b"a", wall_time())
        nodes[2].dht._core.store(KEY, b"b", wall_time())
        assert await nodes[0].dht.get_value(KEY) == b"ab"
        await trio.testing.wait_all_tasks_blocked()
        assert [node.dht._core.value(KEY, wall_time()) for node in nodes] == [b"ab"] * 4


async def test_a_search_stops_at_the_quorum(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(40, parallelism=1)
        await nodes[0].dht.put_value(KEY, b"v")
        reader = next(node for node in nodes if node.dht._core.value(KEY, wall_time()) is None)
        counts = _requests(net)
        assert await reader.dht.get_value(KEY) == b"v"
        assert counts["GET_VALUE"] <= 7


async def test_a_search_near_its_goal_asks_few_more_than_it_needs(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(40)
        await nodes[0].dht.put_value(KEY, b"v")
        reader = next(node for node in nodes if node.dht._core.value(KEY, wall_time()) is None)
        counts = _requests(net)
        assert await reader.dht.get_value(KEY) == b"v"
        assert counts["GET_VALUE"] <= 13  # 10 at first, of which half have it


async def test_a_value_asked_for_again_costs_two_requests(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(30)
        await nodes[0].dht.put_value(KEY, b"v")
        client = await net.start(nodes[:1], mode="client")
        await client.dht.get_value(KEY)
        await trio.testing.wait_all_tasks_blocked()
        counts = _requests(net)
        assert await client.dht.get_value(KEY) == b"v"
        assert counts == {"GET_VALUE": 2}


async def test_a_value_stored_again_costs_no_search(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(4)
        await nodes[0].dht.put_value(KEY, b"v")
        counts = _requests(net)
        assert await nodes[0].dht.put_value(KEY, b"v") == 4
        assert counts == {"PUT_VALUE": 3}
        newcomer = await net.start(nodes[:1])
        assert await nodes[0].dht.put_value(KEY, b"v") == 5
        assert newcomer.dht.record_count == 1


async def test_holders_that_died_are_replaced_by_a_search(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(30)
        await nodes[0].dht.put_value(KEY, b"v")
        client = await net.start(nodes[:1], mode="client")
        await client.dht.get_value(KEY)
        holders = client.dht._values._holders.recall(KEY, trio.current_time())
        for node in nodes:
            if node.peer_id in holders:
                await node.crash()
        assert await client.dht.get_value(KEY) == b"v"


async def test_concurrent_gets_of_a_key_share_one_search(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        nodes = await net.grow(10)
        await nodes[0].dht.put_value(KEY, b"v")
        client = await net.start(nodes[:1], mode="client")
        counts = _requests(net)
        found = []

        async def get():
            found.append(await client.dht.get_value(KEY))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(get)
        assert found == [b"v"] * 50
        assert counts["GET_VALUE"] <= 10
        assert len(client.dht._searches) == 0


async def test_one_callers_cancellation_leaves_the_shared_search_alone(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.1) as net:
        nodes = await net.grow(5)
        await nodes[0].dht.put_value(KEY, b"v")
        client = await net.start(nodes[:1], mode="client")
        with trio.move_on_after(0.05):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.dht.get_value, KEY)
                nursery.start_soon(client.dht.get_value, KEY)
                await trio.sleep(0.01)
                search = client.dht.begin_get(KEY)
        assert not search.is_done
        assert await search.wait() == b"v"


@pytest.mark.parametrize(
    "call",
    [
        lambda dht: dht.get_value(KEY),
        lambda dht: dht.put_value(KEY, b"v"),
        lambda dht: dht.closest_peers(KEY),
        lambda dht: dht.find_peer(PrivateKey.generate().peer_id),
        lambda dht: dht.provide(b"mh"),
        lambda dht: dht.find_providers(b"mh"),
        lambda dht: dht.refresh(),
    ],
)
async def test_a_cancelled_call_leaves_no_task_and_no_stream(dht_network, autojump_clock, call):
    async with dht_network(delay=lambda _a, _b: 0.1) as net:
        nodes = await net.grow(5)
        client = await net.start(nodes[:1], mode="client", lookup_reuse=0.0)
        await trio.testing.wait_all_tasks_blocked()
        tasks = client.dht.busy
        for node in nodes:
            _silence(node.host)
        client.dht._peers.reset_idle()
        with trio.move_on_after(0.5) as scope:
            await call(client.dht)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert client.dht.busy == tasks
        assert all(not each.streams for each in client.host.connections())


async def test_calls_under_way_end_when_the_dht_stops(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.1) as net:
        nodes = await net.grow(3)
        nodes[0].scope.deadline = trio.current_time() + 0.05
        with pytest.raises(ConnectionClosedError, match=r"stopped|not running"):
            await nodes[0].dht.get_value(KEY)
        with pytest.raises(ConnectionClosedError, match="not running"):
            await nodes[0].dht.get_value(KEY)


async def test_a_node_without_peers_says_so_at_once(dht_network, autojump_clock):
    async with dht_network() as net:
        for mode in ("server", "client"):
            node = await net.start(mode=mode)
            before = trio.current_time()
            for call in (
                node.dht.get_value(KEY),
                node.dht.closest_peers(KEY),
                node.dht.find_peer(PrivateKey.generate().peer_id),
                node.dht.find_providers(b"mh"),
            ):
                with pytest.raises(NoPeersError, match="knows no peer"):
                    await call
            assert trio.current_time() == before
        with pytest.raises(NoPeersError):
            await node.dht.put_value(KEY, b"v")
        with pytest.raises(NoPeersError):
            await node.dht.provide(b"mh")


async def test_a_first_node_serves_its_own_values_to_those_who_join_later(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        first = await net.start()
        assert await first.dht.put_value(KEY, b"v") == 1
        assert await first.dht.get_value(KEY) == b"v"
        await trio.sleep(100)
        second = await net.start([first])
        third = await net.start([second])
        client = await net.start([third], mode="client")
        for node in (second, third, client):
            assert await node.dht.get_value(KEY) == b"v"


async def test_a_client_is_in_nobodys_table_and_is_never_asked(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(5)
        client = await net.start(nodes[:1], mode="client")
        assert PROTOCOL not in client.host.handlers
        assert await client.dht.put_value(KEY, b"v") == 5
        assert await nodes[2].dht.get_value(KEY) == b"v"
        assert client.dht.record_count == 0
        assert all(client.peer_id not in node.dht.peers for node in nodes)
        assert len(client.dht.peers) == 5


async def test_values_expire_in_virtual_time(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(3, record_ttl=100.0, republish_interval=50.0)
        await nodes[0].dht.put_value(KEY, b"v")
        await trio.sleep(99)
        assert await nodes[1].dht.get_value(KEY) == b"v"
        await trio.sleep(100)
        with pytest.raises(NotFoundError):
            await nodes[1].dht.get_value(KEY)
        assert [node.dht.record_count for node in nodes] == [0, 0, 0]


async def test_many_values_are_found_at_once_and_missing_ones_left_out(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.05) as net:
        nodes = await net.grow(30)
        keys = [b"/set/%d" % number for number in range(20)]
        for key in keys:
            await nodes[0].dht.put_value(key, key[-1:])
        before = trio.current_time()
        found = await nodes[5].dht.get_many([*keys, b"/set/missing"])
        assert found == {key: key[-1:] for key in keys}
        assert trio.current_time() - before < 1.0


async def test_an_invalid_value_is_refused_before_it_is_sent(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(2)
        counts = _requests(net)
        for key, value in ((KEY, b"\xff"), (b"/unknown/x", b"v")):
            with pytest.raises(ProtocolError):
                await nodes[0].dht.put_value(key, value)
        with pytest.raises(ProtocolError):
            await nodes[0].dht.get_value(b"/unknown/x")
        assert not counts


async def test_an_invalid_value_of_another_is_reported_and_left_out(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(3)
        await nodes[1].dht.put_value(KEY, b"v")
        liar = nodes[2]
        liar.dht._core.value = lambda key, wall: b"\xff"
        client = await net.start(nodes, mode="client")
        with client.host.events.subscribe(PeerMisbehaved) as events:
            assert await client.dht.get_value(KEY) == b"v"
            event = await events.get()
        assert event.peer_id == liar.peer_id


@pytest.mark.parametrize(
    "data",
    [
        varint.prefixed(b"\xff\xff"),
        varint.prefixed(
            encode(Message(type=MessageType.PUT_VALUE, key=KEY, record=Record(KEY, b"\xff")))
        ),
        varint.encode(2**30),
    ],
)
async def test_a_request_that_breaks_a_rule_resets_its_stream(dht_network, autojump_clock, data):
    async with dht_network() as net:
        server = await net.start()
        client = await net.world.add_host()
        stream = await client.open_stream(
            server.peer_id, [PROTOCOL], addresses=server.host.addresses
        )
        await stream.send_all(data)
        with pytest.raises(StreamResetError):
            await stream.receive_some(1)
        assert server.dht.record_count == 0


async def test_many_requests_may_follow_on_one_stream(dht_network, autojump_clock):
    async with dht_network() as net:
        server = await net.start()
        client = await net.world.add_host()
        stream = await client.open_stream(
            server.peer_id, [PROTOCOL], addresses=server.host.addresses
        )
        for _ in range(3):
            ping = Message(type=MessageType.PING)
            assert await _exchange(stream, ping) == ping
        own = Contact(client.peer_id, tuple(client.addresses))
        add = Message(type=MessageType.ADD_PROVIDER, key=b"mh", providers=(own,))
        await stream.send_all(varint.prefixed(encode(add)))
        answer = await _exchange(stream, Message(type=MessageType.GET_PROVIDERS, key=b"mh"))
        assert [each.peer_id for each in answer.providers] == [client.peer_id]


async def test_an_idle_stream_is_ended_by_the_server(dht_network, autojump_clock):
    async with dht_network() as net:
        server = await net.start()
        client = await net.world.add_host()
        stream = await client.open_stream(
            server.peer_id, [PROTOCOL], addresses=server.host.addresses
        )
        before = trio.current_time()
        assert await stream.receive_some(1) == b""
        assert trio.current_time() - before == DhtSettings().stream_idle_timeout


async def test_a_reader_that_takes_no_answer_is_given_up(dht_network, autojump_clock):
    async with dht_network() as net:
        server = await net.start(max_record_bytes=2**19)
        server.dht._core.store(KEY, bytes(range(128)), wall_time())
        big = Record(KEY, bytes(300_000))
        server.dht._core.receive_request = lambda *_: Message(
            type=MessageType.GET_VALUE, key=KEY, record=big
        )
        client = await net.world.add_host()
        stream = await client.open_stream(
            server.peer_id, [PROTOCOL], addresses=server.host.addresses
        )
        await stream.send_all(varint.prefixed(encode(Message(type=MessageType.PING))))
        await trio.sleep(DhtSettings().query_timeout + 1)
        with pytest.raises(StreamResetError):
            await stream.receive_prefixed(2**20)
        assert server.dht._server._streams == {}


async def test_a_peers_streams_are_bounded(dht_network, autojump_clock):
    async with dht_network() as net:
        server = await net.start(max_streams_per_peer=3)
        client = await net.world.add_host()
        streams = [
            await client.open_stream(server.peer_id, [PROTOCOL], server.host.addresses)
            for _ in range(4)
        ]
        ping = Message(type=MessageType.PING)
        for stream in streams[:3]:
            assert await _exchange(stream, ping) == ping
        with pytest.raises(StreamResetError):
            await _exchange(streams[3], ping)
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        stream = await client.open_stream(server.peer_id, [PROTOCOL])
        assert await _exchange(stream, ping) == ping


async def test_requests_to_one_peer_share_a_stream_and_are_bounded(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.01) as net:
        node, other = await net.grow(2, max_requests_per_peer=4)
        opened = net.world.streams_served
        for _ in range(10):
            await node.dht._peers.check(other.peer_id)
        assert net.world.streams_served - opened <= 1
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(node.dht._peers.check, other.peer_id)
            await trio.sleep(0.015)
            assert 0 < len(node.host.connections()[0].streams) <= 5
        assert node.dht._peers._requester._slots == {}


async def test_a_kept_stream_that_the_peer_ended_does_not_fail_the_request(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        node, other = await net.grow(2)
        assert await node.dht._peers.check(other.peer_id)
        for connection in other.host.connections():
            for stream in list(connection.streams):
                stream.reset()
        assert await node.dht._peers.check(other.peer_id)


async def test_a_provider_is_told_of_though_the_peer_ended_the_kept_stream(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(2)
        assert await nodes[0].dht._peers.check(nodes[1].peer_id)

        async def ended(stream):
            await stream.aclose()

        served = nodes[1].host.handlers[PROTOCOL]
        nodes[1].host.set_handler(PROTOCOL, ended)
        nodes[0].dht._peers.reset_idle()
        stream = await nodes[0].host.open_stream(nodes[1].peer_id, [PROTOCOL])
        await stream.send_all(varint.prefixed(encode(Message(type=MessageType.PING))))
        await trio.testing.wait_all_tasks_blocked()
        idle = nodes[0].dht._peers._requester._idle
        idle[nodes[1].peer_id] = MessageStream(stream, 2**20), trio.current_time()
        nodes[1].host.set_handler(PROTOCOL, served)
        own = Contact(nodes[0].peer_id, tuple(nodes[0].host.addresses))
        message = Message(type=MessageType.ADD_PROVIDER, key=b"mh", providers=(own,))
        await nodes[0].dht._peers.ask(nodes[1].peer_id, message)
        await trio.testing.wait_all_tasks_blocked()
        assert nodes[1].dht._core.providers.get(b"mh", wall_time())


async def test_kept_streams_are_ended_when_idle(dht_network, autojump_clock):
    async with dht_network() as net:
        node, _ = await net.grow(2, liveness_interval=1e6)
        assert node.host.connections()[0].streams
        await trio.sleep(DhtSettings().stream_idle_timeout)
        assert not node.host.connections()[0].streams
        assert node.dht._peers._requester._idle == {}


@pytest.mark.parametrize("answer", [b"", b"\x05abc", varint.prefixed(b"\xff"), b"\x02\x08\x05"])
async def test_a_peer_that_answers_nonsense_is_dropped_and_reported(
    dht_network, autojump_clock, answer
):
    async with dht_network() as net:
        node, other = await net.grow(2)

        async def nonsense(stream):
            await stream.receive_prefixed(2**20)
            await stream.send_all(answer)

        other.host.set_handler(PROTOCOL, nonsense)
        node.dht._peers.reset_idle()
        with node.host.events.subscribe(PeerMisbehaved) as events:
            assert not await node.dht._peers.check(other.peer_id)
            assert (await events.get()).peer_id == other.peer_id
        assert node.dht.peers == []


async def test_a_peer_that_stops_serving_leaves_the_table_without_a_ban(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        node, other = await net.grow(2)
        other.host.remove_handler(PROTOCOL)
        node.dht._peers.reset_idle()
        with node.host.events.subscribe(DhtPeerLost) as events:
            with pytest.raises(ProtocolNotSupportedError):
                await node.dht._peers.ask(other.peer_id, Message(type=MessageType.PING))
            assert (await events.get()).peer_id == other.peer_id
        assert len(node.dht._core.bans) == 0


async def test_joining_tells_of_each_new_peer(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(3)
        node = await net.start()
        with node.host.events.subscribe(DhtPeerAdded) as events:
            assert await node.dht.bootstrap([each.address for each in nodes]) == 3
            added = {(await events.get()).peer_id for _ in nodes}
        assert added == {each.peer_id for each in nodes} == set(node.dht.peers)


async def test_bootstrap_counts_who_answers_and_passes_over_itself(dht_network, autojump_clock):
    async with dht_network() as net:
        first = await net.start()
        dead = await net.start()
        await dead.crash()
        node = await net.start()
        assert await node.dht.bootstrap([first.address, dead.address, node.address]) == 1
        assert await node.dht.bootstrap([node.address]) == 0
        assert await node.dht.bootstrap([]) == 0


async def test_bootstrap_names_each_address_that_failed(dht_network, autojump_clock):
    async with dht_network() as net:
        dead = await net.start()
        await dead.crash()
        mute = await net.start()
        _silence(mute.host)
        node = await net.start()
        more = (dead.peer_id, Multiaddr("/ip4/127.9.9.9/tcp/9"))
        with pytest.raises(NoPeersError) as caught:
            await node.dht.bootstrap([dead.address, more, mute.address])
        for peer, address in (dead.address, more, mute.address):
            assert f"{address}/p2p/{peer}" in str(caught.value)


async def test_a_dead_peer_leaves_the_table_within_the_liveness_interval(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(4)
        await nodes[3].crash()
        await trio.sleep(2 * DhtSettings().liveness_interval)
        assert all(nodes[3].peer_id not in node.dht.peers for node in nodes[:3])
        assert all(len(node.dht.peers) == 2 for node in nodes[:3])


async def test_a_node_that_lost_all_its_peers_finds_them_again(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(4)
        client = await net.start(nodes[:1], mode="client")
        others = [node.host.machine for node in nodes]
        net.world.network.partition(others, [client.host.machine])
        for connection in client.host.connections():
            await connection.aclose()
        with pytest.raises(NoPeersError):
            await client.dht.closest_peers(KEY)
        assert client.dht.peers == []
        await trio.sleep(60)
        net.world.network.heal()
        await trio.sleep(2 * DhtSettings().rejoin_interval + NetworkSettings().dial_backoff_max)
        assert set(client.dht.peers) == {node.peer_id for node in nodes}


async def test_a_bootstrap_node_that_restarts_alone_is_found_again_by_the_others(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        first = await net.start()
        nodes = [await net.start([first]) for _ in range(3)]
        down = trio.current_time()
        await first.crash()
        for node in nodes:
            await node.dht.closest_peers(KEY)
            assert first.peer_id not in node.dht.peers
        await trio.sleep(40)
        host = await net.world.add_host(first.host.key, machine=first.host.machine)
        restarted = type(first.dht)(host)
        async with trio.open_nursery() as nursery:
            await nursery.start(restarted.run)
            up = trio.current_time()
            await trio.sleep(up - down + 2 * DhtSettings().rejoin_interval)
            everybody = {node.peer_id for node in nodes}
            assert set(restarted.peers) == everybody
            for node in nodes:
                assert set(node.dht.peers) == everybody - {node.peer_id} | {first.peer_id}
            nursery.cancel_scope.cancel()


async def test_requests_queued_behind_a_silence_end_with_it(dht_network, autojump_clock):
    async with dht_network() as net:
        node, other = await net.grow(2, max_requests_per_peer=2)
        _silence(other.host)
        before = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(node.dht._peers.check, other.peer_id)
        assert trio.current_time() - before == DhtSettings().query_timeout


async def test_a_peer_that_resets_every_request_is_dropped(dht_network, autojump_clock):
    async with dht_network() as net:
        node, other = await net.grow(2)

        async def refuse(stream):
            stream.reset()

        other.host.set_handler(PROTOCOL, refuse)
        node.dht._peers.reset_idle()
        put = Message(type=MessageType.PUT_VALUE, key=KEY, record=Record(KEY, b"v"))
        with pytest.raises(StreamResetError):
            await node.dht._peers.ask(other.peer_id, put)
        assert node.dht.peers == [other.peer_id]  # it may have had a reason against this value
        assert not await node.dht._peers.check(other.peer_id)
        assert node.dht.peers == []


async def test_two_halves_with_a_common_bootstrap_address_join_again(dht_network, autojump_clock):
    async with dht_network() as net:
        meeting = await net.world.add_host()
        address = (meeting.peer_id, meeting.addresses[0])
        halves = []
        net.world.network.take_down(meeting.machine)
        for _ in range(2):
            nodes = await net.grow(3)
            for node in nodes:
                with pytest.raises(NoPeersError):
                    await node.dht.bootstrap([address])
            halves.append(nodes)
        net.world.network.bring_up(meeting.machine)
        dht = type(halves[0][0].dht)(meeting, DhtSettings(), validators={})
        async with trio.open_nursery() as nursery:
            await nursery.start(dht.run)
            await trio.sleep(2 * DhtSettings().refresh_interval)
            everybody = {node.peer_id for half in halves for node in half} | {meeting.peer_id}
            for node in (*halves[0], *halves[1]):
                assert set(node.dht.peers) == everybody - {node.peer_id}
            nursery.cancel_scope.cancel()


async def test_a_newcomer_replaces_a_dead_peer_of_a_full_bucket(dht_network, autojump_clock):
    async with dht_network() as net:
        node = await net.start(bucket_size=2)
        others = []
        while len(others) < 4:  # fill the bucket of the far half of the key space
            other = await net.start(bucket_size=2)
            if (point(other.peer_id) ^ point(node.peer_id)).bit_length() == 256:
                others.append(other)
                await other.host.connect(node.peer_id, node.host.addresses)
        assert set(node.dht.peers) == {other.peer_id for other in others[:2]}
        await others[0].crash()
        await trio.sleep(2 * DhtSettings().liveness_interval)
        assert others[0].peer_id not in node.dht.peers
        assert others[1].peer_id in node.dht.peers
        assert len(node.dht.peers) == 2


async def test_find_peer_finds_addresses_also_of_clients(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(30, bucket_size=4)
        pairs = itertools.permutations(nodes, 2)
        seeker, target = next(
            (one, other) for one, other in pairs if not one.host.connection_to(other.peer_id)
        )
        assert await seeker.dht.find_peer(target.peer_id) == target.host.addresses
        known = next(iter(nodes[0].dht.peers))
        counts = _requests(net)
        assert await target.dht.find_peer(target.peer_id) == target.host.addresses
        assert await nodes[0].dht.find_peer(known) == net.world.hosts[known].addresses
        assert not counts
        with pytest.raises(NotFoundError):
            await nodes[0].dht.find_peer(PrivateKey.generate().peer_id)


async def test_providers_are_found_until_they_expire(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(30, provider_ttl=100.0, republish_interval=50.0, bucket_size=8)
        assert await nodes[3].dht.provide(b"mh") == 8
        await nodes[4].dht.provide(b"mh")
        found = await nodes[25].dht.find_providers(b"mh")
        assert found == {each.peer_id: each.host.addresses for each in nodes[3:5]}
        await trio.sleep(100)
        assert await nodes[25].dht.find_providers(b"mh") == {}


async def test_a_lonely_provider_finds_itself(dht_network, autojump_clock):
    async with dht_network() as net:
        node = await net.start()
        assert await node.dht.provide(b"mh") == 1
        assert await node.dht.find_providers(b"mh") == {node.peer_id: node.host.addresses}


async def test_stopping_removes_the_handler_and_the_kept_streams(dht_network, autojump_clock):
    async with dht_network() as net:
        node, other = await net.grow(2)
        node.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert PROTOCOL not in node.host.handlers
        assert not node.host.connections()[0].streams
        await other.host.connect(node.peer_id, node.host.addresses)


async def test_peers_connected_before_the_start_are_noted(dht_network, autojump_clock):
    async with dht_network() as net:
        server = await net.start()
        client = await net.start(mode="client")
        client.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await client.host.connect(server.peer_id, server.host.addresses)
        assert client.dht.peers == []
        async with trio.open_nursery() as nursery:
            await nursery.start(client.dht.run)
            assert client.dht.peers == [server.peer_id]
            nursery.cancel_scope.cancel()


async def test_lookups_of_a_large_network_take_few_requests(dht_network, autojump_clock):
    async with dht_network(delay=lambda _a, _b: 0.02) as net:
        nodes = await net.grow(60, bucket_size=8, parallelism=4)
        counts = _requests(net)
        for number in range(20):
            await nodes[number].dht.closest_peers(b"/set/%d" % number)
        assert counts["FIND_NODE"] / 20 < 8 + 8 * math.log2(60 / 8)


async def test_one_liar_does_not_end_the_search_for_providers(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(12, bucket_size=4)
        await nodes[0].dht.provide(b"mh")
        fakes = tuple(
            Contact(PrivateKey.generate().peer_id, (Multiaddr(f"/ip4/10.0.0.{n}/tcp/1"),))
            for n in range(1, 101)
        )
        reader = await net.start(nodes[:1], bucket_size=4)
        liar = _by_distance(point(b"mh"), reader.dht.peers)[0]
        core = next(node for node in nodes if node.peer_id == liar).dht._core
        original = core.receive_request

        def lie(sender, request, *more):
            if request.type is MessageType.GET_PROVIDERS:
                return Message(type=request.type, key=request.key, providers=fakes)
            return original(sender, request, *more)

        core.receive_request = lie
        assert nodes[0].peer_id in await reader.dht.find_providers(b"mh")


async def test_no_more_addresses_of_a_peer_are_taken_from_answers_than_are_of_use(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(3)
        target = PrivateKey.generate().peer_id
        fakes = tuple(
            Contact(target, tuple(Multiaddr(f"/ip4/10.0.{n}.{m}/tcp/1") for m in range(16)))
            for n in range(100)
        )
        for node in nodes[:2]:

            def lie(_sender, request, *_more):
                return Message(type=request.type, key=request.key, closer=fakes, providers=fakes)

            node.dht._core.receive_request = lie
        assert len(await nodes[2].dht.find_peer(target)) <= 2 * MAX_ADDRESSES
        (addresses,) = (await nodes[2].dht.find_providers(b"mh")).values()
        assert len(addresses) <= 2 * MAX_ADDRESSES


async def test_an_address_that_a_liar_made_up_does_not_keep_a_peer_from_being_asked(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        node, target = await net.start(), await net.start()
        wrong = (Multiaddr("/ip4/10.9.9.9/tcp/1"),)
        peers, now = node.dht._peers, trio.current_time()
        request = Message(type=MessageType.FIND_NODE, key=b"key")
        with pytest.raises(RemoteError):
            await peers.ask(target.peer_id, request, wrong)
        assert peers.worth_asking([Contact(target.peer_id, wrong)], now) == []
        right = Contact(target.peer_id, tuple(target.host.addresses))
        assert [contact for contact, _ in peers.worth_asking([right], now)] == [right]
        await peers.ask(target.peer_id, request, right.addresses)
        _silence(target.host)
        with pytest.raises(RemoteError):  # now it was reached, and is silent
            await peers.ask(target.peer_id, request, right.addresses)
        elsewhere = Contact(target.peer_id, (Multiaddr("/ip4/10.9.9.9/tcp/2"),))
        assert peers.worth_asking([right, elsewhere], trio.current_time()) == []


async def test_a_liar_near_a_key_does_not_hide_who_is_there(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(20, bucket_size=8)
        liar, *honest = nodes
        wrong = {
            node.peer_id: Contact(node.peer_id, (Multiaddr(f"/ip4/10.9.9.9/tcp/{number}"),))
            for number, node in enumerate(honest, start=1)
        }

        def lie(_sender, request, *_more):
            return Message(type=request.type, key=request.key, closer=tuple(wrong.values()))

        liar.dht._core.receive_request = lie
        reader = await net.start([liar], bucket_size=8)
        await reader.dht.bootstrap([honest[0].address])
        for number in range(4):
            await reader.dht.closest_peers(b"/set/%d" % number)
        await trio.sleep(DhtSettings().query_timeout)  # until those told wrongly are found out
        for number in range(4):
            target = point(b"/set/%d" % number)
            found = await reader.dht.closest_peers(b"/set/%d" % number)
            assert found == _by_distance(target, (node.peer_id for node in nodes))[:8]


async def test_who_takes_the_place_of_a_lost_peer_is_told_of_and_asked_for_a_sign_of_life(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        node = await net.start(bucket_size=2)
        others = []
        while len(others) < 4:
            other = await net.start(bucket_size=2)
            if not (point(other.peer_id) ^ point(node.peer_id)) >> 255:
                continue  # of another bucket
            others.append(other)
            await other.host.connect(node.peer_id, node.host.addresses)
            await trio.sleep(1)
        first, second, dead, alive = others
        added = []
        node.host.events.on(DhtPeerAdded, lambda event: added.append(event.peer_id))
        node.dht._peers.receive_alive(dead.peer_id)  # the freshest in waiting
        net.world.crash(dead.host)
        dead.scope.cancel()
        assert node.dht.peers == [first.peer_id, second.peer_id]
        first.dht.set_mode("client")
        await trio.sleep(60)
        assert added == [dead.peer_id, alive.peer_id]
        assert node.dht.peers == [second.peer_id, alive.peer_id]
