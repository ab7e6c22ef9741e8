"""The turns of steps at the experts of one peer, in two phases: pure.

At each expert one step has its turn; others wait in line. A turn's phases:

| phase | event | what follows |
|---|---|---|
| open: gathers gradients | those of the plan's group are added up | prepared |
| | its lease is over, or its caller gives it up | ended, not taken |
| prepared: has the sum | `commit` | taking |
| | a part comes that is not in its plan, or another plan | open |
| | its caller gives it up | ended, not taken |
| | its lease is over, or a peer of its group asks what became of it | doubted |
| doubted: others may have taken it | a peer of the group has | taking |
| | none of those that answer has | ended, not taken |
| taking: decided | the optimiser has stepped, or failed | ended |

A doubted step is not committed by its caller's word any more: the peers of the group settle among
themselves. Whoever is asked while it is prepared doubts, too. So those that can reach each other
all take a step, or none of them does. A lease does not run while a call of the step is at work.

A *plan* says what is to be added up: by whom, and of how many parts here. Who trains gives the
first one with the parts, so a peer begins as soon as it has them all, and the sum is under way
while the gradients of the inputs travel back. When a peer of the group is lost, its parts go to
others, and another plan has to come.

Weight gradients and sums are lists of tensors to the caller of this module, and nothing here.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from p2pnode.config.experts import Codec
from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import OverloadedError, StepLostError, StepUnderWayError
from p2pnode.swarm.splitting.versions import Version
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class Phase(Enum):
    """Where a turn stands."""

    OPEN = auto()
    PREPARED = auto()
    DOUBTED = auto()
    TAKING = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the gradients of a step are to be added up, as one peer is told.

    Attributes:
        attempt: counts the plans of the step, from 1.
        parts: so many of them this peer computes.
        rows: of all parts at all peers.
        group: the peers, in the order that all of them have.
        codec: how the gradients travel.
    """

    attempt: int
    parts: int
    rows: int
    group: tuple[PeerId, ...]
    codec: Codec = "none"


@dataclass(slots=True, eq=False, kw_only=True)
class Turn:
    """One step of one caller at one expert."""

    uid: Uid
    key: bytes  # of caller and step id, as in the replay log
    caller: PeerId
    at: Version  # the expert's, when the turn began
    until: float  # when its lease is over
    size: int  # bytes that it may keep
    phase: Phase = Phase.OPEN
    parts: set[int] = field(default_factory=set)  # whose gradients are in `kept`
    kept: list[Any] = field(default_factory=list)  # weight gradients of the parts here
    plan: Plan | None = None  # unless a part has come that is not in it
    attempt: int = 0  # of the last plan
    begun: int = 0  # the last attempt whose sum has begun
    total: list[Any] = field(default_factory=list)  # of the whole group
    digest: bytes = b""  # of the sum
    calls: int = 0  # of this step, that are at work here
    is_asked: bool = False  # the other peers of the group are asked what became of it

    @property
    def group(self) -> tuple[PeerId, ...]:
        """Those who share the sum, once it is here."""
        return () if self.plan is None or self.phase is Phase.OPEN else self.plan.group

    @property
    def rows(self) -> int:
        """Rows of the whole group."""
        return 0 if self.plan is None else self.plan.rows

    def receive_part(self, part: int, kept: list[Any]) -> None:
        """Take the weight gradients with those of one more part, which has not come before.

        Raises:
            StepLostError: the step is being settled, or over.
        """
        self._check_gathers()
        self.parts.add(part)
        self.kept = kept
        if self.plan is not None and len(self.parts) > self.plan.parts:
            self._reopen(None)

    def receive_plan(self, plan: Plan) -> None:
        """Take in how to add up; plans may come again, and later ones have higher numbers.

        Raises:
            StepLostError: the step is being settled, or over, or another plan has come.
        """
        if plan == self.plan:
            return
        self._check_gathers()
        if plan.attempt <= self.attempt:
            raise StepLostError("another plan to add up the gradients of this step has come")
        self.attempt = plan.attempt
        self._reopen(plan)

    def begin_sum(self) -> Plan | None:
        """Return the plan if all parts of it are here and its sum has not begun; it has then."""
        plan = self.plan
        if plan is None or self.begun == plan.attempt or len(self.parts) != plan.parts:
            return None
        self.begun = plan.attempt
        return plan

    def receive_total(self, plan: Plan, total: list[Any], digest: bytes) -> None:
        """Take the sum that a plan has given.

        Raises:
            StepLostError: the step has gone on without it.
        """
        if plan is not self.plan:
            raise StepLostError("another plan to add up the gradients of this step has come")
        self._check_gathers()
        self.total, self.digest = total, digest
        self.phase = Phase.PREPARED

    def commit(self) -> None:
        """Decide at the caller's word that the step is taken.

        Raises:
            StepLostError: it has no sum, or is being settled, or over.
        """
        if self.phase is not Phase.PREPARED:
            raise StepLostError(
                "this step cannot be taken here now: its gradients are not added up, or its time"
                " is over"
            )
        self.phase = Phase.TAKING

    def settle(self) -> None:
        """Decide that a doubted step is taken, since another peer has taken it."""
        assert self.phase is Phase.DOUBTED, "only a doubted step is settled with others"
        self.phase = Phase.TAKING

    def doubt(self) -> None:
        """Take the caller's word no more; does nothing unless the step is prepared."""
        if self.phase is Phase.PREPARED:
            self.phase = Phase.DOUBTED

    def _reopen(self, plan: Plan | None) -> None:
        self.plan, self.phase, self.total, self.digest = plan, Phase.OPEN, [], b""

    def _check_gathers(self) -> None:
        if self.phase not in {Phase.OPEN, Phase.PREPARED}:
            raise StepLostError("this step's time is over; begin another one")


class Turns:
    """The steps of all experts of one peer.

    Args:
        settings: leases and limits.
    """

    def __init__(self, settings: SplittingSettings) -> None:
        self._settings = settings
        self._turns: dict[Uid, Turn] = {}
        self._lines: dict[Uid, deque[bytes]] = {}
        self.kept_bytes = 0

    def check_free(self, uid: Uid) -> None:
        """Return if whoever stands in line now has the turn at once.

        Raises:
            StepUnderWayError: others have it, or wait for it.
        """
        if uid in self._turns or uid in self._lines:
            raise StepUnderWayError(f"another step of {uid.name} has its turn here")

    def wait(self, uid: Uid, key: bytes) -> None:
        """Stand in line for an expert's turn; `begin` or `give_up` has to follow.

        Raises:
            OverloadedError: the line is full.
        """
        line = self._lines.setdefault(uid, deque())
        if len(line) >= self._settings.max_waiting:
            raise OverloadedError(
                f"{len(line)} steps of {uid.name} wait for their turn; try again later"
            )
        line.append(key)

    def is_next(self, uid: Uid, key: bytes) -> bool:
        """Whether the turn is free for the one of this key."""
        return uid not in self._turns and self._lines[uid][0] == key

    def give_up(self, uid: Uid, key: bytes) -> None:
        """Leave the line."""
        line = self._lines[uid]
        line.remove(key)
        if not line:
            del self._lines[uid]

    def begin(self, turn: Turn) -> None:
        """Give the turn to whoever is next in line, who leaves it.

        Raises:
            OverloadedError: there is no room for what it may keep.
        """
        if self.kept_bytes + turn.size > self._settings.max_kept_bytes:
            raise OverloadedError(
                f"the gradients of {turn.uid.name} would exceed splitting.max_kept_bytes here"
            )
        self._turns[turn.uid] = turn
        self.kept_bytes += turn.size

    def current(self, uid: Uid) -> Turn | None:
        """Return the step that has its turn at an expert."""
        return self._turns.get(uid)

    def find(self, uid: Uid, key: bytes) -> Turn:
        """Return the turn of a key.

        Raises:
            StepLostError: it is not, or no more, this one's turn.
        """
        turn = self._turns.get(uid)
        if turn is None or turn.key != key:
            raise StepLostError(f"this step of {uid.name} is not under way here; begin another one")
        return turn

    def end(self, turn: Turn) -> None:
        """End a turn; does nothing if it has ended."""
        if turn.phase is Phase.ENDED:
            return
        turn.phase = Phase.ENDED
        turn.kept, turn.total = [], []
        del self._turns[turn.uid]
        self.kept_bytes -= turn.size

    def next_time(self) -> float:
        """Return when the next lease is over, on the clock of `now`; infinite if there is none."""
        return min((turn.until for turn in self._leased()), default=float("inf"))

    def take_late(self, now: float) -> list[Turn]:
        """Return the turns whose leases are over; prepared ones are doubted now."""
        late = [turn for turn in self._leased() if turn.until <= now]
        for turn in late:
            turn.doubt()
        return late

    def _leased(self) -> Iterator[Turn]:
        return (
            turn
            for turn in self._turns.values()
            if turn.phase in {Phase.OPEN, Phase.PREPARED} and not turn.calls
        )
