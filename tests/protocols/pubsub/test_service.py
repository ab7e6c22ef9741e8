import random

import pytest
import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import (
    InvalidAddressError,
    MessageTooLargeError,
    NoPeersError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
)
from p2pnode.host import PeerMisbehaved
from p2pnode.protocols.pubsub import PubSub, TopicScoreParams, Verdict
from p2pnode.protocols.pubsub.info import PeerGivenUp
from p2pnode.protocols.pubsub.messages import (
    Graft,
    IHave,
    Interest,
    IWant,
    PeerHint,
    Prune,
    Rpc,
    RpcLimits,
    decode,
    encode,
)
from p2pnode.protocols.pubsub.signing import sign
from p2pnode.protocols.pubsub.state import FLOODSUB, GOSSIPSUB_1_2, PROTOCOLS
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire import varint
from p2pnode.wire.addresses import with_p2p
from p2pnode.wire.records import PeerRecord

TOPIC = "news"
LIMITS = RpcLimits(1000, 1000, 1000)


class Stranger:
    """A peer whose every byte the test decides."""

    def __init__(self, host, protocol=GOSSIPSUB_1_2, reads=True):
        self.host = host
        self.peer_id = self.host.peer_id
        self.protocol = protocol
        self.reads = reads
        self.heard = []
        self.streams = 0
        self.host.set_handler(protocol, self._read)

    async def _read(self, stream):
        self.streams += 1
        if not self.reads:
            await trio.sleep_forever()
        try:
            while (data := await stream.receive_prefixed(1 << 20)) is not None:
                self.heard.append(decode(data, LIMITS))
        except P2PNodeError:
            pass

    async def open(self, node):
        await self.host.connect(node.peer_id, node.host.addresses)
        self.stream = await self.host.connection_to(node.peer_id).open_stream([self.protocol])
        return self

    async def say(self, *pieces, messages=()):
        interests = tuple(each for each in pieces if isinstance(each, Interest))
        control = tuple(each for each in pieces if not isinstance(each, Interest))
        rpc = Rpc(subscriptions=interests, messages=messages, control=control)
        await self.stream.send_all(varint.prefixed(encode(rpc)))

    def messages(self):
        return [message for rpc in self.heard for message in rpc.messages]


def reports(node):
    found = []
    node.host.events.on(PeerMisbehaved, lambda event: found.append(event.reason))
    return found


async def drain(subscription):
    return [await subscription.receive() for _ in range(len(subscription))]


async def test_a_message_comes_with_all_there_is_to_know(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two, three = await swarm.add(3)
        await swarm.connect(one, two)
        await swarm.connect(two, three)
        async with three.subscribe(TOPIC) as subscription:
            two.subscribe(TOPIC)
            await trio.sleep(3)
            message_id = await one.publish(TOPIC, bytearray(b"hello"))
            message = await subscription.receive()
        assert (message.topic, message.data) == (TOPIC, b"hello")
        assert (message.source, message.received_from) == (one.peer_id, two.peer_id)
        assert message.message_id == message_id == bytes(one.peer_id) + message.seqno.to_bytes(8)
        assert message.seqno == pytest.approx(1_700_000_003 * 10**9, rel=1e-9)


async def test_who_subscribes_is_known_and_meshed_and_protected(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        await swarm.connect(one, two)
        first, second = one.subscribe(TOPIC), one.subscribe(TOPIC)
        other = two.subscribe(TOPIC)
        await trio.sleep(2)
        assert one.topics == two.topics == [TOPIC]
        assert one.peers_of(TOPIC) == one.mesh_of(TOPIC) == [two.peer_id]
        assert one.host.is_protected(two.peer_id)
        first.close()
        first.close()
        await trio.sleep(1)
        assert one.topics == [TOPIC]
        second.close()
        other.close()
        await trio.sleep(1)
        assert one.topics == one.mesh_of(TOPIC) == two.peers_of(TOPIC) == []
        assert not one.host.is_protected(two.peer_id)


async def test_a_closed_subscription_ends_its_readers(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        subscription = one.subscribe(TOPIC)
        async with trio.open_nursery() as nursery:

            async def read():
                async for _ in subscription:
                    pass

            nursery.start_soon(read)
            await trio.sleep(1)
            subscription.close()
        with pytest.raises(trio.ClosedResourceError):
            await subscription.receive()


async def test_a_slow_reader_loses_the_oldest_and_holds_up_nobody(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        await swarm.connect(one, two)
        slow, quick = two.subscribe(TOPIC, queue=3), two.subscribe(TOPIC)
        await trio.sleep(2)
        for n in range(10):
            await one.publish(TOPIC, b"%d" % n)
        await trio.sleep(1)
        assert slow.dropped == 7
        assert [each.data for each in await drain(slow)] == [b"7", b"8", b"9"]
        assert [each.data for each in await drain(quick)] == [b"%d" % n for n in range(10)]
        assert quick.dropped == 0


async def test_what_waits_for_a_slow_reader_is_bounded_in_bytes_too(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2, subscription_queue_bytes=1 << 20)
        await swarm.connect(one, two)
        slow = two.subscribe(TOPIC)
        await trio.sleep(2)
        for size in (600_000, 300_000, 200_000, 300_000):
            await one.publish(TOPIC, bytes(size))
            await trio.sleep(0.5)
        assert [len(each.data) for each in await drain(slow)] == [300_000, 200_000, 300_000]
        assert slow.dropped == 1


async def test_a_peer_that_sends_too_many_messages_is_read_slowly_and_loses_none(
    autojump_clock, swarm_of
):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2, messages_per_second_per_peer=10.0, message_burst_per_peer=20)
        await swarm.connect(one, two)
        subscription = two.subscribe(TOPIC)
        await trio.sleep(2)
        began = trio.current_time()
        for n in range(60):
            await one.publish(TOPIC, b"%d" % n)
        arrived = []
        for n in range(60):
            assert (await subscription.receive()).data == b"%d" % n
            arrived.append(trio.current_time() - began)
        assert arrived[19] < 0.1
        assert 3.8 < arrived[-1] < 4.1


async def test_what_cannot_be_published_is_refused(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(max_message_bytes=100, max_topics=1, max_topic_bytes=8)
        with pytest.raises(MessageTooLargeError, match="101"):
            await one.publish(TOPIC, bytes(101))
        await one.publish(TOPIC, bytes(100))
        with pytest.raises(NoPeersError, match="news"):
            await one.publish(TOPIC, b"", need_peers=True)
        with pytest.raises(ValueError, match="8 bytes"):
            one.subscribe("much too long")
        one.subscribe(TOPIC)
        one.subscribe(TOPIC)
        with pytest.raises(ResourceLimitError):
            one.subscribe("other")


async def test_our_own_messages_come_to_us_if_we_want(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(emit_self=True)
        subscription = one.subscribe(TOPIC)
        await one.publish(TOPIC, b"mine")
        assert (await subscription.receive()).received_from == one.peer_id


async def test_anonymous_messages_have_neither_source_nor_number(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2, strict_sign=False)
        await swarm.connect(one, two)
        subscription = two.subscribe(TOPIC)
        await trio.sleep(2)
        await one.publish(TOPIC, b"x")
        message = await subscription.receive()
        assert (message.source, message.seqno) == (None, None)


# --- how peers are found ------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["connect first", "start first", "one late"])
async def test_peers_find_each_other_in_whatever_order_they_start(autojump_clock, swarm_of, order):
    async with swarm_of() as swarm:
        hosts = [await swarm.world.add_host() for _ in range(2)]
        nodes = []
        if order == "start first":
            nodes = [(await swarm.add(host=host))[0] for host in hosts]
        if order == "one late":
            nodes = await swarm.add(host=hosts[0])
        await hosts[0].connect(hosts[1].peer_id, hosts[1].addresses)
        await trio.sleep(30)
        nodes += [(await swarm.add(host=host))[0] for host in hosts[len(nodes) :]]
        subscription = nodes[0].subscribe(TOPIC)
        await trio.sleep(2)
        await nodes[1].publish(TOPIC, b"x", need_peers=True)
        assert (await subscription.receive()).data == b"x"


async def test_a_peer_that_never_said_what_it_speaks_is_tried(
    autojump_clock, swarm_of, monkeypatch
):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        for node in (one, two):
            monkeypatch.setattr(node.host, "protocols_of", lambda _peer: frozenset())
            monkeypatch.setattr(node.host, "receive_identity", lambda _remote: None)
        await swarm.connect(one, two)
        two.subscribe(TOPIC)
        await trio.sleep(4)
        assert one.peers_of(TOPIC) == []
        await trio.sleep(2)
        assert one.peers_of(TOPIC) == [two.peer_id]


async def test_a_peer_that_speaks_no_pubsub_is_left_alone(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        mute = await swarm.world.add_host()
        await one.host.connect(mute.peer_id, mute.addresses)
        await trio.sleep(60)
        assert one.info().peers == {}
        assert swarm.world.streams_served == 0


async def test_a_peer_that_leaves_is_forgotten_and_found_again(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        await swarm.connect(one, two)
        subscription = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        await trio.sleep(2)
        await one.host.connection_to(two.peer_id).aclose()
        await trio.sleep(1)
        assert one.info().peers == {}
        assert not one.host.is_protected(two.peer_id)
        await swarm.connect(one, two)
        await trio.sleep(2)
        await one.publish(TOPIC, b"again")
        assert (await subscription.receive()).data == b"again"


async def test_a_peer_that_is_back_at_once_is_met_anew(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        subscription = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        for _ in range(3):
            await swarm.connect(one, two)
            await trio.sleep(1)
            one.host.connection_to(two.peer_id).close("lost")
            assert one.info().peers == {}  # at once: its next connection may be up in no time
        await swarm.connect(one, two)
        await trio.sleep(1)
        assert one.mesh_of(TOPIC) == [two.peer_id]
        assert two.mesh_of(TOPIC) == [one.peer_id]
        await one.publish(TOPIC, b"x")
        assert (await subscription.receive()).data == b"x"


async def test_thousands_of_tiny_rpcs_do_not_hold_up_others(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await trio.sleep(1)
        turns = taken_in = 0
        take_in = one._peers._take_in

        async def counted(link, frame):
            nonlocal taken_in
            await take_in(link, frame)
            taken_in += 1

        one._peers._take_in = counted
        await stranger.stream.send_all(bytes(5000))
        while taken_in < 5000:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns > 1000


async def test_a_node_can_stop_and_start_again_while_connected(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        await swarm.connect(one, two)
        one.subscribe(TOPIC)
        subscription = two.subscribe(TOPIC)
        await trio.sleep(2)
        swarm.scopes[one].cancel()
        await trio.sleep(1)
        assert not one.host.handlers
        assert one._peers.links == {}
        assert two.peers_of(TOPIC) == []
        assert not one.host.is_protected(two.peer_id)
        await swarm.nursery.start(one.run)
        await trio.sleep(8)
        await one.publish(TOPIC, b"back")
        assert (await subscription.receive()).data == b"back"
        assert two.mesh_of(TOPIC) == [] or two.mesh_of(TOPIC) == [one.peer_id]


async def test_direct_peers_are_connected_and_connected_again(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        address = str(with_p2p(one.host.addresses[0], one.peer_id))
        (two,) = await swarm.add(direct_peers=(address,), direct_connect_interval=60.0)
        await trio.sleep(1)
        assert two.host.is_protected(one.peer_id)
        await two.host.connection_to(one.peer_id).aclose()
        await trio.sleep(61)
        assert two.host.connection_to(one.peer_id) is not None
        with pytest.raises(InvalidAddressError):
            await swarm.add(direct_peers=("/ip4/127.0.0.1/tcp/1",))


async def test_peers_named_by_a_trusted_peer_are_dialled(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(app_score=lambda _peer: 1000.0)
        (good, silent, lied_about) = await swarm.add(3)
        one.subscribe(TOPIC)
        stranger = await Stranger(await swarm.world.add_host()).open(one)

        def record(node, seq=1):
            addresses = tuple(node.host.addresses)
            return PeerRecord(peer_id=node.peer_id, seq=seq, addresses=addresses).seal(
                node.host.key
            )

        hints = (
            PeerHint(good.peer_id, record(good)),
            PeerHint(silent.peer_id),
            PeerHint(lied_about.peer_id, record(silent)),
            PeerHint(lied_about.peer_id, b"rubbish"),
        )
        await stranger.say(Interest(TOPIC, wanted=True), Prune(TOPIC, hints, 60))
        await trio.sleep(2)
        connected = {each.peer_id for each in one.host.connections()}
        assert connected == {stranger.peer_id, good.peer_id}


# --- validators ---------------------------------------------------------------------------------


async def line_of_three(swarm, **settings):
    """Three nodes in a row; returns them, and the subscription of the last."""
    one, two, three = await swarm.add(3, **settings)
    await swarm.connect(one, two)
    await swarm.connect(two, three)
    two.subscribe(TOPIC)
    subscription = three.subscribe(TOPIC)
    await trio.sleep(3)
    return one, two, subscription


async def by_data(message):
    await trio.sleep(1)
    return Verdict[message.data.decode()]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_only_what_the_validator_accepts_goes_on(autojump_clock, swarm_of, kind):
    async with swarm_of() as swarm:
        one, two, subscription = await line_of_three(swarm)
        validator = by_data if kind == "async" else lambda each: Verdict[each.data.decode()]
        own = two.subscribe(TOPIC, validator=validator)
        for verdict in Verdict:
            await one.publish(TOPIC, verdict.name.encode())
            await trio.sleep(2)
        assert [each.data for each in await drain(own)] == [b"ACCEPT"]
        assert [each.data for each in await drain(subscription)] == [b"ACCEPT"]
        assert two.score_of(one.peer_id) < -500
        counts = two.info().counts
        assert (counts.delivered, counts.rejected, counts.ignored) == (1, 1, 1)
        two.set_validator(TOPIC, None)
        await one.publish(TOPIC, b"anything")
        await trio.sleep(1)
        assert len(subscription) == 1


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_validator_that_cannot_read_a_message_rejects_it(autojump_clock, swarm_of, kind):
    def refuse(_message):
        raise ProtocolError("not the JSON it should be")

    async def refuse_later(message):
        refuse(message)

    async with swarm_of() as swarm:
        one, two, subscription = await line_of_three(swarm)
        two.set_validator(TOPIC, refuse if kind == "plain" else refuse_later)
        await one.publish(TOPIC, b"x")
        await trio.sleep(5)
        assert two.info().counts.rejected == 1
        assert len(subscription) == 0


async def test_validation_is_bounded_in_number_and_in_time(autojump_clock, swarm_of):
    async def never(_message):
        await trio.sleep_forever()

    async with swarm_of() as swarm:
        one, two, subscription = await line_of_three(
            swarm, max_validations=5, max_validations_per_topic=3, validation_timeout=4.0
        )
        for topic in (TOPIC, "more", "other"):
            two.subscribe(topic, validator=never)
        await trio.sleep(1)
        for topic, refused in ((TOPIC, 1), ("more", 3), ("other", 7)):
            for _ in range(4):
                await one.publish(topic, b"x")
            await trio.sleep(0.1)
            assert two.info().validations_refused == refused
        assert two.info().validating == 5
        await trio.sleep(5)
        info = two.info()
        assert (info.validating, info.validations_timed_out, info.counts.ignored) == (0, 5, 12)
        assert two.score_of(one.peer_id) >= 0
        two.set_validator(TOPIC, None)
        await one.publish(TOPIC, b"x")
        await trio.sleep(1)
        assert len(subscription) == 1


# --- slow and bad peers -------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_is_dropped_for_and_left_while_others_get_all(
    autojump_clock, swarm_of
):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2, max_queue_bytes=1 << 20, send_timeout=20.0)
        await swarm.connect(one, two)
        subscription = two.subscribe(TOPIC)
        stranger = await Stranger(await swarm.world.add_host(), reads=False).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await trio.sleep(2)
        assert set(one.peers_of(TOPIC)) == {two.peer_id, stranger.peer_id}
        for _ in range(40):
            await one.publish(TOPIC, bytes(100_000))
            await trio.sleep(0.1)
        given_up = []
        one.host.events.on(PeerGivenUp, given_up.append)
        slow, quick = (one.info().peers[each.peer_id] for each in (stranger, two))
        assert slow.dropped > 20
        assert slow.queued_bytes <= 1 << 20
        assert (quick.dropped, len(subscription)) == (0, 40)
        await trio.sleep(21)
        assert one.peers_of(TOPIC) == [two.peer_id]
        assert one.info().peers[stranger.peer_id].queued_bytes < 1000
        assert [each.peer_id for each in given_up] == [stranger.peer_id]


async def test_a_peer_too_slow_for_control_is_left_and_met_anew(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(max_topics=10, max_queue_messages=20, send_timeout=600.0)
        stranger = await Stranger(await swarm.world.add_host(), reads=False).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await trio.sleep(1)
        for _ in range(10):
            await one.publish(TOPIC, bytes(100_000))
        await trio.sleep(1)
        for n in range(30):
            async with one.subscribe(f"topic {n}"):
                pass
        one.subscribe("the last")
        stranger.reads = True
        await trio.sleep(10)
        assert stranger.streams == 2
        assert stranger.heard[0].subscriptions == (Interest("the last", wanted=True),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (varint.prefixed(b"\xff\xff"), "malformed RPC"),
        (varint.encode((1 << 20) + 1), "1048577 bytes exceeds"),
        (b"\xff" * 20, "varint"),
        (varint.prefixed(b"\x1a\x00" * 6000), "too many elements"),
    ],
)
async def test_malformed_rpcs_end_the_stream_and_are_penalised(
    autojump_clock, swarm_of, data, reason
):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(behaviour_penalty_threshold=0.0)
        found = reports(one)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await stranger.stream.send_all(data)
        with pytest.raises(P2PNodeError):
            await stranger.stream.receive_some()
        await trio.sleep(1)
        assert [each for each in found if reason in each]
        assert one.score_of(stranger.peer_id) == pytest.approx(-10, rel=0.01)
        assert one._peers._unfinished.size == 0


async def test_of_half_rpcs_too_many_the_one_kept_for_longest_gives_way(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(max_partial_bytes=1_450_000)
        strangers = [await Stranger(await swarm.world.add_host()).open(one) for _ in range(3)]
        message = sign(strangers[2].host.key, TOPIC, bytes(900_000), 1)
        rpc = varint.prefixed(encode(Rpc(messages=(message,))))
        for each in strangers:
            await each.stream.send_all(rpc[:500_000])
            await trio.sleep(1)
        with pytest.raises(P2PNodeError):
            await strangers[0].stream.receive_some()
        assert one._peers._unfinished.size == 1_000_000
        # Those who stall keep nobody from being heard.
        await strangers[2].stream.send_all(rpc[500_000:])
        await strangers[2].say(Interest(TOPIC, wanted=True))
        await trio.sleep(1)
        assert one.peers_of(TOPIC) == [strangers[2].peer_id]
        strangers[1].stream.reset()
        await trio.sleep(1)
        assert one._peers._unfinished.size == 0


async def test_a_small_rpc_does_not_give_way_to_large_ones_that_came_later(
    autojump_clock, swarm_of
):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(max_partial_bytes=1_450_000)
        small, *large = [await Stranger(await swarm.world.add_host()).open(one) for _ in range(4)]
        rpc = varint.prefixed(encode(Rpc(subscriptions=(Interest(TOPIC, wanted=True),))))
        await small.stream.send_all(rpc[:-1])
        for each in large:
            await trio.sleep(1)
            await each.stream.send_all(varint.encode(1_000_000) + bytes(500_000))
        await trio.sleep(1)
        await small.stream.send_all(rpc[-1:])
        await trio.sleep(1)
        assert one.peers_of(TOPIC) == [small.peer_id]
        with pytest.raises(P2PNodeError):
            await large[0].stream.receive_some()


async def test_an_rpc_must_be_whole_in_time_however_its_bytes_trickle(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(receive_timeout=20.0)
        found = reports(one)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        began = trio.current_time()
        await stranger.say(Interest(TOPIC, wanted=True))
        await stranger.stream.send_all(varint.encode(1_000_000))
        for _ in range(20):
            await stranger.stream.send_all(b"x")
            await trio.sleep(0.99)
        with pytest.raises(P2PNodeError):
            await stranger.stream.receive_some()
        assert trio.current_time() == pytest.approx(began + 20)
        assert any("took longer than 20 s" in each for each in found)
        assert one._peers._unfinished.size == 0


async def test_whole_rpcs_may_come_for_longer_than_one_may_take(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add(receive_timeout=20.0)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        rpc = varint.prefixed(encode(Rpc(subscriptions=(Interest(TOPIC, wanted=True),))))
        await stranger.stream.send_all(rpc[:2])
        for _ in range(10):
            await trio.sleep(10)
            await stranger.stream.send_all(rpc[2:] + rpc[:2])
        assert one.peers_of(TOPIC) == [stranger.peer_id]


async def test_a_stream_that_ends_inside_an_rpc_is_told_of(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        found = reports(one)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await stranger.stream.send_all(varint.encode(1000) + bytes(10))
        await stranger.stream.send_eof()
        await trio.sleep(1)
        assert any("ended inside an RPC" in each for each in found)


async def test_a_peer_has_one_stream_and_the_newest_counts(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        first = stranger.stream
        await stranger.say(Interest("a", wanted=True))
        await trio.sleep(1)
        await stranger.open(one)
        await stranger.say(Interest("b", wanted=True))
        await trio.sleep(1)
        assert one.peers_of("a") == one.peers_of("b") == [stranger.peer_id]
        with pytest.raises(P2PNodeError):
            await first.receive_some()


async def test_a_peer_that_writes_where_only_we_write_is_left(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        found = reports(one)
        rude = await swarm.world.add_host()

        async def talk_back(stream):
            await stream.send_all(b"me too")
            await trio.sleep_forever()

        rude.set_handler(GOSSIPSUB_1_2, talk_back)
        await one.host.connect(rude.peer_id, rude.addresses)
        await trio.sleep(12)
        assert swarm.world.streams_served == 3  # and tried again, every five seconds
        assert sum("ours to write on" in each for each in found) == 3


async def test_a_spammers_rpcs_are_no_longer_heard(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        one.subscribe(TOPIC)
        found = reports(one)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        forged = sign(stranger.host.key, "another topic", b"x", 1)
        for n in range(6):
            message = type(forged)(
                topic=TOPIC, data=b"%d" % n, author=forged.author, seqno=n.to_bytes(8),
                signature=forged.signature,
            )  # fmt: skip
            await stranger.say(messages=(message,))
        await trio.sleep(1)
        counts = one.info().counts
        assert (counts.refused, counts.graylisted) == (2, 4)
        assert sum("no longer heard" in each for each in found) == 1
        assert one.score_of(stranger.peer_id) < -2500


async def test_floodsub_peers_take_part(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        subscription = one.subscribe(TOPIC)
        stranger = await Stranger(await swarm.world.add_host(), FLOODSUB).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await stranger.say(messages=(sign(stranger.host.key, TOPIC, b"old ways", 1),))
        assert (await subscription.receive()).data == b"old ways"
        await one.publish(TOPIC, b"new ways")
        await trio.sleep(3)
        assert [each.data for each in stranger.messages()] == [b"new ways"]
        assert not any(rpc.control for rpc in stranger.heard)


async def test_a_peer_that_missed_a_message_can_ask_for_it(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        message_id = await one.publish(TOPIC, b"early")
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await trio.sleep(2)
        told = [each for rpc in stranger.heard for each in rpc.control if isinstance(each, IHave)]
        assert IHave(TOPIC, (message_id,)) in told
        await stranger.say(IWant((message_id,)))
        await trio.sleep(1)
        assert [each.data for each in stranger.messages()] == [b"early"]


async def test_the_first_rpc_tells_our_topics_and_a_graft_follows(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        (one,) = await swarm.add()
        one.subscribe(TOPIC)
        stranger = await Stranger(await swarm.world.add_host()).open(one)
        await stranger.say(Interest(TOPIC, wanted=True))
        await trio.sleep(1)
        assert stranger.heard[0].subscriptions == (Interest(TOPIC, wanted=True),)
        assert [each for rpc in stranger.heard for each in rpc.control] == [Graft(TOPIC)]


async def test_topics_may_count_differently(autojump_clock, swarm_of):
    async with swarm_of() as swarm:
        one, two = await swarm.add(2)
        settings = PubSubSettings(first_message_deliveries_weight=77.0)
        two.set_score_params(TOPIC, TopicScoreParams.of(settings))
        two.set_message_id(TOPIC, lambda message: message.data)
        one.set_message_id(TOPIC, lambda message: message.data)
        await swarm.connect(one, two)
        two.subscribe(TOPIC)
        await trio.sleep(2)
        assert await one.publish(TOPIC, b"x") == b"x"
        await trio.sleep(0.5)
        assert two.score_of(one.peer_id) > 70


# --- the whole stack ----------------------------------------------------------------------------


async def test_it_works_over_noise_yamux_and_identify(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.02))) as world:
        hosts = [await world.add_host() for _ in range(3)]
        nodes = [
            PubSub(host, host.key, rng=random.Random(index)) for index, host in enumerate(hosts)
        ]
        async with trio.open_nursery() as nursery:
            await nursery.start(nodes[0].run)
            await nursery.start(nodes[1].run)
            await hosts[0].connect(hosts[1].peer_id, hosts[1].addresses)
            await hosts[1].connect(hosts[2].peer_id, hosts[2].addresses)
            await trio.sleep(1)
            await nursery.start(nodes[2].run)  # the others learn of it by an identify push
            subscriptions = [node.subscribe(TOPIC) for node in nodes]
            await trio.sleep(3)
            assert set(PROTOCOLS) <= hosts[0].protocols_of(hosts[1].peer_id)
            await nodes[0].publish(TOPIC, bytes(500_000))
            for subscription in subscriptions[1:]:
                assert (await subscription.receive()).data == bytes(500_000)
            nursery.cancel_scope.cancel()
