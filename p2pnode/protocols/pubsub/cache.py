"""What a router remembers of messages: which it has seen, and the recent ones in full.

Source: libp2p/specs, gossipsub 1.0, "Message cache".
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pnode.protocols.pubsub.messages import Message
from p2pnode.wire.peer_id import PeerId


class SeenCache:
    """The ids of messages seen within `ttl` seconds, `limit` of them at most."""

    def __init__(self, ttl: float, limit: int) -> None:
        self._ttl = ttl
        self._limit = limit
        self._until: dict[bytes, float] = {}  # in the order of expiry, as the ttl is one for all

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._until

    def __len__(self) -> int:
        return len(self._until)

    def add(self, message_id: bytes, now: float) -> None:
        """Remember a new id, in the oldest one's place if the cache is full."""
        if len(self._until) >= self._limit:
            del self._until[next(iter(self._until))]
        self._until[message_id] = now + self._ttl

    def expire(self, now: float) -> None:
        """Forget the ids whose time is over."""
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now:
                return
            del self._until[oldest]


@dataclass(slots=True)
class _Entry:
    message: Message
    piece: bytes
    sent: dict[PeerId, int] = field(default_factory=dict)  # on request, how often to whom


class MessageCache:
    """The messages of the last `windows` heartbeats, to be gossiped about and sent on request.

    Args:
        windows: heartbeats for which a message is kept.
        gossiped: of them, the latest ones whose messages are told of.
        max_bytes: of all messages; the oldest leave first.
    """

    def __init__(self, windows: int, gossiped: int, max_bytes: int) -> None:
        self._gossiped = gossiped
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[bytes, _Entry] = {}  # the oldest first
        self._windows: deque[dict[str, list[bytes]]] = deque([{}], maxlen=windows)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, message_id: bytes, message: Message, piece: bytes) -> None:
        """Keep a message, with its encoded form."""
        if message_id in self._entries:
            return
        self._entries[message_id] = _Entry(message, piece)
        self._bytes += len(piece)
        self._windows[-1].setdefault(message.topic, []).append(message_id)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._forget(next(iter(self._entries)))

    def ids(self, topic: str) -> list[bytes]:
        """Return the ids of a topic's messages to tell of."""
        recent = list(self._windows)[-self._gossiped :]
        found = (each for window in reversed(recent) for each in window.get(topic, ()))
        return [each for each in found if each in self._entries]

    def topics(self) -> Iterable[str]:
        """Return the topics whose messages are kept."""
        return dict.fromkeys(topic for window in self._windows for topic in window)

    def get_for(self, message_id: bytes, peer_id: PeerId) -> tuple[Message, bytes, int] | None:
        """Return a message, its encoded form, and how often the peer has now asked for it."""
        if (entry := self._entries.get(message_id)) is None:
            return None
        entry.sent[peer_id] = count = entry.sent.get(peer_id, 0) + 1
        return entry.message, entry.piece, count

    def shift(self) -> None:
        """Begin the next window; the messages of the last one that is kept leave."""
        if len(self._windows) == self._windows.maxlen:
            for ids in self._windows[0].values():
                for message_id in ids:
                    self._forget(message_id)
        self._windows.append({})

    def _forget(self, message_id: bytes) -> None:
        if (entry := self._entries.pop(message_id, None)) is not None:
            self._bytes -= len(entry.piece)
