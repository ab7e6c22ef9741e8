"""Many nodes, with delays, losses and attackers; what they measure is printed (`pytest -s`)."""

import random
from collections import Counter
from statistics import median

import pytest
import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import P2PNodeError
from p2pnode.protocols.pubsub import Verdict
from p2pnode.protocols.pubsub.messages import (
    Graft,
    IHave,
    Interest,
    Message,
    Prune,
    Rpc,
    encode,
)
from p2pnode.protocols.pubsub.signing import sign
from p2pnode.protocols.pubsub.state import GOSSIPSUB_1_2
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey

TOPIC = "news"
HOP = 0.05  # seconds of each link


class Audience:
    """What each node of a swarm got, and when."""

    def __init__(self, swarm, nodes):
        self.nodes = list(nodes)
        self.sent = {}
        self.got = Counter()
        self.delays = []
        self.subscriptions = {node: node.subscribe(TOPIC) for node in self.nodes}
        for node in self.nodes:
            swarm.nursery.start_soon(self._read, node)

    async def _read(self, node):
        async for message in self.subscriptions[node]:
            self.got[node, message.message_id] += 1
            self.delays.append(trio.current_time() - self.sent[message.message_id][1])

    async def publish(self, node, data):
        message_id = await node.publish(TOPIC, data)
        self.sent[message_id] = node, trio.current_time()

    def missing(self, nodes=None):
        """How many deliveries lack."""
        return sum(
            (node, message_id) not in self.got
            for node in nodes or self.nodes
            for message_id, (author, _) in self.sent.items()
            if node is not author
        )

    def report(self, name):
        duplicates = sum(node.info().counts.duplicates for node in self.nodes)
        print(  # noqa: T201  # measurements, shown by -s
            f"\n{name}: {len(self.sent)} messages, {len(self.got)} deliveries, "
            f"median {1000 * median(self.delays):.0f} ms, worst {1000 * max(self.delays):.0f} ms, "
            f"{duplicates / len(self.got):.2f} duplicates for each delivery"
        )
        return duplicates / len(self.got)


async def grow(swarm, count, degree, rng, **settings):
    """Start nodes, each of which dials `degree` others; returns them, subscribed and settled."""
    nodes = await swarm.add(count, **settings)
    for node in nodes:
        await swarm.connect(node, *rng.sample([each for each in nodes if each is not node], degree))
    audience = Audience(swarm, nodes)
    await trio.sleep(4)
    return audience


class Attacker:
    """A host that speaks pubsub as it likes, and takes in what it is sent."""

    def __init__(self, host):
        self.host = host
        self.streams = []

        async def swallow(stream):
            while await stream.receive_some():
                pass

        host.set_handler(GOSSIPSUB_1_2, swallow)

    async def join(self, *nodes):
        for node in nodes:
            await self.host.connect(node.peer_id, node.host.addresses)
            stream = await self.host.connection_to(node.peer_id).open_stream([GOSSIPSUB_1_2])
            self.streams.append(stream)
        await self.say(Interest(TOPIC, wanted=True))
        return self

    async def say(self, *pieces):
        rpc = Rpc(
            subscriptions=tuple(each for each in pieces if isinstance(each, Interest)),
            messages=tuple(each for each in pieces if isinstance(each, Message)),
            control=tuple(each for each in pieces if not isinstance(each, Interest | Message)),
        )
        for stream in list(self.streams):
            try:
                await stream.send_all(varint.prefixed(encode(rpc)))
            except P2PNodeError:
                self.streams.remove(stream)


async def test_a_hundred_nodes_get_every_message_once_within_a_few_hops(autojump_clock, swarm_of):
    rng = random.Random(1)
    async with swarm_of(lambda _from, _to: HOP * rng.uniform(0.5, 1.5)) as swarm:
        audience = await grow(swarm, 100, 6, rng)
        for n in range(15):
            await audience.publish(rng.choice(audience.nodes), b"%d" % n)
            await trio.sleep(0.1)
        await trio.sleep(3)
        assert audience.missing() == 0
        assert set(audience.got.values()) == {1}
        assert len(audience.got) == 99 * 15
        assert max(audience.delays) < 8 * HOP
        assert audience.report("100 nodes") < 8


async def duplicates_of(swarm_of, idontwant):
    rng = random.Random(2)
    async with swarm_of(lambda _from, _to: HOP * rng.uniform(0.2, 1.8)) as swarm:
        threshold = 1024 if idontwant else 1 << 20
        audience = await grow(swarm, 40, 8, rng, idontwant_threshold=threshold)
        for node in audience.nodes:
            node.set_validator(TOPIC, slow_verdict)
        for _ in range(6):
            await audience.publish(rng.choice(audience.nodes), bytes(20_000))
            await trio.sleep(0.5)
        await trio.sleep(3)
        assert audience.missing() == 0
        return audience.report(f"40 nodes, 20 kB, IDONTWANT {'on' if idontwant else 'off'}")


async def slow_verdict(_message):
    await trio.sleep(0.1)
    return Verdict.ACCEPT


async def test_idontwant_saves_most_duplicates_of_large_messages(autojump_clock, swarm_of):
    assert 2 * await duplicates_of(swarm_of, True) < await duplicates_of(swarm_of, False)


async def test_messages_get_through_when_a_third_of_the_nodes_die_at_once(autojump_clock, swarm_of):
    rng = random.Random(3)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(swarm, 60, 8, rng)
        dead = rng.sample(audience.nodes, 20)
        living = [node for node in audience.nodes if node not in dead]
        for n in range(10):
            if n == 3:
                for node in dead:
                    swarm.world.kill(node.host)
            await audience.publish(rng.choice(living), b"%d" % n)
            await trio.sleep(0.2)
        await trio.sleep(6)
        assert audience.missing(living) == 0
        for node in living:
            assert not set(node.peers_of(TOPIC)) & {each.peer_id for each in dead}
            assert len(node.mesh_of(TOPIC)) >= 2


async def test_two_halves_that_meet_again_catch_up_by_gossip(autojump_clock, swarm_of):
    rng = random.Random(4)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        nodes = await swarm.add(30)
        halves = nodes[:15], nodes[15:]
        for half in halves:
            for node in half:
                others = [each for each in half if each is not node]
                await swarm.connect(node, *rng.sample(others, 5))
        audience = Audience(swarm, nodes)
        await trio.sleep(4)
        for half in halves:
            for n in range(5):
                await audience.publish(half[0], b"%d" % n)
        await trio.sleep(1)
        assert audience.missing() == 2 * 5 * 15
        for one, other in zip(halves[0][:5], halves[1][:5], strict=True):
            await swarm.connect(one, other)
        await trio.sleep(6)
        assert audience.missing() == 0
        assert set(audience.got.values()) == {1}


async def test_a_peer_that_keeps_messages_to_itself_is_pruned_and_stays_out(
    autojump_clock, swarm_of
):
    rng = random.Random(5)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(
            swarm,
            12,
            5,
            rng,
            flood_publish=False,
            mesh_message_deliveries_weight=-10.0,
            mesh_message_deliveries_threshold=2.0,
            mesh_message_deliveries_activation=15.0,
            mesh_message_deliveries_window=2 * HOP,
            mesh_failure_penalty_weight=-10.0,
        )
        victim = audience.nodes[0]
        sponge = await Attacker(await swarm.world.add_host()).join(victim)
        await sponge.say(Graft(TOPIC))
        await trio.sleep(1)
        assert sponge.host.peer_id in victim.mesh_of(TOPIC)
        for n in range(150):
            await audience.publish(audience.nodes[1 + n % 11], b"%d" % n)
            await trio.sleep(0.2)
            if n > 100:
                assert sponge.host.peer_id not in victim.mesh_of(TOPIC)
                assert victim.score_of(sponge.host.peer_id) < 0
        await trio.sleep(2)
        assert audience.missing() == 0
        honest = [victim.score_of(peer) for peer in victim.mesh_of(TOPIC)]
        assert len(honest) >= 2
        assert min(honest) >= 0


async def test_a_spammer_of_invalid_messages_is_soon_no_longer_heard(autojump_clock, swarm_of):
    rng = random.Random(6)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(swarm, 12, 5, rng)
        for node in audience.nodes:
            node.set_validator(
                TOPIC, lambda each: Verdict.REJECT if b"spam" in each.data else Verdict.ACCEPT
            )
        victims = audience.nodes[:4]
        spammer = await Attacker(await swarm.world.add_host()).join(*victims)
        await spammer.say(Graft(TOPIC))
        for n in range(50):
            await spammer.say(sign(spammer.host.key, TOPIC, b"spam %d" % n, n))
            await audience.publish(audience.nodes[5], b"%d" % n)
            await trio.sleep(0.1)
        await trio.sleep(3)
        assert audience.missing() == 0
        for node in audience.nodes:
            counts = node.info().counts
            if node in victims:
                assert spammer.host.peer_id not in node.mesh_of(TOPIC)
                assert counts.rejected == 2
                assert counts.graylisted == 48
            else:
                assert counts.rejected == 0  # it went no further than to its victims


async def test_a_peer_that_grafts_over_and_over_is_shut_out(autojump_clock, swarm_of):
    rng = random.Random(7)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(swarm, 20, 9, rng)
        victim = audience.nodes[0]
        pushy = await Attacker(await swarm.world.add_host()).join(victim)
        await pushy.say(Prune(TOPIC, (), 60))
        mesh = victim.mesh_of(TOPIC)
        for _ in range(30):
            await pushy.say(Graft(TOPIC))
            await trio.sleep(0.1)
        assert pushy.host.peer_id not in victim.mesh_of(TOPIC)
        assert victim.score_of(pushy.host.peer_id) < victim.settings.graylist_threshold
        assert victim.mesh_of(TOPIC) == mesh
        await audience.publish(audience.nodes[1], b"x")
        await trio.sleep(2)
        assert audience.missing() == 0


async def test_a_peer_that_tells_of_messages_it_does_not_have_is_believed_ever_less(
    autojump_clock, swarm_of
):
    rng = random.Random(8)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(swarm, 12, 5, rng)
        victim = audience.nodes[0]
        liar = await Attacker(await swarm.world.add_host()).join(victim)
        asked = Counter()
        await trio.sleep(1)
        queue = victim._peers.links[liar.host.peer_id].push

        def count(send):
            asked[int(trio.current_time())] += type(send.piece).__name__ == "IWant"
            queue(send)

        victim._peers.links[liar.host.peer_id].push = count
        for n in range(200):
            await liar.say(IHave(TOPIC, tuple(b"%d-%d" % (n, each) for each in range(100))))
            await trio.sleep(0.05)
        assert max(asked.values()) <= 2 * victim.settings.max_ihave_messages
        assert asked[int(trio.current_time()) - 1] == 0  # not believed any longer
        assert victim.score_of(liar.host.peer_id) < victim.settings.gossip_threshold
        await audience.publish(audience.nodes[1], b"x")
        await trio.sleep(2)
        assert audience.missing() == 0


@pytest.mark.parametrize("sybils", [5, 15])
async def test_many_ids_at_one_address_are_one_too_many(autojump_clock, swarm_of, sybils):
    rng = random.Random(9)
    async with swarm_of(lambda _from, _to: HOP) as swarm:
        audience = await grow(swarm, 12, 5, rng, ip_colocation_factor_whitelist=("192.0.2.0/24",))
        victim = audience.nodes[0]
        machine = swarm.world.network.add_machine()
        ids = []
        for n in range(sybils):
            key = PrivateKey.from_seed(bytes([200, n]) * 16)
            host = await swarm.world.add_host(key, machine=machine)
            sybil = await Attacker(host).join(victim)
            await sybil.say(Graft(TOPIC))
            ids.append(host.peer_id)
        await trio.sleep(3)
        scores = [victim.score_of(each) for each in ids]
        in_mesh = set(ids) & set(victim.mesh_of(TOPIC))
        if sybils == PubSubSettings().ip_colocation_factor_threshold:
            assert min(scores) >= 0
        else:
            assert max(scores) == pytest.approx(-100 * 10**2, rel=0.01)
            assert not in_mesh
        await audience.publish(audience.nodes[1], b"x")
        await trio.sleep(2)
        assert audience.missing() == 0
