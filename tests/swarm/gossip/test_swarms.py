"""Swarms in use: who is in them, and what they hear of each other."""

import trio
import trio.testing

from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.swarm.gossip.core import MemberAnnounced, MemberJoined, MemberLeft


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
