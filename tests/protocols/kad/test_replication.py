"""Values stay with those closest to them while nodes come and go, and end when they should."""

import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError, NotFoundError, ProtocolError
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import MessageType
from p2pnode.protocols.kad.publisher import RETRY_INTERVAL
from p2pnode.protocols.kad.replication import GREETING_SPACING
from p2pnode.protocols.kad.service import SPACING

KEY = b"/set/key"


def _by_distance(nodes, key=KEY):
    return sorted(nodes, key=lambda node: point(node.peer_id) ^ point(key))


def _holders(nodes, key=KEY):
    return [node for node in nodes if node.dht._core.value(key, wall_time()) is not None]


async def test_a_newcomer_that_is_closer_is_sent_the_value_by_one_holder(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(12, bucket_size=4)
        await nodes[0].dht.put_value(KEY, b"v")
        holders = _by_distance(_holders(nodes))
        newcomers = []
        while not newcomers or _by_distance([newcomers[-1], *nodes])[0] is not newcomers[-1]:
            newcomers.append(await net.start(nodes[:1], bucket_size=4))
        for holder in holders:
            await holder.host.connect(newcomers[-1].peer_id, newcomers[-1].host.addresses)
        await trio.sleep(2 * DhtSettings().handover_delay)
        assert newcomers[-1] in _holders(newcomers)
        before = holders[0].dht._core.records.get(KEY, wall_time())
        copy = newcomers[-1].dht._core.records.get(KEY, wall_time())
        assert copy.expires == pytest.approx(before.expires)


async def test_values_outlive_all_their_first_holders(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(16, bucket_size=4)
        await nodes[0].dht.put_value(KEY, b"v")
        first = _holders(nodes)
        interval = DhtSettings().replicate_interval
        for start in (0, 2):
            for node in first[start : start + 2]:
                await node.crash()
            await trio.sleep(2 * interval)
        alive = [node for node in nodes if node not in first]
        assert len(set(map(id, _by_distance(alive)[:4])) & set(map(id, _holders(alive)))) >= 3
        assert await alive[3].dht.get_value(KEY) == b"v"


async def test_copies_do_not_make_a_value_live_longer(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(8, bucket_size=3, record_ttl=5 * 3600.0, republish_interval=3600.0)
        await nodes[0].dht.put_value(KEY, b"v")
        await trio.sleep(4.9 * 3600)
        assert await nodes[7].dht.get_value(KEY) == b"v"
        await trio.sleep(0.2 * 3600)
        assert _holders(nodes) == []
        with pytest.raises(NotFoundError):
            await nodes[3].dht.get_value(KEY)


async def test_who_leaves_hands_its_values_to_those_that_take_its_place(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(14, bucket_size=4)
        await nodes[0].dht.put_value(KEY, b"v")
        leaver = _by_distance(nodes)[0]
        assert leaver in _holders(nodes)
        assert await leaver.dht.leave() == 1
        rest = [node for node in nodes if node is not leaver]
        assert len(_holders(rest)) >= 4
        for node in _by_distance(rest)[:3]:
            assert node in _holders(rest)


async def test_leaving_takes_no_longer_than_it_may(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(8, bucket_size=2)
        for number in range(20):
            await nodes[0].dht.put_value(b"/set/%d" % number, b"v")

        async def mute(_stream):
            await trio.sleep_forever()

        for node in nodes[1:]:
            node.host.set_handler(node.dht.settings.protocol, mute)
        nodes[0].dht._peers.reset_idle()
        before = trio.current_time()
        await nodes[0].dht.leave()
        assert trio.current_time() - before <= DhtSettings().leave_timeout


async def test_a_published_value_and_key_outlive_their_records(dht_network, autojump_clock):
    async with dht_network() as net:
        times = {"record_ttl": 1000.0, "provider_ttl": 1000.0, "republish_interval": 500.0}
        nodes = await net.grow(10, bucket_size=4, **times)
        owner = nodes[2].dht
        await owner.put_value(KEY, b"v", publish=True)
        await owner.put_value(b"/set/once", b"v")
        await owner.provide(b"mh", publish=True)
        await trio.sleep(2500)
        assert await nodes[7].dht.get_value(KEY) == b"v"
        assert list(await nodes[7].dht.find_providers(b"mh")) == [nodes[2].peer_id]
        with pytest.raises(NotFoundError):
            await nodes[7].dht.get_value(b"/set/once")
        assert owner.unpublish(KEY)
        assert owner.unpublish(b"mh")
        assert not owner.unpublish(KEY)
        await trio.sleep(2500)
        with pytest.raises(NotFoundError):
            await nodes[7].dht.get_value(KEY)
        assert await nodes[7].dht.find_providers(b"mh") == {}


async def test_a_node_that_was_alone_publishes_when_it_has_peers(dht_network, autojump_clock):
    async with dht_network() as net:
        nodes = await net.grow(3)
        client = await net.start(mode="client")
        with pytest.raises(NoPeersError):
            await client.dht.put_value(KEY, b"v", publish=True)
        with pytest.raises(NoPeersError):
            await client.dht.provide(b"mh", publish=True)
        await trio.sleep(3 * RETRY_INTERVAL)  # in vain, and yet it is tried again
        await client.dht.bootstrap([nodes[0].address])
        await trio.sleep(RETRY_INTERVAL + SPACING)
        assert len(_holders(nodes)) == 3
        assert list(await nodes[1].dht.find_providers(b"mh")) == [client.peer_id]


async def test_after_a_third_died_at_once_every_value_is_found_and_look_ups_are_quick(
    dht_network, autojump_clock
):
    async with dht_network(delay=lambda _a, _b: 0.02) as net:
        nodes = await net.grow(40, bucket_size=8)
        values = {b"/set/%d" % number: bytes([number]) for number in range(60)}
        await nodes[0].dht.put_many(values)
        dead = nodes[1::3]
        for node in dead:
            net.world.crash(node.host)
            node.scope.cancel()
        alive = [node for node in nodes if node not in dead]
        assert await alive[7].dht.get_many(list(values)) == values
        before = trio.current_time()
        for number, node in enumerate(alive[::3]):
            assert await node.dht.get_value(b"/set/%d" % number) == bytes([number])
        assert (trio.current_time() - before) / len(alive[::3]) < DhtSettings().patience * 2
        await trio.sleep(DhtSettings().liveness_interval)
        before = trio.current_time()
        for number, node in enumerate(alive[1::3]):
            assert await node.dht.get_value(b"/set/%d" % number) == bytes([number])
        assert (trio.current_time() - before) / len(alive[1::3]) < 1.0


async def test_a_published_value_that_has_ended_does_not_keep_back_others(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        times = {"record_ttl": 1000.0, "republish_interval": 500.0}
        nodes = await net.grow(4, **times)
        owner = nodes[1].dht
        for key in (b"/set/over", KEY):
            await owner.put_value(key, b"v", publish=True)
        check = owner._core.check

        def ended(key, value, wall):
            if key == b"/set/over":
                raise ProtocolError("it is over")
            return check(key, value, wall)

        owner._core.check = ended
        await trio.sleep(1500)
        assert await nodes[3].dht.get_value(KEY) == b"v"
        assert not owner.unpublish(b"/set/over")
        assert owner.unpublish(KEY)


async def test_a_newcomer_that_falls_silent_does_not_hold_up_what_others_are_sent(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        holder = await net.start()
        keys = [b"/set/%d" % number for number in range(400)]
        await holder.dht.put_many(dict.fromkeys(keys, b"v"))

        async def mute(_stream):
            await trio.sleep_forever()

        silent = await net.start([holder])
        silent.host.set_handler(silent.dht.settings.protocol, mute)
        for connection in silent.host.connections():
            for stream in list(connection.streams):
                stream.reset()
        newcomer = await net.start([holder])
        await trio.sleep(3 * DhtSettings().handover_delay)
        replication = holder.dht._replication
        assert replication.next_greeting(trio.current_time()) == float("inf")
        (job,) = [each for each in holder.dht._jobs._jobs if each.run == replication.greet]
        assert not job.is_running
        closer = [key for key in keys if _by_distance([holder, newcomer], key)[0] is newcomer]
        assert {key for key in closer if _holders([newcomer], key)} == set(closer)


async def test_a_value_that_nobody_takes_does_not_keep_others_from_being_replicated(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(3)
        keys = sorted((b"/set/%d" % number for number in range(6)), key=point)
        for key in keys:
            nodes[0].dht._core.store(key, b"v", wall_time())
        put_again = nodes[0].dht._values.put_again

        async def refused(key, record):
            if key == keys[0]:
                raise NoPeersError("all refuse it")
            return await put_again(key, record)

        nodes[0].dht._values.put_again = refused
        await trio.sleep(2.2 * DhtSettings().replicate_interval)
        assert [key for key in keys if _holders(nodes[1:], key)] == keys[1:]


async def test_others_run_while_a_leaving_node_looks_through_its_values(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(3)
        for number in range(600):
            nodes[0].dht._core.store(b"/set/%d" % number, b"v", wall_time())
        table, looked = nodes[0].dht._core.table, []
        closest = table.closest
        table.closest = lambda *a, **k: looked.append(None) or closest(*a, **k)
        with trio.CancelScope() as scope:
            scope.cancel()
            await nodes[0].dht._replication.hand_over()
        assert looked == []


async def test_a_peer_that_comes_and_goes_is_not_sent_everything_each_time(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        holder, newcomer = await net.grow(2)
        for number in range(40):
            holder.dht._core.store(b"/set/%d" % number, b"v", wall_time())
        copies = []
        original = newcomer.dht._core.receive_request

        def counted(sender, request, *more):
            copies.extend([request.key] * (request.type is MessageType.PUT_VALUE))
            return original(sender, request, *more)

        newcomer.dht._core.receive_request = counted
        for _ in range(8):
            newcomer.dht.set_mode("client")
            await trio.sleep(10)
            newcomer.dht.set_mode("server")
            await trio.sleep(15)
        assert 0 < len(set(copies)) == len(copies)
        before = len(copies)
        await trio.sleep(GREETING_SPACING)
        assert before < len(copies) <= 2 * before  # it may have lost them meanwhile
