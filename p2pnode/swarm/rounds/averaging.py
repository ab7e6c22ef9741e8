"""Averages a layer's weights with the others of a round, and steps on from the average.

In the mode `average` the result is the aggregate of all members' weights. In the mode `diloco` it
is an outer step towards it, with Nesterov's momentum (Douillard et al. 2023, DiLoCo, algorithm 1):
what the aggregate differs by from the weights that the round began with, the *anchor*, is a
gradient

    velocity = momentum * velocity + (aggregate - anchor)
    result   = anchor + rate * ((aggregate - anchor) + momentum * velocity)

DiLoCo averages the differences. Here the weights are averaged and the own anchor is taken off,
which is the same as long as all anchors are. Where they are not, since somebody has missed a round,
it draws the anchors together again.

Whether the result is any good is for the rounds to find out; nothing is adopted here.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from p2pnode.config import RoundsSettings
from p2pnode.errors import AveragingError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.swarm.averaging.group import (
    Aggregator,
    CenteredClipping,
    Group,
    Mean,
    Member,
    TrimmedMean,
)
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.rounds.service import Mixture
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_AGGREGATORS: Final[dict[str, Aggregator]] = {
    "mean": Mean(),
    "trimmed-mean": TrimmedMean(),
    "centered-clipping": CenteredClipping(),
}


class SwarmAveraging:
    """One participant's side of averaging a layer, round by round.

    Args:
        uid: the layer, its run named by id.
        experts: where it is hosted.
        swarm: the others; what they announce says who belongs to which round.
        reducer: reduces tensors with them.
        settings: of the run.
    """

    def __init__(
        self,
        uid: Uid,
        experts: ExpertHost,
        swarm: LayerSwarm,
        reducer: AllReduce,
        settings: RoundsSettings,
    ) -> None:
        self._uid = uid
        self._experts = experts
        self._swarm = swarm
        self._reducer = reducer
        self._settings = settings
        self._anchor: dict[str, torch.Tensor] = {}
        self._velocity: dict[str, torch.Tensor] = {}

    async def begin(self) -> None:
        """Take what the layer has now for what the round begins with.

        Raises:
            UnknownExpertError: it is not hosted here.
            ExpertFailedError: it is not in a state worth keeping.
        """
        if self._settings.mode == "diloco":
            checkpoint = await self._experts.snapshot(self._uid, complete=False)
            self._anchor = _weights(checkpoint)

    async def average(self, round_number: int, members: Sequence[PeerId]) -> Mixture:
        """Return what comes of averaging; nothing is adopted.

        Args:
            round_number: the round, which all of them are in.
            members: the others who have announced it.

        Raises:
            AveragingError: there is no result: too few took part.
            P2PNodeError: nothing has come of it.
        """
        own = self._swarm.peer_id
        checkpoint = await self._experts.snapshot(self._uid, complete=False)
        weights = _weights(checkpoint)
        group = Group(
            run_id=self._uid.run,
            round_id=self._round_id(round_number),
            members=tuple(Member(peer_id=each) for each in sorted([own, *members])),
            codec=find_codec(self._settings.codec),
            aggregator=_AGGREGATORS[self._settings.aggregator],
        )
        reduced = await self._reducer.reduce(
            group, list(weights.values()), timeout=self._settings.transfer_timeout
        )
        aggregate = dict(zip(weights, reduced.tensors, strict=True))
        if self._settings.mode == "diloco":
            aggregate = self._step(aggregate)
        tensors = checkpoint.state.tensors | aggregate
        return Mixture(
            checkpoint=replace(checkpoint, state=replace(checkpoint.state, tensors=tensors)),
            contributors=reduced.contributors,
        )

    def _step(self, aggregate: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the outer step; the velocity counts from then on, whatever becomes of the result."""
        rate, momentum = self._settings.outer_rate, self._settings.outer_momentum
        result = {}
        for name, each in aggregate.items():
            if name not in self._anchor:
                raise AveragingError("the round has not begun here; it is averaged in the next one")
            difference = each - self._anchor[name]
            before = self._velocity.get(name)
            velocity = difference if before is None else momentum * before + difference
            self._velocity[name] = velocity
            result[name] = self._anchor[name] + rate * (difference + momentum * velocity)
        return result

    def _round_id(self, number: int) -> bytes:
        """Name a round of this layer as all of its members do."""
        return hashlib.sha256(f"{self._uid} {self._settings.mode} {number}".encode()).digest()


def _weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return what can be averaged, in an order that all members have."""
    tensors = checkpoint.state.tensors
    return {name: tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point()}
