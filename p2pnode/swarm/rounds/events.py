"""What a participant tells of its rounds while they go on, and in the end."""

from dataclasses import dataclass
from enum import StrEnum

from p2pnode.events import Event
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class End(StrEnum):
    """Why a training in rounds has ended."""

    THRESHOLD = "threshold"  # the score that the user chose is reached on one's own hold-out
    ROUNDS = "rounds"  # as many as the run has
    LEFT = "left"  # half of the others have long ended, or all; few are left to learn from


class Verdict(StrEnum):
    """What became of a claim whose weights were fetched and scored."""

    ADOPTED = "adopted"  # it is true, and better than what we had
    NOT_BETTER = "not better"  # it may be true; on our hold-out our own weights are as good
    FALSE = "false"  # the score cannot be what was claimed
    UNFIT = "unfit"  # the weights are not finite, or not of this layer
    UNAVAILABLE = "unavailable"  # they could not be fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBegan(Event):
    """A participant trains."""

    uid: Uid
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailed(Event):
    """A participant could not train; it tries again."""

    level = "warning"

    uid: Uid
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimChecked(Event):
    """Another participant's weights were fetched and scored on our own hold-out."""

    level = "info"

    uid: Uid
    round: int
    peer_id: PeerId
    weights: bytes
    claimed: float
    found: float | None  # None if they could not be scored
    verdict: Verdict
    reason: str = ""  # why they could not


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged(Event):
    """Weights were averaged; `score` is None if that failed, `reason` then says why.

    Of the `members` that had announced the round, `contributors` took part, ourselves included.
    """

    level = "info"

    uid: Uid
    round: int
    members: int
    contributors: int
    score: float | None
    adopted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnded(Event):
    """A round has ended; the record of it, as `Rounds.history` keeps it.

    Attributes:
        uid: the layer.
        round: its number, from 1; one that joined late has not been in all of them.
        trained: our score after training, which is what we have announced.
        score: our score in the end, of weights adopted or our own.
        heard: how many others have announced this round in time.
        fetched: how many others' weights were fetched to be checked.
        lies: how many claims were false, or their weights unfit.
        source: whose weights were adopted, or None.
        seconds: how long the round took.
        waited: how much of it was waiting for others' announcements.
    """

    level = "info"

    uid: Uid
    round: int
    trained: float
    score: float
    heard: int
    fetched: int
    lies: int
    source: PeerId | None
    seconds: float
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsEnded(Event):
    """The training has ended; what `Rounds.run` returns."""

    level = "info"

    uid: Uid
    reason: End
    round: int
    score: float
