"""A node's part in training a network layer by layer: it hosts a layer, and learns from its data.

All participants are equal. Each hosts one layer, serves it to the others, sends its own examples
through all layers, and takes part in the rounds of its layer's swarm. Nobody leads.
"""

import random
from dataclasses import dataclass, replace
from typing import Final

import trio

from p2pnode.daemon.node import Node
from p2pnode.errors import ConfigError, PermissionDeniedError
from p2pnode.events import Event
from p2pnode.swarm.rounds.averaging import SwarmAveraging
from p2pnode.swarm.rounds.events import RoundsEnded
from p2pnode.swarm.rounds.service import Rounds
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.layerwise.data import Part
from p2pnode.trainer.layerwise.learner import SLACK, LayerwiseLearner
from p2pnode.trainer.layerwise.network import SwarmNetwork
from p2pnode.wire.uids import Uid

_LOOK_EVERY: Final = 0.5  # seconds, for the hosts of other layers while some are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersMissing(Event):
    """Training waits until somebody hosts these layers, too."""

    level = "info"

    layers: list[str]


class LayerwiseTraining:
    """Trains one of the layers that a running node hosts, together with the others' swarms.

        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            ended = await LayerwiseTraining(node, uid, part, layers=2).run()

    Rounds are as the run's owner has said (`p2pnode run describe`), or as `rounds` in the node's
    settings; calls are as `layerwise` there, which is to be the same for all participants. The
    node's events tell of `SamplesTrained`, `RoundEnded` and others.

    Args:
        node: it runs, and hosts the layer.
        uid: the layer, its run by name, such as `images/layers.0`.
        part: this participant's data.
        layers: how many the network has.
        seed: of the order of examples.

    Raises:
        ConfigError: the node does not host the layer, or gossip is off.
        PermissionDeniedError: our invite does not allow training.
    """

    def __init__(self, node: Node, uid: Uid, part: Part, *, layers: int, seed: int = 0) -> None:
        hosting, settings, network = node.hosting, node.settings, node.network
        membership = node.membership_of(uid.run)
        self._uid = uid
        self._node = node
        own = uid.in_run(membership.run_id)
        if hosting is None or own not in hosting.uids:
            raise ConfigError(f"this node does not host {uid}; start it with --experts {uid}")
        if not settings.gossip.enabled:
            raise ConfigError("swarms need gossip to agree on rounds; set gossip.enabled to true")
        if "train" not in membership.scopes:
            raise PermissionDeniedError(
                f"your invite to the run {membership.name} does not allow training; ask its owner"
                " for one with the scopes host,train"
            )
        caller = ExpertCaller(
            network.host,
            network.directory,
            membership,
            settings=settings,
            rng=random.Random(),
        )
        self.network = SwarmNetwork(
            caller,
            hosting.experts,
            own,
            peer_id=network.peer_id,
            layers=layers,
            settings=settings.layerwise,
        )
        self._learner = LayerwiseLearner(
            self.network,
            hosting.experts,
            part,
            hosting=hosting.experts.settings(own),
            settings=settings.layerwise,
            events=node.events,
            seed=seed,
        )
        self._hosting = hosting

    async def run(self) -> RoundsEnded:
        """Wait for the other layers, and train until the threshold or the last round.

        The layer is served on afterwards, for those who still train.

        Raises:
            ConfigError: what the run's owner has said of its rounds does not fit here.
            P2PNodeError: the layer cannot be scored or published before training.
        """
        node, own, hosting = self._node, self.network.own, self._hosting
        settings, swarm = await node.agreed_rounds(self._uid.run), node.swarms.swarm(self._uid)
        settings = replace(settings, slack=max(settings.slack, SLACK))
        rounds = Rounds(
            own,
            self._learner,
            swarm=swarm,
            weights=hosting.weights,
            settings=settings,
            events=node.events,
            averaging=None
            if settings.mode == "best"
            else SwarmAveraging(own, hosting.experts, swarm, hosting.reducer, settings),
        )
        await self._wait_complete()
        return await rounds.run()

    async def _wait_complete(self) -> None:
        """Wait until somebody hosts each layer of the network."""
        told: list[str] = []
        while missing := await self.network.missing():
            names = [uid.name for uid in missing]
            if names != told:
                told = names
                self._node.events.emit(LayersMissing(layers=names))
            await trio.sleep(_LOOK_EVERY)
