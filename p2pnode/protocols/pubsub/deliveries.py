"""Who brought which message, until its validation is over and for a while after.

Source: libp2p/specs, gossipsub 1.1, "P2", "P3" and "P4". A message is validated once, but several
peers bring it; each of them is credited or blamed for it when the outcome is known, once.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from p2pnode.protocols.pubsub.scoring import Scores
from p2pnode.wire.peer_id import PeerId


class _Outcome(Enum):
    PENDING = auto()
    VALID = auto()
    INVALID = auto()
    NONE = auto()  # ignored, or dropped for lack of room: nobody's merit and nobody's fault


@dataclass(slots=True)
class _Record:
    topic: str
    first: PeerId
    until: float
    outcome: _Outcome = _Outcome.PENDING
    validated_at: float = 0.0
    peers: dict[PeerId, None] = field(default_factory=dict)  # all that brought it


class Deliveries:
    """Delivery records: they turn messages and their outcomes into credit and blame.

    Args:
        scores: where credit and blame go.
        ttl: seconds for which a record is kept.
        limit: records kept; the oldest leave first.
    """

    def __init__(self, scores: Scores, ttl: float, limit: int) -> None:
        self._scores = scores
        self._ttl = ttl
        self._limit = limit
        self._records: dict[bytes, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def begin(self, message_id: bytes, peer_id: PeerId, topic: str, now: float) -> None:
        """Note the first arrival of a message that is now going to be validated."""
        if len(self._records) >= self._limit:
            del self._records[next(iter(self._records))]
        self._records[message_id] = _Record(topic, peer_id, now + self._ttl, peers={peer_id: None})

    def receive_duplicate(self, message_id: bytes, peer_id: PeerId, now: float) -> None:
        """Note that another peer brought the message too."""
        record = self._records.get(message_id)
        if record is None or peer_id in record.peers:
            return
        record.peers[peer_id] = None
        if record.outcome is _Outcome.INVALID:
            self._scores.blame_invalid(peer_id, record.topic)
        elif record.outcome is _Outcome.VALID:
            window = self._scores.params(record.topic).mesh_message_deliveries_window
            if now - record.validated_at <= window:
                self._scores.credit_mesh(peer_id, record.topic)

    def accept(self, message_id: bytes, now: float) -> None:
        """Credit the peers that brought a message which turned out valid."""
        if (record := self._settle(message_id, _Outcome.VALID)) is not None:
            record.validated_at = now
            self._scores.credit_first(record.first, record.topic)
            for peer_id in record.peers:
                if peer_id != record.first:
                    self._scores.credit_mesh(peer_id, record.topic)

    def reject(self, message_id: bytes) -> None:
        """Blame the peers that brought a message which turned out invalid."""
        if (record := self._settle(message_id, _Outcome.INVALID)) is not None:
            for peer_id in record.peers:
                self._scores.blame_invalid(peer_id, record.topic)

    def drop(self, message_id: bytes) -> None:
        """Note that the message is nobody's merit and nobody's fault."""
        self._settle(message_id, _Outcome.NONE)

    def bringers(self, message_id: bytes) -> dict[PeerId, None]:
        """Return the peers that brought a message, who need not be sent it."""
        record = self._records.get(message_id)
        return record.peers if record is not None else {}

    def expire(self, now: float) -> None:
        """Forget the records whose time is over."""
        while self._records:
            oldest = next(iter(self._records))
            if self._records[oldest].until > now:
                return
            del self._records[oldest]

    def _settle(self, message_id: bytes, outcome: _Outcome) -> _Record | None:
        record = self._records.get(message_id)
        if record is None or record.outcome is not _Outcome.PENDING:
            return None
        record.outcome = outcome
        return record
