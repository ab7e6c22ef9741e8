"""The state of pub/sub, and what happens to it, for status pages."""

from dataclasses import dataclass

from p2pnode.events import Event
from p2pnode.protocols.pubsub.core import Counts
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGivenUp(Event):
    """A peer does not take what it should be sent, and misses it; it is tried again later."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic of ours: how many peers subscribe to it, and how many are in our mesh."""

    peers: int
    mesh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """A peer: its score, and what waits for it or had to be dropped."""

    score: float
    meshes: tuple[str, ...]
    queued_pieces: int
    queued_bytes: int
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubInfo:
    """The state of pub/sub, for status pages."""

    topics: dict[str, TopicInfo]
    peers: dict[PeerId, PeerInfo]
    counts: Counts
    validating: int
    validations_refused: int
    validations_timed_out: int
