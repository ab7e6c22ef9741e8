"""Members that break the rules: they convince nobody, and are not passed on."""

import dataclasses

import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.protocols.pubsub import PubSubMessage, Verdict
from p2pnode.swarm.gossip.announcement import Announcement, Claim, seal_announcement, topic_of
from p2pnode.swarm.gossip.reputation import Offence, PeerBlacklisted
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid


def say(node, uid, claim=None, *, key=None, **fields):
    """What `node` puts on the wire without asking its own code whether it may."""
    key = key or node.host.key
    said = Announcement(
        uid=uid,
        peer_id=key.peer_id,
        claim=claim or Claim(round=1, score=1.0),
        version=int(wall_time() * 1000),
        issued=wall_time(),
        lifetime=60.0,
    )
    return seal_announcement(key, dataclasses.replace(said, **fields))


def as_message(uid, data, source, bringer=None):
    return PubSubMessage(
        topic=topic_of(uid),
        data=data,
        source=source,
        received_from=bringer or source,
        seqno=1,
        message_id=b"id",
    )


async def crowd(net, uid):
    """An honest swarm of three with somebody evil in it; all are connected."""
    honest = [await net.add(uid) for _ in range(3)]
    evil = await net.add(uid)
    swarms = [each.swarms.swarm(uid) for each in honest]
    evil.swarms.swarm(uid)
    await net.settle()
    return honest, evil, swarms


async def heard(swarms, peer_id):
    await trio.sleep(3)
    return [each for each in swarms if peer_id in each.announcements]


async def test_an_announcement_made_well_is_heard_by_all(gossip_network, uid, autojump_clock):
    async with gossip_network() as net:
        _, evil, swarms = await crowd(net, uid)
        await evil.pubsub.publish(topic_of(uid), say(evil, uid))
        assert len(await heard(swarms, evil.peer_id)) == 3


async def test_words_put_into_another_s_mouth_are_refused_and_blamed_on_who_brings_them(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        honest, evil, swarms = await crowd(net, uid)
        victim = honest[0]
        stolen = say(victim, uid, Claim(round=99))  # signed by him, but published by another
        forged = bytearray(stolen)
        forged[-1] ^= 1
        for data in (stolen, bytes(forged), b"junk"):
            await evil.pubsub.publish(topic_of(uid), data)
        assert await heard(swarms, victim.peer_id) == []
        for node in honest:
            assert node.pubsub.score_of(evil.peer_id) < -1000
            assert node.pubsub.info().counts.rejected >= 1


async def test_the_announcement_of_another_run_or_layer_does_not_count_here(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        honest, evil, swarms = await crowd(net, uid)
        await evil.pubsub.publish(topic_of(uid), say(evil, Uid("open:other", "blocks.0")))
        assert await heard(swarms, evil.peer_id) == []
        assert all(each.pubsub.info().counts.rejected == 1 for each in honest)


async def test_what_is_rejected_or_ignored_is_not_passed_on(gossip_network, uid, autojump_clock):
    async with gossip_network() as net:
        honest, evil, _ = await crowd(net, uid)
        before = [each.pubsub.info().counts.forwarded for each in honest]
        old = say(evil, uid, issued=wall_time() - 100)
        for data in (b"junk", old, say(evil, uid, issued=wall_time() + 60)):
            await evil.pubsub.publish(topic_of(uid), data)
        await trio.sleep(3)
        assert [each.pubsub.info().counts.forwarded for each in honest] == before


async def test_a_stranger_is_not_heard_in_a_closed_run(gossip_network, closed_run, autojump_clock):
    uid = closed_run.uid
    async with gossip_network() as net:
        member = closed_run.member()
        honest = [await net.add(uid, membership=member) for _ in range(2)]
        swarms = [each.swarms.swarm(uid) for each in honest]
        stranger = await net.add(membership=closed_run.stranger)
        stranger.swarms.swarm(uid)
        await net.settle()
        said = await swarms[1].announce(Claim(round=1))
        await trio.sleep(3)
        assert swarms[0].announcements == {honest[1].peer_id: said}
        await stranger.pubsub.publish(topic_of(uid), say(stranger, uid))
        stolen = say(stranger, uid, token=said.token)  # seen on its way here: of no use
        await stranger.pubsub.publish(topic_of(uid), stolen)
        assert await heard(swarms, stranger.peer_id) == []
        for node in honest:
            assert node.pubsub.info().counts.rejected >= 1
            assert node.pubsub.score_of(stranger.peer_id) < -1000


async def test_who_may_only_train_cannot_pose_as_a_host(gossip_network, closed_run, autojump_clock):
    uid = closed_run.uid
    async with gossip_network() as net:
        honest = await net.add(uid, membership=closed_run.member())
        trainer = await net.add(membership=closed_run.member("train"))
        swarm, posing = honest.swarms.swarm(uid), trainer.swarms.swarm(uid)
        await net.settle()
        await posing.announce(Claim(round=1, score=1.0))
        assert await heard([swarm], trainer.peer_id) == []
        assert honest.pubsub.info().counts.rejected == 1


async def test_an_expired_membership_is_nobody_s_fault_but_counts_no_more(
    gossip_network, closed_run, autojump_clock
):
    uid = closed_run.uid
    async with gossip_network() as net:
        honest = await net.add(uid, membership=closed_run.member())
        brief = closed_run.member(expires_at=wall_time() + 30)
        other = await net.add(uid, membership=brief)
        swarm = honest.swarms.swarm(uid)
        other.swarms.swarm(uid)
        await net.settle(40)
        token = brief(other.peer_id).token
        await other.pubsub.publish(topic_of(uid), say(other, uid, token=token))
        assert await heard([swarm], other.peer_id) == []
        assert honest.pubsub.score_of(other.peer_id) >= 0


async def test_replays_change_nothing_whoever_brings_them(gossip_network, uid, autojump_clock):
    async with gossip_network() as net:
        honest, evil, swarms = await crowd(net, uid)
        author, judge = honest[0], swarms[1].judge
        first = say(author, uid, Claim(round=1))
        await trio.sleep(5)
        second = say(author, uid, Claim(round=2))
        assert judge(as_message(uid, second, author.peer_id)) is Verdict.ACCEPT
        for _ in range(200):  # as often as anybody likes
            for data in (first, second):
                verdict = judge(as_message(uid, data, author.peer_id, evil.peer_id))
                assert verdict is Verdict.IGNORE
        assert swarms[1].announcements[author.peer_id].claim.round == 2
        assert honest[1].swarms.reputation.standings(trio.current_time()) == []


async def test_a_flood_is_cut_off_and_ends_on_the_blacklist_while_others_are_heard(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        honest, evil, swarms = await crowd(net, uid)
        with honest[0].host.events.subscribe(PeerBlacklisted) as told:
            start = wall_time()
            for number in range(150):
                data = say(
                    evil, uid, Claim(round=number), version=number, issued=start + number / 1e3
                )
                await evil.pubsub.publish(topic_of(uid), data)
            await swarms[1].announce(Claim(round=5))
            await trio.sleep(5)
            with trio.fail_after(1):
                assert (await told.get()).peer_id == evil.peer_id
        for swarm in (swarms[0], swarms[2]):
            assert swarm.announcements[honest[1].peer_id].claim.round == 5
            assert evil.peer_id not in swarm.announcements
            assert swarm.is_shunned(evil.peer_id)
        (standing,) = honest[0].swarms.reputation.standings(trio.current_time())
        assert standing.offences[Offence.FLOOD.value] >= 40
        assert honest[0].pubsub.score_of(honest[1].peer_id) > 0  # who passed it on is not blamed


async def test_who_is_on_the_blacklist_is_neither_heard_nor_linked_to_nor_listed_as_a_candidate(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        honest, evil, swarms = await crowd(net, uid)
        for _ in range(2):
            swarms[0].report(evil.peer_id, Offence.FALSE_SCORE, "it claims 1.0 and has 0.1")
        assert honest[0].pubsub.score_of(evil.peer_id) < -2500
        await evil.pubsub.publish(topic_of(uid), say(evil, uid, Claim(round=1)))
        assert await heard(swarms, evil.peer_id) == swarms[1:]  # others judge for themselves
        await trio.sleep(10)
        assert evil.peer_id not in honest[0].swarms.links
        assert evil.peer_id in honest[1].swarms.links
        assert evil.peer_id in [each.peer_id for each in swarms[0].members]  # for people to see


async def test_many_strangers_cannot_crowd_out_who_is_in_the_index(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        honest = await net.add(uid, max_members=5)
        swarm = honest.swarms.swarm(uid)
        for number in range(100, 130):
            stranger = PrivateKey.from_seed(bytes([number]) * 32)  # identities cost nothing
            swarm.judge(as_message(uid, say(None, uid, key=stranger), stranger.peer_id))
        assert len(swarm.members) == 5
        late = await net.add(uid)
        await net.settle()
        assert late.peer_id in [each.peer_id for each in swarm.members]
        assert len(swarm.members) == 5
