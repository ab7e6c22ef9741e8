"""Averages a layer's weights with the others of a round, and steps on from the average.

In the mode `average` the result is the aggregate of all members' weights. In the mode `diloco` it
is an outer step towards it, from the weights that the round began with, the *anchor*. DiLoCo
averages what each member's weights have moved by. Here the weights are averaged and the own anchor
is taken off, which is the same as long as all anchors are. Where they are not, since somebody has
missed a round, it draws them together again.

A member that does not come holds the others up once, and no longer than until it says that it is
elsewhere: in a later round, or at its end. So whoever was missing from a result is left
out of the next round; of the next two if he is missing again, then of four, up to `_LONGEST_REST`.
That is no offence: he may only have been unknown to one of the others.

Whether the result is any good is for the rounds to find out; nothing is adopted here.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import RoundsSettings
from p2pnode.errors import AveragingError, P2PNodeError, ProtocolError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.swarm.averaging.group import Aggregator, CenteredClipping, Group, Mean, TrimmedMean
from p2pnode.swarm.averaging.matchmaking import Candidate, find_group
from p2pnode.swarm.averaging.outer import OuterSettings, OuterState, outer_step
from p2pnode.swarm.averaging.service import AllReduce, Reduced
from p2pnode.swarm.averaging.terms import Terms
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.rounds.service import Mixture
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_LONGEST_REST: Final = 32  # rounds
_GRACE: Final = 1.0  # seconds, in which a result still comes together when all others have gone on
_AGGREGATORS: Final[dict[str, Aggregator]] = {
    "mean": Mean(),
    "trimmed-mean": TrimmedMean(),
    "centered-clipping": CenteredClipping(),
}


class WeightsSource(Protocol):
    """Where a participant's weights come from: an `ExpertHost`."""

    async def snapshot(self, uid: Uid, *, complete: bool = True) -> Checkpoint:
        """Copy an expert's state, or its weights alone, between two batches.

        Raises:
            UnknownExpertError: it is not hosted.
            ExpertFailedError: it is not in a state worth keeping.
        """
        ...


@dataclass(slots=True)
class _Rest:
    rounds: int  # how many this one has
    until: int  # the last one of them


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
        experts: WeightsSource,
        swarm: LayerSwarm,
        reducer: AllReduce,
        settings: RoundsSettings,
    ) -> None:
        self._uid = uid
        self._experts = experts
        self._swarm = swarm
        self._reducer = reducer
        self._settings = settings
        self._outer: OuterState | None = None
        self._rests: dict[PeerId, _Rest] = {}
        self._terms = Terms(training=round(wall_time() * 1000))

    def extra(self) -> bytes:
        """Return what is announced with each claim, for averaging."""
        self._terms = replace(self._terms, upload=self._reducer.upload)
        return self._terms.encode()

    async def begin(self) -> None:
        """Take what the layer has now for what the round begins with.

        Raises:
            UnknownExpertError: it is not hosted here.
            ExpertFailedError: it is not in a state worth keeping.
        """
        if self._settings.mode == "diloco":
            weights = _weights(await self._experts.snapshot(self._uid, complete=False))
            momentum = {} if self._outer is None else self._outer.momentum
            self._outer = OuterState(anchor=weights, momentum=momentum)

    async def average(self, round_number: int, members: Sequence[PeerId]) -> Mixture:
        """Return what comes of averaging; nothing is adopted.

        Args:
            round_number: the round, which all of them are in.
            members: the others who have announced it.

        Raises:
            AveragingError: there is no result: too few took part.
            P2PNodeError: nothing has come of it.
        """
        settings, own = self._settings, self._swarm.peer_id
        checkpoint = await self._experts.snapshot(self._uid, complete=False)
        weights = _weights(checkpoint)
        group = find_group(
            self._candidates(self._awake(round_number, members)),
            own,
            run_id=self._uid.run,
            name=f"{self._uid.name}/{settings.mode}",
            number=round_number,
            size=settings.group_size,
            codec=find_codec(settings.codec),
            aggregator=_AGGREGATORS[settings.aggregator],
        )
        if group is None:
            raise AveragingError("there is nobody to average with in this round")
        reduced = await self._reduce(group, round_number, list(weights.values()))
        for member in group.members:
            self._note(round_number, member.peer_id, came=member.peer_id in reduced.contributors)
        aggregate = dict(zip(weights, reduced.tensors, strict=True))
        if settings.mode == "diloco":
            aggregate = self._step(aggregate)
        return Mixture(
            checkpoint=replace(
                checkpoint,
                state=replace(checkpoint.state, tensors=checkpoint.state.tensors | aggregate),
            ),
            contributors=reduced.contributors,
        )

    async def _reduce(self, group: Group, number: int, tensors: list[torch.Tensor]) -> Reduced:
        """Reduce, unless all others are elsewhere.

        Raises:
            AveragingError: they are, or nothing has come of it.
        """
        others = [each.peer_id for each in group.members if each.peer_id != self._swarm.peer_id]
        found: Reduced | None = None
        failure: P2PNodeError | None = None

        async def reduce() -> None:
            nonlocal found, failure
            try:
                found = await self._reducer.reduce(
                    group, tensors, timeout=self._settings.transfer_timeout
                )
            except P2PNodeError as error:
                failure = error
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reduce)
            await self._swarm.wait_until(
                lambda: not any(self._is_in(number, who) for who in others)
            )
            await trio.sleep(_GRACE)
            nursery.cancel_scope.cancel()
        if found is None:
            raise failure or AveragingError("the others have gone on; wait for the next round")
        return found

    def _is_in(self, number: int, peer_id: PeerId) -> bool:
        """Tell whether a member may still come to a round."""
        announcement = self._swarm.announcements.get(peer_id)
        if announcement is None or peer_id in self._swarm.gone:
            return False
        return announcement.claim.round <= number and not announcement.claim.is_final

    def _candidates(self, members: Sequence[PeerId]) -> list[Candidate]:
        """Return this node and those of the members that say how they take part."""
        terms = {self._swarm.peer_id: self._terms}
        for peer_id in members:
            announcement = self._swarm.announcements.get(peer_id)
            if announcement is not None:
                with contextlib.suppress(ProtocolError):
                    terms[peer_id] = Terms.decode(announcement.claim.extra)
        return [
            replace(
                each,
                bandwidth=float(terms[each.peer_id].upload),
                training=terms[each.peer_id].training,
            )
            for each in self._reducer.candidates(terms)
        ]

    def _awake(self, number: int, members: Sequence[PeerId]) -> list[PeerId]:
        """Return those that are not left out of a round, and forget who has gone."""
        self._rests = {peer: rest for peer, rest in self._rests.items() if peer in members}
        rests = {peer for peer, rest in self._rests.items() if number <= rest.until}
        return [each for each in members if each not in rests]

    def _note(self, number: int, peer_id: PeerId, *, came: bool) -> None:
        if came:
            self._rests.pop(peer_id, None)
            return
        before = self._rests.get(peer_id)
        rounds = 1 if before is None else min(2 * before.rounds, _LONGEST_REST)
        self._rests[peer_id] = _Rest(rounds, number + rounds)

    def _step(self, aggregate: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the outer step; its momentum counts, whatever becomes of the result."""
        if self._outer is None or self._outer.anchor.keys() != aggregate.keys():
            raise AveragingError("the round has not begun here; wait for the next one")
        settings = OuterSettings(
            learning_rate=self._settings.outer_rate, momentum=self._settings.outer_momentum
        )
        self._outer = outer_step(self._outer, aggregate, settings)
        return dict(self._outer.anchor)


def _weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return what can be averaged, in an order that all members have."""
    tensors = checkpoint.state.tensors
    return {name: tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point()}
