"""Pub/sub cancelled at each of its await points: nothing is left behind."""

import random

import pytest
import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import P2PNodeError
from p2pnode.protocols.pubsub import PubSub, Verdict
from p2pnode.testing.cancellation import Moment, walk
from p2pnode.testing.footprint import footprint
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork

TOPIC = "news"


@pytest.mark.parametrize("moment", list(Moment), ids=lambda each: each.name.lower())
async def test_a_node_cancelled_anywhere_leaves_nothing_behind(autojump_clock, moment):
    settings = PubSubSettings(retry_interval=0.5)
    async with full_hosts(VirtualNetwork(latency=Fixed(0.01))) as world:
        hosts = [await world.add_host() for _ in range(2)]
        await world.connect_all(hosts)
        staying = PubSub(hosts[1], hosts[1].key, settings, rng=random.Random(1))
        await world.nursery.start(staying.run)
        staying.subscribe(TOPIC)
        await trio.sleep(1)
        before = footprint(*hosts)
        going = None

        async def judge(_message):
            await trio.sleep(0.01)
            return Verdict.ACCEPT

        async def scenario():
            nonlocal going
            going = PubSub(hosts[0], hosts[0].key, settings, rng=random.Random(2))
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(going.run)
                    async with going.subscribe(TOPIC, validator=judge) as subscription:
                        await trio.sleep(0.6)
                        await going.publish(TOPIC, b"ping", need_peers=True)
                        await staying.publish(TOPIC, bytes(50_000))
                        await subscription.receive()
                    nursery.cancel_scope.cancel()
            except* P2PNodeError:
                pass

        async def settled():
            await trio.sleep(3)
            left = dict(footprint(*hosts).growth_since(before))
            links, partial = going._peers.links, going._peers._unfinished.size
            left |= {"links": len(links)} if links else {}
            left |= {"validations": going._validation.running} if going._validation.running else {}
            left |= {"partial bytes": partial} if partial else {}
            left |= {"peers": 1} if staying.peers_of(TOPIC) else {}
            protected = hosts[0].is_protected(hosts[1].peer_id)
            return left | ({"protection": 1} if protected else {})

        assert await walk(scenario, settled, moment) > 20
