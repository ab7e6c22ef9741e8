"""What split steps have to tell."""

from dataclasses import dataclass

from p2pnode.events import Event
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStepTaken(Event):
    """An expert was stepped with the gradients that its swarm has added up."""

    uid: Uid
    caller: PeerId
    rows: int  # of all peers
    group: int  # peers that have added up
    steps: int  # of the expert, with this one


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStepDropped(Event):
    """A step was given up that others of its group may have taken, or its caller was lost."""

    level = "info"

    uid: Uid
    caller: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBehind(Event):
    """This peer's weights are not those of the swarm; it serves no split calls until they are."""

    level = "info"

    uid: Uid
    steps: int
    of_the_swarm: int  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp(Event):
    """This peer has the swarm's weights again."""

    level = "info"

    uid: Uid
    source: PeerId
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpGivenUp(Event):
    """The swarm's weights could not be fetched; the next split call leads to another attempt."""

    level = "warning"

    uid: Uid
    reason: str
