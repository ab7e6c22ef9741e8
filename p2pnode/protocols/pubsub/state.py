"""What the parts of the router share: the peers, our topics, and what is to be done.

The router takes inputs (`receive_*`) and commands, and leaves *outputs* for its shell to carry
out. Sets of peers are dicts, whose order does not depend on the process, so that one seed replays
a run.
"""

from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub.messages import Message, Piece
from p2pnode.protocols.pubsub.scoring import Scores
from p2pnode.wire.peer_id import PeerId

FLOODSUB: Final = "/floodsub/1.0.0"
GOSSIPSUB_1_0: Final = "/meshsub/1.0.0"
GOSSIPSUB_1_1: Final = "/meshsub/1.1.0"
GOSSIPSUB_1_2: Final = "/meshsub/1.2.0"
PROTOCOLS: Final = (GOSSIPSUB_1_2, GOSSIPSUB_1_1, GOSSIPSUB_1_0, FLOODSUB)

Peers = dict[PeerId, None]
T = TypeVar("T")


class Chance(Protocol):
    """What the router needs of a `random.Random`."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Draw `k` different items."""

    def shuffle(self, x: MutableSequence[T]) -> None:
        """Bring the items into an order drawn by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Queue a piece for a peer.

    Attributes:
        peer_id: who gets it.
        piece: what it gets.
        encoded: the piece's bytes, made once for all who get it.
        message_id: of a message, or empty.
        own: whether it is a message of ours, which goes before those of others.
    """

    peer_id: PeerId
    piece: Piece
    encoded: bytes
    message_id: bytes = b""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take messages that a peer does not want out of its queue."""

    peer_id: PeerId
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Validate:
    """Find out whether a message is valid, and say so by `Router.receive_verdict`."""

    message_id: bytes
    message: Message
    received_from: PeerId


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give a valid message to our own subscriptions."""

    message_id: bytes
    message: Message
    received_from: PeerId


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a peer that another one told of, with its signed addresses if they were told."""

    peer_id: PeerId
    record: bytes


@dataclass(frozen=True, slots=True)
class MeshChanged:
    """A peer has come into our mesh of a topic, or has left it."""

    peer_id: PeerId
    topic: str
    joined: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A peer broke a rule."""

    peer_id: PeerId
    reason: str


Output = Send | Cancel | Validate | Deliver | Dial | MeshChanged | Report


@dataclass(slots=True)
class PeerState:
    """A peer that speaks pubsub, while it is connected.

    Attributes:
        protocol: what it speaks.
        outbound: whether we dialled it.
        direct: whether it is one of ours by configuration.
        topics: what it has subscribed to.
        record: its signed peer record, or empty.
        ihaves: IHAVEs it has sent in this heartbeat.
        asked: ids we have asked it for in this heartbeat.
        told: ids we have told it of in this heartbeat.
        unwanted: what it does not want, and for how many more heartbeats.
        idontwants: ids it has told us it does not want in this heartbeat.
    """

    protocol: str
    outbound: bool
    direct: bool
    topics: dict[str, None] = field(default_factory=dict)
    record: bytes = b""
    ihaves: int = 0
    asked: int = 0
    told: int = 0
    idontwants: int = 0
    unwanted: dict[bytes, int] = field(default_factory=dict)

    @property
    def meshes(self) -> bool:
        """Whether it takes part in meshes, which floodsub knows nothing of."""
        return self.protocol != FLOODSUB

    @property
    def backs_off(self) -> bool:
        """Whether it understands the fields that 1.1 added to PRUNE."""
        return self.protocol in {GOSSIPSUB_1_1, GOSSIPSUB_1_2}

    @property
    def takes_idontwant(self) -> bool:
        """Whether it understands IDONTWANT."""
        return self.protocol == GOSSIPSUB_1_2


class RouterState:
    """The peers, our topics and the outputs; the mesh and the gossip work on it."""

    def __init__(self, settings: PubSubSettings, rng: Chance, scores: Scores) -> None:
        self.settings = settings
        self.rng = rng
        self.scores = scores
        self.peers: dict[PeerId, PeerState] = {}
        self.topics: dict[str, None] = {}  # that we subscribe to
        self.topic_peers: dict[str, Peers] = {}
        self.outputs: list[Output] = []

    def send(self, peer_id: PeerId, piece: Piece) -> None:
        """Queue a piece that goes to one peer."""
        self.outputs.append(Send(peer_id=peer_id, piece=piece, encoded=piece.encode()))

    def report(self, peer_id: PeerId, reason: str) -> None:
        """Say that a peer broke a rule."""
        self.outputs.append(Report(peer_id, reason))

    def peers_of(self, topic: str) -> Peers:
        """Return the peers that subscribe to a topic."""
        return self.topic_peers.get(topic, {})

    def mesh_candidates(self, topic: str) -> list[PeerId]:
        """Return the peers of a topic that may be in a mesh or be gossiped to."""
        found = ((each, self.peers[each]) for each in self.peers_of(topic))
        return [each for each, peer in found if peer.meshes and not peer.direct]

    def pick(
        self,
        candidates: Iterable[PeerId],
        count: int,
        accept: Callable[[PeerId], bool] = lambda _peer_id: True,
    ) -> list[PeerId]:
        """Choose up to `count` of those that `accept` takes, by chance."""
        fitting = [each for each in candidates if accept(each)]
        return self.rng.sample(fitting, min(count, len(fitting))) if count > 0 else []
