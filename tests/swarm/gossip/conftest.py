"""Members of swarms on a light world: a host, the DHT's index, pub/sub, and `Swarms`."""

import math
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import DhtSettings, GossipSettings, PubSubSettings
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.pubsub import PubSub
from p2pnode.rpc.authority import Authority
from p2pnode.security.tokens import Membership, RunKey, issue_invite, verify_token
from p2pnode.swarm.announce import Announcer, Proof
from p2pnode.swarm.gossip.reputation import Reputation
from p2pnode.swarm.gossip.swarms import Swarms
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

EPOCH = 1_700_000_000.0
RUN = Membership.open("digits")
UID = Uid(RUN.run_id, "blocks.0")


def key(number):
    return PrivateKey.from_seed(number.to_bytes(32, "big"))


def _verify(token, run_id, peer_id, now):
    return verify_token(token, run_id, peer_id, "host", now)


@dataclass
class GossipNode:
    """One participant; `hosted` is what it announces in the index."""

    host: object
    dht: KadDht
    announcer: Announcer
    directory: ExpertDirectory
    pubsub: PubSub
    swarms: Swarms
    hosted: dict = field(default_factory=dict)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    services: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer_id(self):
        return self.host.peer_id

    def host_layers(self, *uids):
        self.hosted.update(dict.fromkeys(uids))
        self.announcer.add(uids)
        self.swarms.survey()

    def drop_layers(self, *uids):
        for uid in uids:
            self.hosted.pop(uid, None)
        self.announcer.remove(uids)

    async def run(self, task_status):
        with self.scope:
            async with trio.open_nursery() as network:
                await network.start(self.dht.run)
                await network.start(self.pubsub.run)
                with self.services:
                    async with trio.open_nursery() as services:
                        await services.start(self.announcer.run)
                        await services.start(self.swarms.run)
                        task_status.started()
                await trio.sleep_forever()

    async def stop(self):
        """End the services, as a daemon does, then the rest."""
        self.services.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        await self.crash()

    async def crash(self):
        self.host.world.kill(self.host)
        self.scope.cancel()
        await trio.lowlevel.checkpoint()


class GossipNetwork:
    def __init__(self, world, nursery):
        self.world = world
        self.nodes = []
        self._nursery = nursery

    async def add(self, *uids, membership=RUN, number=None, pubsub=None, **settings):
        """Start a node that hosts some layers; all know the first one.

        `membership` is a `Membership`, or makes one from a peer id.
        """
        number = len(self.nodes) + 1 if number is None else number
        host = await self.world.add_host(key(number))
        if callable(membership):
            membership = membership(host.peer_id)
        proof = Proof()
        if membership.token is not None:
            proof = Proof(membership.token, membership.expires_at)
        rng = random.Random(number)
        gossip = GossipSettings(**settings)
        index = IndexValidator(_verify)
        dht = KadDht(host, DhtSettings(mode="server"), rng, {NAMESPACE: index})
        directory = ExpertDirectory(host, dht, index)
        announcer = Announcer(host, dht, host.key, proof_of=lambda _run: proof, rng=rng)
        reputation = Reputation(gossip)
        topics = PubSub(
            host,
            host.key,
            pubsub or PubSubSettings(),
            rng=rng,
            app_score=lambda peer_id: reputation.score(peer_id, trio.current_time()),
        )
        hosted = {}
        swarms = Swarms(
            host,
            key=host.key,
            pubsub=topics,
            directory=directory,
            reputation=reputation,
            authority=Authority({membership.run_id: membership}, 64),
            proof_of=lambda _run: proof,
            hosted=lambda: hosted,
            settings=gossip,
            rng=rng,
        )
        node = GossipNode(host, dht, announcer, directory, topics, swarms, hosted)
        await self._nursery.start(node.run)
        if self.nodes:
            first = self.nodes[0]
            await dht.bootstrap([(first.peer_id, first.host.addresses[0])])
        self.nodes.append(node)
        node.host_layers(*uids)
        return node

    async def settle(self, seconds=15.0):
        """Let members find each other: two looks at the index, and a few heartbeats."""
        await trio.sleep(seconds)


@pytest.fixture
def gossip_network():
    """Open a network: `async with gossip_network() as net`; needs `autojump_clock` beside it."""

    @asynccontextmanager
    async def opened(delay=0.02):
        bind_wall_time_to_trio(EPOCH)
        async with (
            light_hosts(VirtualNetwork(latency=Fixed(delay))) as world,
            trio.open_nursery() as nursery,
        ):
            yield GossipNetwork(world, nursery)
            nursery.cancel_scope.cancel()

    return opened


class ClosedRun:
    """A run with members, and its layer."""

    def __init__(self):
        self.key = RunKey.generate()
        self.uid = Uid(self.key.run_id, "blocks.0")

    def member(self, *scopes, expires_at=EPOCH + 1e6):
        """Make what gives a peer its membership."""

        def accept(peer_id):
            text = issue_invite(
                self.key, "closed", scopes=scopes or ("host", "train"), expires_at=expires_at
            )
            return Membership.accept(text, peer_id)

        return accept

    def stranger(self, _peer_id):
        """What somebody has who was never invited, and takes part nevertheless."""
        return Membership(
            name="closed",
            run_id=self.key.run_id,
            token=None,
            scopes=frozenset(),
            expires_at=math.inf,
        )


@pytest.fixture
def closed_run():
    """A run that takes members only."""
    return ClosedRun()


@pytest.fixture
def uid():
    """The layer of most tests, in an open run."""
    return UID
