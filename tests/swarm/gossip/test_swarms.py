"""Swarms in use: who is in them, what they hear of each other, and whom they stay linked to."""

import pytest
import trio
import trio.testing

from p2pnode.config import PubSubSettings
from p2pnode.errors import ResourceLimitError
from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.swarm.gossip.core import MemberAnnounced, MemberJoined, MemberLeft
from p2pnode.swarm.gossip.service import AnnouncingEnded
from p2pnode.wire.uids import expand


def joined(node):
    return sorted(each.uid for each in node.swarms.joined)


async def test_members_find_each_other_and_hear_what_each_announces(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        nodes = [await net.add(uid) for _ in range(3)]
        swarms = [each.swarms.swarm(uid) for each in nodes]
        await net.settle()
        for own, swarm in zip(nodes, swarms, strict=True):
            others = sorted(each.peer_id for each in nodes if each is not own)
            assert [each.peer_id for each in swarm.members] == others
        said = await swarms[0].announce(Claim(round=1, score=0.5, scored_on=100, mode="best"))
        with trio.fail_after(5):
            for swarm in swarms[1:]:
                await swarm.wait_until(lambda swarm=swarm: nodes[0].peer_id in swarm.announcements)
                assert swarm.announcements == {nodes[0].peer_id: said}


async def test_changes_are_told_in_their_order(gossip_network, uid, autojump_clock):
    async with gossip_network() as net:
        first = await net.add(uid)
        swarm = first.swarms.swarm(uid)
        with swarm.events.subscribe() as changes:
            second = await net.add(uid)
            await net.settle()
            announced = await second.swarms.swarm(uid).announce(Claim(round=1))
            await net.settle()
            await second.stop()
            await net.settle(30)
            told = [await changes.get() for _ in range(3)]
        assert told == [
            MemberJoined(uid=uid, peer_id=second.peer_id),
            MemberAnnounced(announcement=announced),
            MemberLeft(uid=uid, peer_id=second.peer_id),
        ]


async def test_who_crashes_is_a_member_until_what_it_said_has_expired(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, second = await net.add(uid), await net.add(uid)
        swarm = first.swarms.swarm(uid)
        await second.swarms.swarm(uid).announce(Claim(round=1))
        await net.settle()
        await second.crash()
        await trio.sleep(50)
        assert [each.peer_id for each in swarm.members] == [second.peer_id]
        await trio.sleep(50)
        assert swarm.members == []


async def test_who_crashes_is_gone_at_once_and_who_speaks_again_is_back(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, second, third = [await net.add(uid, number=number) for number in (1, 2, 3)]
        swarm = first.swarms.swarm(uid)
        await net.settle()
        assert swarm.gone == frozenset()
        await second.crash()
        await trio.sleep(1)
        assert swarm.gone == {second.peer_id}
        again = await net.add(uid, number=2)
        await net.settle()
        await again.swarms.swarm(uid).announce(Claim(round=1))
        await net.settle()
        assert swarm.gone == frozenset()
        assert {each.peer_id for each in swarm.members} == {again.peer_id, third.peer_id}


async def test_who_is_linked_to_again_is_not_gone(gossip_network, uid, autojump_clock):
    async with gossip_network() as net:
        first, second = await net.add(uid), await net.add(uid)
        swarm = first.swarms.swarm(uid)
        await net.settle()
        first.host.connection_to(second.peer_id).close("a test")
        await trio.sleep(1)
        assert first.host.connection_to(second.peer_id) is not None
        assert swarm.gone == frozenset()


async def test_an_announcement_holds_as_long_as_its_author_lives_and_costs_little(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, second = await net.add(uid), await net.add(uid)
        swarm = first.swarms.swarm(uid)
        claim = Claim(round=7)
        with swarm.events.subscribe(MemberAnnounced) as news:
            await second.swarms.swarm(uid).announce(claim)
            await trio.sleep(200)
            assert swarm.announcements[second.peer_id].claim == claim
            assert (await news.get()).announcement.claim == claim
            with trio.move_on_after(1) as scope:
                await news.get()  # a renewal is no news
            assert scope.cancelled_caught
        assert 7 <= second.pubsub.info().counts.published <= 9


async def test_who_comes_late_hears_soon_what_was_announced_long_ago(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first = await net.add(uid)
        await first.swarms.swarm(uid).announce(Claim(round=1))
        await trio.sleep(305)
        late = await net.add(uid)
        swarm = late.swarms.swarm(uid)
        with trio.fail_after(10):
            await swarm.wait_until(lambda: first.peer_id in swarm.announcements)


async def test_who_does_not_host_the_layer_can_look_at_its_swarm_for_a_while(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, onlooker = await net.add(uid), await net.add()
        await first.swarms.swarm(uid).announce(Claim(round=1))
        swarm = onlooker.swarms.look_at(uid, within=30)
        with trio.fail_after(10):
            await swarm.wait_until(lambda: bool(swarm.announcements))
        assert first.swarms.swarm(uid).members == []  # it is no member
        await trio.sleep(40)
        assert joined(onlooker) == []
        assert onlooker.pubsub.topics == []


async def test_what_nobody_shares_is_not_joined_and_what_somebody_shares_is(
    gossip_network, autojump_clock
):
    layers = expand("open:digits/blocks.[0:100]")
    async with gossip_network() as net:
        first = await net.add(*layers)
        await trio.sleep(70)
        assert first.pubsub.topics == []
        second = await net.add(*layers[40:43])
        await net.settle()
        assert joined(first) == joined(second) == layers[40:43]
        assert sorted(first.pubsub.topics) == sorted(second.pubsub.topics)
        await trio.sleep(100)
        for node in (first, second):  # hosting alone is nothing to talk about
            assert node.pubsub.info().counts.published == 0
        second.drop_layers(*layers[41:43])
        await trio.sleep(80)
        assert joined(first) == joined(second) == layers[40:41]


async def test_the_survey_of_many_neighbours_is_few_questions(gossip_network, autojump_clock):
    layers = expand("open:digits/blocks.[0:100]")
    async with gossip_network() as net:
        await net.add()
        node = await net.add(*layers)
        await net.settle()
        asked = []
        original = node.dht.get_value
        node.dht.get_value = lambda key: asked.append(key) or original(key)
        await trio.sleep(300)
        assert 5 <= len(asked) <= 7  # one a minute, as all stand in one record


async def test_no_more_swarms_are_joined_than_the_settings_allow(gossip_network, autojump_clock):
    layers = expand("open:digits/blocks.[0:9]")
    async with gossip_network() as net:
        node = await net.add(*layers, max_swarms=4)
        await net.add(*layers)
        await net.settle(70)
        assert len(joined(node)) == 4
        left_out = [each for each in layers if each not in joined(node)]
        node.swarms.swarm(left_out[0])  # what is used is another matter
        assert len(joined(node)) == 5


async def test_the_node_s_topics_are_a_limit_even_for_what_is_used(gossip_network, autojump_clock):
    one, two = expand("open:digits/blocks.[0:2]")
    async with gossip_network() as net:
        node = await net.add(pubsub=PubSubSettings(max_topics=1))
        node.swarms.swarm(one)
        with pytest.raises(ResourceLimitError):
            node.swarms.swarm(two)
        assert joined(node) == [one]


async def test_a_released_swarm_is_left_and_what_was_announced_withdrawn(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, second = await net.add(uid), await net.add()
        swarm = first.swarms.swarm(uid)
        await second.swarms.swarm(uid).announce(Claim(round=1))
        await net.settle()
        assert set(swarm.announcements) == {second.peer_id}
        second.swarms.release(uid)
        with trio.fail_after(5):
            await swarm.wait_until(lambda: not swarm.members)
        assert joined(second) == []
        assert second.swarms.links == []


async def test_connections_to_members_are_kept_within_the_limits(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        nodes = [await net.add(uid, max_links=4, max_protected=5) for _ in range(9)]
        swarms = [each.swarms.swarm(uid) for each in nodes]
        await net.settle()
        for node in nodes:
            assert len(node.swarms.links) == 4
            for peer_id in node.swarms.links:
                assert node.host.is_protected(peer_id)
                assert node.host.connection_to(peer_id) is not None
        await swarms[7].announce(Claim(round=1))
        await trio.sleep(3)
        heard = [each for each in swarms if nodes[7].peer_id in each.announcements]
        assert len(heard) == 8
        nodes[3].swarms.release(uid)
        nodes[3].drop_layers(uid)
        await trio.sleep(5)
        assert nodes[3].swarms.links == []


async def test_peers_of_many_swarms_are_linked_to_within_one_limit(gossip_network, autojump_clock):
    layers = expand("open:digits/blocks.[0:6]")
    async with gossip_network() as net:
        many = await net.add(*layers, max_links=2, max_protected=4)
        for layer in layers:
            many.swarms.swarm(layer)
            await net.add(layer)
        await net.settle(30)
        assert len(many.swarms.links) == 4


async def test_who_says_too_much_waits_for_its_turn_and_is_heard(
    gossip_network, uid, autojump_clock
):
    async with gossip_network() as net:
        first, second = await net.add(uid), await net.add(uid)
        swarm = first.swarms.swarm(uid)
        speaker = second.swarms.swarm(uid)
        await net.settle()
        began = trio.current_time()
        for number in range(30):
            await speaker.announce(Claim(round=number))
        assert 10 <= trio.current_time() - began <= 12
        await trio.sleep(1)
        assert swarm.announcements[second.peer_id].claim.round == 29
        assert first.swarms.reputation.standings(trio.current_time()) == []


async def test_announcing_ends_with_the_membership(gossip_network, closed_run, autojump_clock):
    async with gossip_network() as net:
        until = closed_run.member(expires_at=1_700_000_000 + 120)
        first = await net.add(closed_run.uid, membership=closed_run.member())
        second = await net.add(closed_run.uid, membership=until)
        swarm = first.swarms.swarm(closed_run.uid)
        await second.swarms.swarm(closed_run.uid).announce(Claim(round=1))
        await trio.sleep(100)
        assert set(swarm.announcements) == {second.peer_id}
        with second.host.events.subscribe(AnnouncingEnded) as ends:
            await trio.sleep(60)
            assert "expired" in (await ends.get()).reason
        assert swarm.announcements == {}
        assert second.swarms.swarm(closed_run.uid).own is None
