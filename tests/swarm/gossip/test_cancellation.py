"""Swarms cancelled at each of their await points: nothing is left behind."""

import pytest
import trio

from p2pnode.errors import P2PNodeError
from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.testing.cancellation import Moment, walk
from p2pnode.testing.footprint import footprint


@pytest.mark.parametrize("moment", list(Moment), ids=lambda each: each.name.lower())
async def test_a_node_cancelled_anywhere_leaves_its_swarms(
    gossip_network, uid, autojump_clock, moment
):
    async with gossip_network() as net:
        staying, going = await net.add(uid, renewal=1.0, lifetime=3.0), await net.add(uid)
        there = staying.swarms.swarm(uid)
        await there.announce(Claim(round=1))
        going.services.cancel()  # its swarms are run by the scenario
        await net.settle()
        before = footprint()

        async def scenario():
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(going.swarms.run)
                    swarm = going.swarms.swarm(uid)
                    await swarm.announce(Claim(round=2))
                    await swarm.wait_until(lambda: bool(swarm.announcements))
                    await swarm.announce(Claim(round=3))
                    going.swarms.release(uid)
                    await trio.sleep(0.5)
                    nursery.cancel_scope.cancel()
            except* P2PNodeError:
                pass

        async def settled():
            await trio.sleep(5)
            left = footprint().growth_since(before)
            with trio.move_on_after(5):  # the one that stays looks around now and then
                while left:
                    await trio.sleep(0.1)
                    left = footprint().growth_since(before)
            left |= {"seats": 1} if going.swarms.joined else {}
            left |= {"links": 1} if going.swarms.links else {}
            left |= {"topics": 1} if going.pubsub.topics else {}
            left |= {"protection": 1} if going.host.is_protected(staying.peer_id) else {}
            believed = going.peer_id in there.announcements  # what was said was withdrawn
            return left | ({"announcements": 1} if believed else {})

        assert await walk(scenario, settled, moment) > 10
