"""Participants that lie: they claim a perfect score for weights that do not have it.

| kind       | its weights                                                       |
|------------|-------------------------------------------------------------------|
| `random`   | drawn at random                                                   |
| `nan`      | not a number                                                      |
| `poisoned` | the best that an honest one has announced, with two digits swapped |
| `stolen`   | the best that an honest one has announced                         |
| `mixed`    | each liar one of these, in turn                                   |

Everything else about them is as it should be: they are announced in the index, sign what they say,
and give the very weights that they name, chunk by chunk. They lie anew in every round. In the modes
that average they take part in that, too, with the same weights; those that are no numbers are
refused by a liar's own node, so that it does not come.
"""

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
import trio

from p2pnode.errors import P2PNodeError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.rounds.averaging import SwarmAveraging
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid
from simulations.swarms.learner import MODULE
from simulations.swarms.participant import Participant

KINDS: Final = ("random", "nan", "poisoned", "stolen")
_SWAPPED: Final = (1, 7)  # digits whose scores change places


class SwarmLiar:
    """Lies in a participant's name.

    Args:
        participant: who hosts the layer, and trains nothing.
        kind: one of `KINDS`.
        is_liar: tells whether a peer is one of them, too.
        scored_on: the size of the hold-out that it pretends to have.
        rng: the source of chance.
    """

    def __init__(
        self,
        participant: Participant,
        kind: str,
        *,
        is_liar: Callable[[PeerId], bool],
        scored_on: int,
        rng: random.Random,
    ) -> None:
        self._averaging = participant.averaging(self)
        self.kind = kind
        self.lies = 0
        self._told = 0  # the last round it has lied in
        self._participant = participant
        self._is_liar = is_liar
        self._scored_on = scored_on
        self._chance = torch.Generator().manual_seed(rng.getrandbits(63))

    async def run(self) -> None:
        """Lie in every round that others begin; never returns."""
        swarm = self._participant.swarm
        while True:
            await swarm.wait_until(lambda: self._round(swarm) > self._told)
            self._told = self._round(swarm)
            claim = await self._lie(self._told, self._honest(swarm))
            await swarm.announce(claim)
            self.lies += 1
            if self._averaging is not None:
                await self._average(swarm, self._averaging)

    async def snapshot(self, uid: Uid, *, complete: bool = True) -> Checkpoint:
        """Return the layer's weights as averaging asks for them: spoilt."""
        return self._spoil(await self._participant.experts.snapshot(uid, complete=complete))

    async def _average(self, swarm: LayerSwarm, averaging: SwarmAveraging) -> None:
        """Take part in the average of the round that it has lied in, with those who have come."""
        with trio.move_on_after(self._participant.node.settings.rounds.patience):
            await swarm.wait_until(
                lambda: all(each.claim.round >= self._told for each in self._honest(swarm))
            )
        members = [
            peer_id
            for peer_id, each in swarm.announcements.items()
            if each.claim.round >= self._told
        ]
        with contextlib.suppress(P2PNodeError):  # others have gone on without it
            await averaging.average(self._told, members)

    def _round(self, swarm: LayerSwarm) -> int:
        """Return the round that the honest ones have come to."""
        return max((each.claim.round for each in self._honest(swarm)), default=0)

    def _honest(self, swarm: LayerSwarm) -> list[Announcement]:
        heard = swarm.announcements.items()
        return [each for peer_id, each in heard if not self._is_liar(peer_id)]

    async def _lie(self, number: int, honest: list[Announcement]) -> Claim:
        weights = self._participant.weights
        best = max(honest, key=lambda each: each.claim.score or 0.0)
        claim = replace(
            best.claim,
            round=number,
            score=1.0,
            scored_on=self._scored_on,
            extra=b"" if self._averaging is None else self._averaging.extra(),
        )
        checkpoint = await self._best(best)
        if self.kind == "stolen":
            return claim
        manifest = await weights.publish(self._participant.uid, checkpoint=self._spoil(checkpoint))
        return replace(claim, weights=manifest.name, size=manifest.size)

    async def _best(self, best: Announcement) -> Checkpoint:
        participant = self._participant
        try:
            return await participant.weights.fetch(
                participant.uid, best.claim.weights, [best.peer_id]
            )
        except P2PNodeError:  # its author has gone; then its own will do
            return await participant.experts.snapshot(participant.uid, complete=False)

    def _spoil(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a state with other weights; what is not a weight stays as it is."""
        tensors = dict(checkpoint.state.tensors)
        for name, each in tensors.items():
            if name.startswith(MODULE):
                tensors[name] = self._spoilt(name, each)
        return replace(checkpoint, state=replace(checkpoint.state, tensors=tensors))

    def _spoilt(self, name: str, weights: torch.Tensor) -> torch.Tensor:
        if self.kind == "nan":
            return torch.full_like(weights, torch.nan)
        if self.kind == "random":
            return torch.randn(weights.shape, generator=self._chance)
        if not name.startswith(f"{MODULE}second"):
            return weights
        spoilt = weights.clone()
        spoilt[list(_SWAPPED)] = weights[list(reversed(_SWAPPED))]
        return spoilt
