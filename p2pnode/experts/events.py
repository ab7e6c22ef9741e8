"""What a host of experts tells while it works."""

from dataclasses import dataclass
from pathlib import Path

from p2pnode.events import Event
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAdded(Event):
    """An expert is hosted from now on; `restored` is the checkpoint it goes on from."""

    uid: Uid
    layer: str
    steps: int
    restored: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRemoved(Event):
    """An expert is no longer hosted."""

    level = "info"

    uid: Uid
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAdopted(Event):
    """A hosted expert goes on from a state that another host made."""

    level = "debug"  # it has a louder one where it is news, and is not what replicas always do

    uid: Uid
    steps_before: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchComputed(Event):
    """The device computed calls of one expert, or of one span of layers, together."""

    uid: Uid  # the first
    span: int
    kind: str
    calls: int
    rows: int
    failed: int
    seconds: float
    weights: int = 1  # of the whole span
    bytes_taken: int = 0  # of the tensors that were computed, in memory,
    bytes_given: int = 0  # and of their answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFailed(Event):
    """A call failed inside its expert."""

    level = "warning"

    uid: Uid
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStopped(Event):
    """An expert is at fault, and out of service until it is restarted."""

    level = "warning"

    uid: Uid
    reason: str
    retry_in: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRestartFailed(Event):
    """A stopped expert could not be built again; it is tried once more."""

    level = "warning"

    uid: Uid
    reason: str
    retry_in: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRestarted(Event):
    """A stopped expert serves again, from its newest checkpoint."""

    level = "info"

    uid: Uid
    steps: int
    lost: int  # steps taken since that checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """An expert was saved."""

    level = "info"

    uid: Uid
    path: Path
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSetAside(Event):
    """An expert goes on from another host's state; what it had learnt here is in this file."""

    level = "warning"

    uid: Uid
    path: Path
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSkipped(Event):
    """A checkpoint was not used, because it is damaged; an earlier one was, and it is kept."""

    level = "warning"

    uid: Uid
    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(Event):
    """An expert could not be saved; it goes on being served."""

    level = "warning"

    uid: Uid
    reason: str
