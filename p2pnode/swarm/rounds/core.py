"""The rounds of one participant, as a state machine: pure.

```
best:       JOIN -> CHECK* -> TRAIN -> COLLECT ------------> CHECK* -> TRAIN ... END
averaging:  JOIN -> CHECK* -> TRAIN -> COLLECT -> AVERAGE -> CHECK* -> TRAIN ... END
                                                    `- taken: ------->'
```

Rules:

1. *Join.* A participant that starts says so (round 0), and listens for up to `patience`. It goes on
   earlier when nobody that it knows of is silent, and either `start_peers` others have spoken or
   one is in the midst of rounds. If some are, it adopts the best of their weights as in rule 4, and
   goes on in the swarm's round: the lower median of the rounds that the others say they are in,
   which less than half of them cannot move beyond what the others say. If nobody is, it begins with
   round 1.
2. *Train*, then announce one's own score, in the swarm's round: who was slow and has fallen behind
   leaves out the rounds missed. So rounds need no clock that is shared.
3. *Collect* until everybody who is waited for has announced this round, but for no longer than
   `patience`. Waited for are those who announced the last round, in one's own first round all whom
   one knows. Who was waited for in vain is waited for again when he has been in time once. So who
   is slow costs the others one patience, not one a round. Who cannot be reached any more, or has
   said that he has ended, costs them nothing.
4. *Check* claims from the best to the worst by (score, digest of the weights): those that had been
   heard when collecting ended. What others announce meanwhile is what they have adopted of the
   same claims; so what comes of a round does not depend on who is faster. Left out are claims from
   before the last round whose authors go on, those scored on less than `min_hold_out` examples, and
   those that claim no more than one has oneself. At most `max_checked` are fetched in a round and
   scored on one's own hold-out. What weights have scored here is remembered, so they are fetched
   once; but only until the round ends where other layers, which learn as well, are part of a score.
   - A claim that cannot be true (`claims.is_lie`), or whose weights are not finite or do not fit,
     is refused for good, whatever its weights score here. It is the claim that is refused, not the
     weights: others may have the same ones, and say the truth of them.
   - The first one that may be true, and is better here than what one has, is adopted. That ends
     the checking. Of weights that score the same here, those with the lower digest are better, so
     that equals come to one.
5. *Average*, in the modes that do, with those who have announced this round and go on. What comes
   of it is scored, too, and taken unless it is worse than one's own weights by more than
   `max_loss`. Who has no average, or does not take it, checks claims as in rule 4.
6. *End* when one's own hold-out says that the threshold is reached, or after the last round. Who
   is there first stays for the others who have not been there yet, for `last_rounds` rounds at
   most, and ends in the next one in which the threshold is reached: weights that go on without a
   part of those they were averaged with get worse first. That is not needed where the winner's
   weights bring the others there, too: in the mode `best`, if weights keep their score. Who is
   left, since as many have ended as go on, or all, trains `last_rounds` rounds more at most: their
   own examples alone may never bring so few to the threshold.

Inputs are `receive_*`; `next_action` says what is to be done, and is asked again after each input.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from p2pnode.config import RoundsSettings
from p2pnode.swarm.gossip.announcement import Announcement
from p2pnode.swarm.rounds.claims import is_lie
from p2pnode.swarm.rounds.events import End, Verdict
from p2pnode.wire.peer_id import PeerId


class Phase(StrEnum):
    """Where in a round a participant is."""

    JOIN = "join"
    TRAIN = "train"
    COLLECT = "collect"
    AVERAGE = "average"
    CHECK = "check"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train and score the layer, then tell by `receive_trained`."""

    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Wait until somebody says something, or until that time."""

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Average with others and score what comes of it, then tell by `receive_averaged`."""

    round: int
    members: tuple[PeerId, ...]  # without oneself, in the order of their bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Fetch and score somebody's weights, then tell by `receive_checked`."""

    announcement: Announcement
    holders: tuple[PeerId, ...]  # who say that they have these weights, the claimant first
    known: float | None  # what these weights have scored here before; they need not be scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The training has ended."""

    reason: End


Action = Train | Wait | Average | Check | Finish


@dataclass(slots=True, kw_only=True)
class Tally:
    """What has happened in one round.

    Attributes:
        round: its number.
        trained: what one's own weights scored after training; NaN before.
        score: what the weights score that one has in the end.
        heard: how many others have announced this round in time.
        fetched: how many claims' weights were fetched.
        lies: how many claims were false, or their weights unfit.
        source: whose weights were adopted.
    """

    round: int = 0
    trained: float = math.nan
    score: float = math.nan
    heard: int = 0
    fetched: int = 0
    lies: int = 0
    source: PeerId | None = None


class RoundsCore:
    """The rounds of one participant.

    Args:
        settings: of the run.
        held_out: the examples of one's own hold-out.
        score: of the weights that one begins with, on this hold-out.
        weights: their name.
        now: the time, of any clock.
        lasting: whether weights score the same here in one round as in another.

    Attributes:
        phase: where it is.
        round: the round it is in.
        score: of the weights it has, on its own hold-out.
        weights: their name; empty if that is not known.
        tally: what has happened in this round so far.
        ended: what had happened in the round before when it ended, joining left out.
    """

    def __init__(
        self,
        settings: RoundsSettings,
        *,
        held_out: int,
        score: float,
        weights: bytes,
        now: float,
        lasting: bool = True,
    ) -> None:
        self.phase = Phase.JOIN
        self.round = 1
        self.score = score
        self.weights = weights
        self.tally = Tally()
        self.ended: Tally | None = None
        self._settings = settings
        self._held_out = held_out
        self._lasting = lasting
        self._deadline = now + settings.patience
        self._is_first = True
        self._heard: dict[PeerId, Announcement] = {}
        self._candidates: dict[PeerId, Announcement] = {}  # heard when collecting ended
        self._present = 0
        self._starting: set[PeerId] = set()  # they have announced nothing but that they are there
        self._silent: frozenset[PeerId] = frozenset()
        self._gone: frozenset[PeerId] = frozenset()
        self._in_vain: frozenset[PeerId] = frozenset()
        self._has_seen_ends = False  # whether anybody has said that he has ended
        self._left = 0  # rounds since as many have ended as go on
        self._reached: frozenset[PeerId] = frozenset()  # who says that he has been at the threshold
        self._reached_in: int | None = None  # the round in which one has been there oneself
        self._refused: dict[PeerId, int] = {}  # the version of an announcement
        self._found: dict[bytes, float] = {}  # what others' weights have scored here
        self._end: End | None = None

    # --- inputs ---------------------------------------------------------------------------------

    def receive_announcements(
        self,
        heard: Iterable[Announcement],
        silent: Iterable[PeerId],
        gone: Iterable[PeerId] = (),
    ) -> None:
        """Take in what all others say now; those who are not believed any more are left out.

        Args:
            heard: the newest announcement of each; those of other modes do not count, and those
                of round 0 only say that somebody is there.
            silent: who is known, and has not said anything.
            gone: who cannot be reached now, whatever they have said.
        """
        present = [each for each in heard if each.claim.mode == self._settings.mode]
        self._present = len(present)
        self._starting = {each.peer_id for each in present if each.claim.round == 0}
        self._heard = {each.peer_id: each for each in present if each.claim.round > 0}
        self._reached = frozenset(
            peer_id
            for peer_id, each in self._heard.items()
            if peer_id in self._reached or self._is_at_threshold(each)
        )
        self._has_seen_ends |= any(each.claim.is_final for each in self._heard.values())
        self._silent = frozenset(silent)
        self._gone = frozenset(gone)
        self._in_vain -= {peer_id for peer_id, each in self._heard.items() if self._is_here(each)}
        self._refused = {
            peer_id: version for peer_id, version in self._refused.items() if peer_id in self._heard
        }
        said = {each.claim.weights for each in (*self._heard.values(), *self._candidates.values())}
        self._found = {name: found for name, found in self._found.items() if name in said}

    def receive_trained(self, score: float, weights: bytes, now: float) -> None:
        """Take in what training has come to; it is to be announced then, with this round."""
        assert self.phase is Phase.TRAIN
        self.round = max(self.round, min(self._swarm_round(), self._settings.rounds))
        self.score, self.weights = score, weights
        self.tally.trained = score
        self.phase = Phase.COLLECT
        self._deadline = now + self._settings.patience

    def would_take(self, found: float) -> bool:
        """Tell whether averaged weights that score so much here are to be taken over."""
        return self.score - self._settings.max_loss <= found <= 1  # NaN is not

    def receive_averaged(self, found: float | None, weights: bytes = b"") -> None:
        """Take in that averaged weights are in use now, and what they score; None if they are not.

        Args:
            found: their score here.
            weights: their name, if they have one.
        """
        assert self.phase is Phase.AVERAGE
        if found is None:
            self.phase = Phase.CHECK
        else:
            self.score, self.weights = found, weights
            self._end_round()

    def receive_checked(
        self, announcement: Announcement, found: float | None, fault: Verdict | None = None
    ) -> Verdict:
        """Take in what the weights of an announcement score here.

        Args:
            announcement: the one that was to be checked.
            found: the score, if there is one.
            fault: if there is none, why.

        Returns:
            What to make of it. If it is `ADOPTED`, `receive_adopted` is to follow.
        """
        assert self.phase is Phase.CHECK
        verdict = fault or self._judge(announcement, found)
        if verdict in {Verdict.FALSE, Verdict.UNFIT}:
            self.tally.lies += 1
        if verdict in {Verdict.FALSE, Verdict.UNFIT, Verdict.UNAVAILABLE}:
            self._refused[announcement.peer_id] = announcement.version
        if found is not None:
            self._found[announcement.claim.weights] = found
        elif verdict is Verdict.UNFIT:
            self._found[announcement.claim.weights] = math.nan
        return verdict

    def receive_adopted(self, announcement: Announcement) -> None:
        """Take in that the weights of an announcement are in use now."""
        assert self.phase is Phase.CHECK
        self.weights = announcement.claim.weights
        self.score = self._found[self.weights]
        self.tally.source = announcement.peer_id
        self._leave_checking()

    # --- what to do -----------------------------------------------------------------------------

    def next_action(self, now: float) -> Action:
        """Say what is to be done now."""
        if self.phase in {Phase.JOIN, Phase.COLLECT}:
            awaited = self._awaited()
            if now < self._deadline and (awaited or not self._has_begun()):
                return Wait(until=self._deadline)
            self._leave_collecting(awaited)
        if self.phase is Phase.AVERAGE:
            members = sorted(
                peer_id
                for peer_id, each in self._heard.items()
                if self._is_here(each) and not each.claim.is_final and peer_id not in self._gone
            )
            if members:
                return Average(round=self.round, members=tuple(members))
            self.phase = Phase.CHECK
        if self.phase is Phase.CHECK:
            found = self._next_to_check()
            if found is not None:
                return self._check(found)
            self._leave_checking()
        if self._end is not None:
            return Finish(reason=self._end)
        return Train(round=self.round)

    def _awaited(self) -> frozenset[PeerId]:
        """Who has yet to say something before the others go on."""
        if self.phase is Phase.JOIN:
            return self._silent - self._gone
        last = self.round - 1
        late = {
            peer_id
            for peer_id, each in self._heard.items()
            if each.claim.round == last and not each.claim.is_final
        }
        if last == 0:
            late |= self._starting
        awaited = late | self._silent if self._is_first else late
        return frozenset(awaited - self._in_vain - self._gone)

    def _has_begun(self) -> bool:
        """Whether there is a swarm to train with, as far as can be told."""
        is_joining = self.phase is Phase.JOIN
        return not is_joining or bool(self._heard) or self._present >= self._settings.start_peers

    def _leave_collecting(self, awaited: frozenset[PeerId]) -> None:
        self._candidates = dict(self._heard)
        if self.phase is Phase.JOIN:
            self.round = max(1, min(self._swarm_round(), self._settings.rounds))
            self.phase = Phase.CHECK
            return
        self._is_first = False
        self._in_vain |= awaited
        self.tally.heard = sum(self._is_here(each) for each in self._heard.values())
        self.phase = Phase.CHECK if self._settings.mode == "best" else Phase.AVERAGE

    def _next_to_check(self) -> Announcement | None:
        """Return the announcement that claims most of those that are worth a look."""
        worth = [
            each
            for peer_id, each in self._candidates.items()
            if peer_id in self._heard and self._is_worth_a_look(each)
        ]
        return min(worth, key=_rank, default=None)

    def _is_worth_a_look(self, announcement: Announcement) -> bool:
        claim = announcement.claim
        if (
            claim.score is None
            or not claim.weights
            or (claim.round < self.round - 1 and not claim.is_final)
            or claim.scored_on < self._settings.min_hold_out
            or not self._is_better(claim.score, claim.weights)
            or self._refused.get(announcement.peer_id) == announcement.version
        ):
            return False
        known = self._found.get(claim.weights)
        if known is None:
            return self.tally.fetched < self._settings.max_checked
        return self._judge(announcement, known) is not Verdict.NOT_BETTER

    def _check(self, announcement: Announcement) -> Check:
        weights, peer_id = announcement.claim.weights, announcement.peer_id
        known = self._found.get(weights)
        if known is None:
            self.tally.fetched += 1
        others = sorted(
            each.peer_id
            for each in self._heard.values()
            if each.claim.weights == weights and each.peer_id != peer_id
        )
        return Check(announcement=announcement, holders=(peer_id, *others), known=known)

    def _judge(self, announcement: Announcement, found: float | None) -> Verdict:
        claim = announcement.claim
        if found is None or not 0 <= found <= 1:  # NaN is neither
            return Verdict.UNFIT
        assert claim.score is not None
        if claim.score > 1 or is_lie(
            claim.score,
            claim.scored_on,
            found,
            self._held_out,
            false_alarm=self._settings.false_alarm,
            slack=self._settings.slack,
        ):
            return Verdict.FALSE
        return Verdict.ADOPTED if self._is_better(found, claim.weights) else Verdict.NOT_BETTER

    def _is_better(self, score: float, weights: bytes) -> bool:
        return (-score, weights) < (-self.score, self.weights)

    def _leave_checking(self) -> None:
        if not math.isnan(self.tally.trained):
            self._end_round()
            return
        self.phase = Phase.TRAIN  # it has only joined
        self.tally = Tally()
        if self.score >= self._settings.threshold:
            self._finish(End.THRESHOLD)

    def _end_round(self) -> None:
        self.phase = Phase.TRAIN
        if not self._lasting:
            self._found.clear()
        self.tally.round, self.tally.score = self.round, self.score
        self.ended, self.tally = self.tally, Tally()
        self._left = self._left + 1 if self._is_left() else 0
        is_there = self.score >= self._settings.threshold
        if is_there and self._reached_in is None:
            self._reached_in = self.round
        if is_there and not (self.round < self._settings.rounds and self._is_needed()):
            self._finish(End.THRESHOLD)
        elif self._left >= self._settings.last_rounds:
            self._finish(End.LEFT)
        elif self.round >= self._settings.rounds:
            self._finish(End.ROUNDS)
        else:
            self.round += 1

    def _is_left(self) -> bool:
        """Whether as many others have ended as go on, or are about to begin, oneself included."""
        ended = sum(each.claim.is_final for each in self._heard.values())
        others = len(self._going_on() | self._starting - self._gone)
        return self._has_seen_ends and (not others or 1 + others <= ended)

    def _going_on(self) -> frozenset[PeerId]:
        """Who trains, and can be reached."""
        ended = {who for who, each in self._heard.items() if each.claim.is_final}
        return frozenset(self._heard) - ended - self._gone

    def _is_needed(self) -> bool:
        """Whether to stay for those that go on, and have not been at the threshold."""
        if self._reached_in is None or (self._settings.mode == "best" and self._lasting):
            return False
        has_stayed = self.round - self._reached_in >= self._settings.last_rounds
        behind = {who for who in self._going_on() - self._reached if self._keeps_up(who)}
        return bool(behind) and not has_stayed

    def _keeps_up(self, peer_id: PeerId) -> bool:
        return self._heard[peer_id].claim.round >= self.round - 1

    def _is_at_threshold(self, announcement: Announcement) -> bool:
        score = announcement.claim.score
        return score is not None and score >= self._settings.threshold

    def _finish(self, reason: End) -> None:
        self.phase = Phase.END
        self._end = reason

    def _is_here(self, announcement: Announcement) -> bool:
        return announcement.claim.round >= self.round

    def _swarm_round(self) -> int:
        """Return the lower median of the rounds that the others are in; 0 if there are none.

        Those who have ended count only if all have.
        """
        others = self._heard.values()
        going_on = [each.claim.round for each in others if not each.claim.is_final]
        rounds = sorted(going_on or [each.claim.round for each in others])
        return rounds[(len(rounds) - 1) // 2] if rounds else 0


def _rank(announcement: Announcement) -> tuple[float, bytes, PeerId]:
    """Return what announcements are sorted by, the best first."""
    claim = announcement.claim
    assert claim.score is not None
    return -claim.score, claim.weights, announcement.peer_id
