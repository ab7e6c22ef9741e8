"""One participant of a swarm: a simulated node that hosts a layer, and trains it in rounds.

Index, gossip, weights, experts and rounds are the daemon's own, put together as it does it; the
device and the disk work at once, after a modelled time.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import trio

from p2pnode.config import HostingSettings
from p2pnode.experts.runtime import Compute, compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.protocols.pubsub import PubSub
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.gossip.reputation import Reputation
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.gossip.swarms import Swarms
from p2pnode.swarm.rounds.averaging import SwarmAveraging, WeightsSource
from p2pnode.swarm.rounds.events import RoundsEnded
from p2pnode.swarm.rounds.learner import Learner
from p2pnode.swarm.rounds.service import Rounds
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.replication import Replication
from p2pnode.wire.uids import Uid
from simulations.node import Node

RUN: Final = Membership.open("swarm")


class Participant:
    """A node that hosts one layer, with all that belongs to it.

    Args:
        node: up and joined.
        uid: the layer.
        states: where states are kept; nobody else's.
        compute: the device.

    Attributes:
        node: the node.
        experts: what it hosts.
        gate: what of it others may call.
        access: its way to other peers.
        authority: who may call it.
        reducer: adds up and averages tensors with others.
        swarm: the others.
        weights: its side of exchanging weights.
        served_at: since when it serves the layer, or None.
    """

    def __init__(self, node: Node, uid: Uid, states: Path, compute: Compute) -> None:
        settings, memberships = node.settings, {RUN.name: RUN}
        self.node = node
        self.uid = uid
        self.served_at: float | None = None
        self.experts = ExpertHost(
            settings.hosting,
            None,
            node.host.events,
            rpc=settings.rpc,
            compute=compute,
            disk=compute_inline,
        )
        self.gate = Gate(self.experts)
        self.authority = Authority(memberships, settings.rpc.token_cache_size)
        self.access = Access(node.host, memberships)
        budget = Budget(settings.rpc)
        self._replication = Replication(
            node.host,
            directory=node.directory,
            announcer=node.announcer(),
            experts=self.experts,
            gate=self.gate,
            authority=self.authority,
            budget=budget,
            access=self.access,
            states=states,
            settings=settings,
            rng=node.rng,
            disk=compute_inline,
        )
        self.reducer = AllReduce(
            node.host,
            self.access,
            self.authority,
            settings.averaging,
            budget=budget,
            transcoder=Transcoder(settings.rpc),
        )
        reputation = Reputation(settings.gossip)
        self._pubsub = PubSub(
            node.host,
            node.key,
            settings.pubsub,
            rng=node.rng,
            app_score=lambda peer_id: reputation.score(peer_id, trio.current_time()),
        )
        self._swarms = Swarms(
            node.host,
            key=node.key,
            pubsub=self._pubsub,
            directory=node.directory,
            reputation=reputation,
            authority=self.authority,
            hosted=lambda: self.experts.uids,
            settings=settings.gossip,
            rng=node.rng,
        )

    @property
    def swarm(self) -> LayerSwarm:
        """The others who host the layer."""
        return self._swarms.swarm(self.uid)

    @property
    def weights(self) -> WeightsExchange:
        """How it publishes, fetches and adopts weights."""
        return self._replication.exchange

    @property
    def local(self) -> LocalExperts:
        """What it hosts, as it is given to others and taken from them."""
        return self._replication.local

    async def start(self, others: Mapping[Uid, HostingSettings] = MappingProxyType({})) -> None:
        """Host the layer, and serve it: with others' state, if they are ahead.

        Args:
            others: layers to host and serve besides, and how they are built.
        """
        started = trio.Event()
        self.node.start_soon(lambda: self._run(started, others))
        await started.wait()

    async def _run(self, started: trio.Event, others: Mapping[Uid, HostingSettings]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.experts.run)
            await nursery.start(self._pubsub.run)
            await nursery.start(self._swarms.run)
            await nursery.start(self._replication.run)
            await self.experts.add([self.uid])
            for uid, settings in others.items():
                await self.experts.add([uid], settings)
            await self._replication.serve([self.uid, *others])
            self.served_at = trio.current_time()
            started.set()

    def averaging(self, source: WeightsSource) -> SwarmAveraging | None:
        """Return what averages weights from some source with others; None if the mode does not."""
        settings = self.node.settings.rounds
        if settings.mode == "best":
            return None
        return SwarmAveraging(self.uid, source, self.swarm, self.reducer, settings)

    def train(
        self, learner: Learner, on_ended: Callable[[RoundsEnded], None] = lambda _ended: None
    ) -> Rounds:
        """Begin to train in rounds, as the node's settings say; goes on while the node is up."""
        rounds = Rounds(
            self.uid,
            learner,
            swarm=self.swarm,
            weights=self.weights,
            settings=self.node.settings.rounds,
            events=self.node.host.events,
            averaging=self.averaging(self.experts),
        )

        async def run() -> None:
            on_ended(await rounds.run())

        self.node.start_soon(run)
        return rounds
