"""Routers without a network, and pub/sub nodes on a light network."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub import PubSub, signing
from p2pnode.protocols.pubsub.core import Router, Verdict
from p2pnode.protocols.pubsub.messages import Interest, Rpc
from p2pnode.protocols.pubsub.state import GOSSIPSUB_1_2, Send, Validate
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, Fixed, VirtualNetwork
from p2pnode.wire.keys import PrivateKey

TOPIC = "news"


def key(number):
    return PrivateKey.from_seed(number.to_bytes(32, "big"))


class Bench:
    """A router, its peers by number, and a clock that the test moves."""

    def __init__(self, *, app_score=None, direct=(), **settings):
        self.settings = PubSubSettings(**settings)
        self.key = key(0)
        self.router = Router(
            self.key,
            self.settings,
            random.Random(1),
            app_score=app_score,
            direct=[self.peer(each) for each in direct],
        )
        self.now = 1000.0
        self.seqno = 0

    def peer(self, number):
        return key(number).peer_id

    def join(self, *numbers, topic=TOPIC, protocol=GOSSIPSUB_1_2, outbound=False, network=None):
        """Let peers connect, and subscribe to `topic` unless it is None."""
        for number in numbers:
            peer_id = self.peer(number)
            self.router.add_peer(peer_id, protocol, outbound=outbound, network=network)
            if topic is not None:
                self.say(number, Interest(topic, wanted=True))

    def say(self, number, *pieces):
        """Receive subscriptions and control messages from a peer."""
        interests = tuple(each for each in pieces if isinstance(each, Interest))
        control = tuple(each for each in pieces if not isinstance(each, Interest))
        rpc = Rpc(subscriptions=interests, control=control)
        self.router.receive_rpc(self.peer(number), rpc, self.now)

    def write(self, author, data=b"news", topic=TOPIC):
        """Make a signed message of another peer."""
        self.seqno += 1
        return signing.sign(key(author), topic, data, self.seqno)

    def bring(self, number, message, verdict=Verdict.ACCEPT):
        """Receive a message from a peer and judge it (unless None); returns what that led to."""
        self.router.take_outputs()
        self.router.receive_message(self.peer(number), message, self.now)
        outputs = self.router.take_outputs()
        if verdict is not None:
            for each in outputs:
                if isinstance(each, Validate):
                    self.router.receive_verdict(each.message_id, verdict, self.now)
        return outputs + self.router.take_outputs()

    def beat(self, times=1):
        for _ in range(times):
            self.now += 1
            self.router.heartbeat(self.now)

    def sent(self, kind=object):
        """Take the outputs, and return what was sent: pairs of peer and piece."""
        return [
            (each.peer_id, each.piece)
            for each in self.router.take_outputs()
            if isinstance(each, Send) and isinstance(each.piece, kind)
        ]

    def take(self, kind):
        """Take the outputs, and return those of a kind."""
        return [each for each in self.router.take_outputs() if isinstance(each, kind)]

    def score(self, number):
        return self.router.scores.score(self.peer(number))


@pytest.fixture
def bench():
    return Bench


class Swarm:
    """Pub/sub nodes on a light network."""

    def __init__(self, world, nursery):
        self.world = world
        self.nursery = nursery
        self.nodes = []
        self.scopes = {}

    async def add(self, count=1, host=None, app_score=None, **settings):
        """Start nodes; returns them."""
        added = []
        for _ in range(count):
            at = host or await self.world.add_host()
            node = PubSub(
                at,
                at.key,
                PubSubSettings(**settings),
                rng=random.Random(len(self.nodes)),
                app_score=app_score,
            )
            node.host = at
            node.peer_id = at.peer_id
            self.scopes[node] = await self.nursery.start(self._run, node)
            self.nodes.append(node)
            added.append(node)
        return added

    async def _run(self, node, task_status):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                task_status.started(scope)

    async def connect(self, one, *others):
        for other in others:
            await one.host.connect(other.peer_id, other.host.addresses)

    async def connect_all(self):
        for index, one in enumerate(self.nodes):
            await self.connect(one, *self.nodes[index + 1 :])


@asynccontextmanager
async def _swarm(delay=0.0):
    bind_wall_time_to_trio(1_700_000_000.0)
    async with (
        light_hosts(
            VirtualNetwork(latency=Drawn(delay) if callable(delay) else Fixed(delay))
        ) as world,
        trio.open_nursery() as nursery,
    ):
        yield Swarm(world, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def swarm_of():
    return _swarm
