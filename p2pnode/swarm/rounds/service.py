"""Runs the rounds of one participant: the shell around `RoundsCore`.

Everything that decides is in the core. Here the learner is asked to train and to score, the swarm
is told and listened to, and weights are fetched and adopted, each within a bound of time.
"""

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import trio

from p2pnode.config import RoundsSettings
from p2pnode.errors import (
    CheckpointError,
    NotAMemberError,
    P2PNodeError,
    RemoteError,
    TokenExpiredError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.events import EventBus
from p2pnode.experts.states import all_finite
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.gossip.reputation import Offence
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.rounds.core import Average, Check, Finish, RoundsCore, Train, Wait
from p2pnode.swarm.rounds.events import (
    Averaged,
    ClaimChecked,
    RoundBegan,
    RoundEnded,
    RoundsEnded,
    TrainingFailed,
    Verdict,
)
from p2pnode.swarm.rounds.learner import Learner
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.experts.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What has come of averaging, and whose weights are part of it, one's own included."""

    checkpoint: "Checkpoint"
    contributors: "Sequence[PeerId]"


class Averaging(Protocol):
    """How a participant averages its weights with others, in the modes that do."""

    def extra(self) -> bytes:
        """Return what is announced with each claim, for averaging."""
        ...

    async def begin(self) -> None:
        """Take in that a round begins with the weights that the layer has now.

        Raises:
            P2PNodeError: it has none.
        """
        ...

    async def average(self, round_number: int, members: "Sequence[PeerId]") -> Mixture:
        """Return what comes of averaging; nothing is adopted.

        Args:
            round_number: the round, which all of them are in.
            members: the others who have announced it.

        Raises:
            P2PNodeError: nothing has come of it.
        """
        ...


@dataclass(slots=True)
class _Fetched:
    """What became of fetching and scoring somebody's weights."""

    checkpoint: "Checkpoint | None" = None
    found: float | None = None
    fault: Verdict | None = None
    reason: str = ""
    is_theirs: bool = True  # whether the fault is theirs, as far as can be told


class Rounds:
    """One participant's training in rounds, of a layer that this node hosts.

        rounds = Rounds(uid, learner, swarm=…, weights=…, settings=settings.rounds, events=bus)
        outcome = await rounds.run()

    While it runs, `events` tells of `RoundBegan`, `ClaimChecked`, `Averaged`, `TrainingFailed`,
    `RoundEnded` and `RoundsEnded`; `history` has the rounds that have ended.

    Args:
        uid: the layer, its run named by id.
        learner: trains and scores it.
        swarm: the others.
        weights: this node's side of exchanging weights.
        settings: of the run.
        events: where progress is told.
        averaging: averages with others; needed in the modes that do.

    Raises:
        ValueError: the mode averages, and nothing is given that could.
    """

    def __init__(
        self,
        uid: Uid,
        learner: Learner,
        *,
        swarm: LayerSwarm,
        weights: WeightsExchange,
        settings: RoundsSettings,
        events: EventBus,
        averaging: Averaging | None = None,
    ) -> None:
        if settings.mode != "best" and averaging is None:
            raise ValueError(f"the mode {settings.mode} needs something that averages")
        self.uid = uid
        self.history: list[RoundEnded] = []
        self._learner = learner
        self._swarm = swarm
        self._weights = weights
        self._settings = settings
        self._events = events
        self._averaging = averaging
        self._began = 0.0
        self._waited = 0.0

    async def run(self) -> RoundsEnded:
        """Train until the threshold is reached, or all rounds are over.

        The layer then has the weights whose score is returned. What this node has announced holds
        on, so that others can fetch it, until `LayerSwarm.leave`.

        Raises:
            TokenExpiredError: this node is no member of the run any more.
            UnknownExpertError: the layer is not hosted here.
            P2PNodeError: the layer cannot be scored or published before training.
        """
        claim = await self._first_claim()
        core = RoundsCore(
            self._settings,
            held_out=self._learner.held_out,
            score=claim.score or 0.0,
            weights=claim.weights,
            now=trio.current_time(),
            lasting=self._learner.is_lasting,
        )
        await self._swarm.announce(claim)
        while True:
            core.receive_announcements(*self._hear())
            action = core.next_action(trio.current_time())
            self._tell_ended(core)
            match action:
                case Wait():
                    await self._wait(action.until)
                case Train():
                    await self._train(core)
                case Average():
                    await self._average(core, action)
                case Check():
                    await self._check(core, action)
                case Finish():
                    ended = RoundsEnded(
                        uid=self.uid, reason=action.reason, round=core.round, score=core.score
                    )
                    self._events.emit(ended)
                    await self._announce_end(core)
                    return ended

    # --- others ---------------------------------------------------------------------------------

    def _hear(self) -> tuple[list[Announcement], list[PeerId], frozenset[PeerId]]:
        """Return what those say who are believed, who has said nothing, and who is gone."""
        silent = [
            each.peer_id
            for each in self._swarm.members
            if each.announcement is None and not self._swarm.is_shunned(each.peer_id)
        ]
        return list(self._swarm.announcements.values()), silent, self._swarm.gone

    async def _wait(self, until: float) -> None:
        began, heard = trio.current_time(), self._hear()
        with trio.move_on_at(until):
            await self._swarm.wait_until(lambda: self._hear() != heard)
        self._waited += trio.current_time() - began

    async def _announce(self, core: RoundsCore, claim: Claim) -> None:
        await self._swarm.announce(replace(claim, round=core.round))

    async def _announce_end(self, core: RoundsCore) -> None:
        """Say that nobody need wait for this node any more."""
        assert self._swarm.own is not None, "what is in use has been announced"
        with contextlib.suppress(TokenExpiredError):  # then nobody would listen
            await self._announce(core, replace(self._swarm.own.claim, is_final=True))

    async def _first_claim(self) -> Claim:
        """Score what there is; others that a score takes may fail for a while."""
        until = trio.current_time() + self._settings.patience
        while True:
            try:
                return await self._claim(0)
            except (NotAMemberError, UnknownExpertError):
                raise
            except RemoteError as error:
                if trio.current_time() >= until:
                    raise
                self._events.emit(TrainingFailed(uid=self.uid, round=0, reason=str(error)))
                await trio.sleep(self._settings.retry_pause)

    async def _claim(self, round_number: int, known: float | None = None) -> Claim:
        """Publish the layer's weights as they are now, and score what others will get.

        Args:
            round_number: that the claim is made in.
            known: what the weights have scored; holds for what others get unless a codec rounds it.
        """
        manifest = await self._weights.publish(self.uid)
        if manifest.codec != "none":
            published = await self._weights.fetch(self.uid, manifest.name, [])
            known = await self._learner.score(published)
        score = await self._learner.score(None) if known is None else known
        return Claim(
            round=round_number,
            steps=manifest.steps,
            score=score if 0 <= score <= 1 else 0.0,  # NaN is neither
            scored_on=self._learner.held_out,
            data=self._learner.data_digest,
            weights=manifest.name,
            size=manifest.size,
            codec=manifest.codec,
            mode=self._settings.mode,
            extra=self._extra(),
        )

    def _extra(self) -> bytes:
        return b"" if self._averaging is None else self._averaging.extra()

    # --- what a round consists of ---------------------------------------------------------------

    async def _train(self, core: RoundsCore) -> None:
        self._began, self._waited = trio.current_time(), 0.0
        self._events.emit(RoundBegan(uid=self.uid, round=core.round))
        while True:
            try:
                if self._averaging is not None:
                    await self._averaging.begin()
                await self._learner.train(self._settings.samples)
                claim = await self._claim(core.round)
                break
            except P2PNodeError as error:
                self._events.emit(TrainingFailed(uid=self.uid, round=core.round, reason=str(error)))
                await trio.sleep(self._settings.retry_pause)
        core.receive_announcements(*self._hear())
        core.receive_trained(claim.score or 0.0, claim.weights, trio.current_time())
        await self._announce(core, claim)

    async def _average(self, core: RoundsCore, action: Average) -> None:
        assert self._averaging is not None
        found, claim, reason = None, None, ""
        contributors: Sequence[PeerId] = ()
        try:
            mixture = await self._averaging.average(action.round, action.members)
            contributors = mixture.contributors
            found = await self._score(mixture.checkpoint)
            if core.would_take(found):
                own = self._swarm.peer_id
                await self._weights.adopt(
                    self.uid, mixture.checkpoint, source=own, optimizer="keep"
                )
                claim = await self._claim(action.round, found)  # for those who join late
                await self._swarm.announce(claim)
        except P2PNodeError as error:
            reason = str(error)
        if claim is None:
            core.receive_averaged(None)
        else:
            core.receive_averaged(found, claim.weights)
        self._events.emit(
            Averaged(
                uid=self.uid,
                round=action.round,
                members=1 + len(action.members),
                contributors=len(contributors),
                score=found,
                adopted=claim is not None,
                reason=reason,
            )
        )

    async def _check(self, core: RoundsCore, check: Check) -> None:
        announcement, claim = check.announcement, check.announcement.claim
        fetched = _Fetched(found=check.known)
        if check.known is None:
            fetched = await self._fetch_and_score(check)
        verdict = core.receive_checked(announcement, fetched.found, fetched.fault)
        if verdict is Verdict.ADOPTED and not await self._adopt(check, fetched):
            verdict = core.receive_checked(announcement, None, fetched.fault)
        self._events.emit(
            ClaimChecked(
                uid=self.uid,
                round=core.round,
                peer_id=announcement.peer_id,
                weights=claim.weights,
                claimed=math.nan if claim.score is None else claim.score,
                found=fetched.found,
                verdict=verdict,
                reason=fetched.reason,
            )
        )
        self._report(announcement, verdict, fetched)
        if verdict is Verdict.ADOPTED:
            await self._announce(
                core,
                replace(
                    claim,
                    score=fetched.found,
                    scored_on=self._learner.held_out,
                    data=self._learner.data_digest,
                    is_final=False,
                    extra=self._extra(),
                ),
            )
            core.receive_adopted(announcement)

    async def _fetch_and_score(self, check: Check) -> _Fetched:
        """Fetch the weights of a claim, and score them."""
        fetched = _Fetched()
        if not await self._fetch(check, fetched):
            return fetched
        assert fetched.checkpoint is not None
        try:
            fetched.found = await self._score(fetched.checkpoint)
        except CheckpointError as error:
            fetched.fault, fetched.reason = Verdict.UNFIT, str(error)
        except P2PNodeError as error:
            fetched.fault, fetched.reason = Verdict.UNAVAILABLE, str(error)
            fetched.is_theirs = False
        return fetched

    async def _score(self, checkpoint: "Checkpoint") -> float:
        """Score weights that nobody has vouched for.

        Raises:
            CheckpointError: they are not finite, or do not fit the layer.
        """
        if not all_finite(checkpoint.state.tensors.values()):
            raise CheckpointError("the weights are not finite")
        return await self._learner.score(checkpoint)

    async def _fetch(self, check: Check, fetched: _Fetched) -> bool:
        timeout = self._settings.transfer_timeout
        try:
            with trio.move_on_after(timeout) as waiting:
                fetched.checkpoint = await self._weights.fetch(
                    self.uid, check.announcement.claim.weights, check.holders
                )
        except CheckpointError as error:
            fetched.fault, fetched.reason = Verdict.UNFIT, str(error)
        except P2PNodeError as error:
            fetched.fault, fetched.reason = Verdict.UNAVAILABLE, str(error)
            fetched.is_theirs = isinstance(error, RemoteError | TransferError)
        else:
            if waiting.cancelled_caught:
                fetched.fault = Verdict.UNAVAILABLE
                fetched.reason = f"they have not come within {timeout:g} s"
        return fetched.fault is None

    async def _adopt(self, check: Check, fetched: _Fetched) -> bool:
        """Take over the weights of a claim that has been found good; `fetched` says why not."""
        if fetched.checkpoint is None and not await self._fetch(check, fetched):
            return False
        assert fetched.checkpoint is not None
        try:
            await self._weights.adopt(
                self.uid, fetched.checkpoint, source=check.announcement.peer_id
            )
        except CheckpointError as error:
            fetched.fault, fetched.reason = Verdict.UNFIT, str(error)
        return fetched.fault is None

    def _report(self, announcement: Announcement, verdict: Verdict, fetched: _Fetched) -> None:
        """Let a claim cost its author what it should."""
        claim = announcement.claim
        if verdict is Verdict.FALSE:
            reason = f"it claimed {claim.score:.3f} for weights that score {fetched.found:.3f}"
            self._swarm.report(announcement.peer_id, Offence.FALSE_SCORE, reason)
        elif verdict is Verdict.UNFIT:
            reason = fetched.reason or "its weights score no number"
            self._swarm.report(announcement.peer_id, Offence.BAD_WEIGHTS, reason)
        elif verdict is Verdict.UNAVAILABLE and fetched.is_theirs:
            now = self._swarm.announcements.get(announcement.peer_id)
            if now is None or now.claim.weights != claim.weights:
                return  # it has gone on, and keeps no old ones for ever
            self._swarm.report(announcement.peer_id, Offence.BROKEN_PROMISE, fetched.reason)

    def _tell_ended(self, core: RoundsCore) -> None:
        tally = core.ended
        if tally is None or (self.history and self.history[-1].round == tally.round):
            return
        ended = RoundEnded(
            uid=self.uid,
            round=tally.round,
            trained=tally.trained,
            score=tally.score,
            heard=tally.heard,
            fetched=tally.fetched,
            lies=tally.lies,
            source=tally.source,
            seconds=trio.current_time() - self._began,
            waited=self._waited,
        )
        self.history.append(ended)
        self._events.emit(ended)
