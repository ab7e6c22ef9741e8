"""What waits to be sent to one peer: bounded, ordered by importance, and never in anyone's way.

When the peer is slow and the queue is full, what matters least makes room for what matters more,
and what finds no room is dropped and counted:

    1. subscriptions, GRAFT and PRUNE: what both sides must agree on. A newer one replaces the one
       of its topic that still waits, so there are two for each topic at most. They are never
       dropped: a queue that cannot take one has `overflowed`, and its peer must be left.
    2. IDONTWANT, which is worth something only at once
    3. our own messages
    4. messages of others
    5. IHAVE and IWANT, which the next heartbeat brings anew
"""

from collections import OrderedDict
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from p2pnode.protocols.pubsub.messages import (
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    Piece,
    Prune,
    join,
)

_OVERHEAD: Final = 16  # bytes of an RPC that belong to none of its pieces


class Lane(IntEnum):
    """How much a piece matters; the smallest number goes first."""

    CONTROL = 0
    HINT = 1
    OWN = 2
    FORWARDED = 3
    GOSSIP = 4


_Key = tuple[str, bytes | int]
_Queue = OrderedDict[_Key, tuple[Piece, bytes]]


class Outbox:
    """The queue of one peer.

    Args:
        max_pieces: that wait, subscriptions, GRAFTs and PRUNEs aside, which have as much for
            themselves.
        max_bytes: of them, likewise.
    """

    def __init__(self, max_pieces: int, max_bytes: int) -> None:
        self._max_pieces = max_pieces
        self._max_bytes = max_bytes
        self._lanes: dict[Lane, _Queue] = {lane: OrderedDict() for lane in Lane}
        self._bytes = dict.fromkeys(Lane, 0)
        self._number = 0
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    @property
    def size(self) -> int:
        """The bytes that wait."""
        return sum(self._bytes.values())

    def push(self, piece: Piece, encoded: bytes, message_id: bytes, *, own: bool) -> bool:
        """Queue a piece; returns whether it found room."""
        lane, key = self._place(piece, message_id, own=own)
        if key in self._lanes[lane]:
            self._remove(lane, key)
        if lane is Lane.CONTROL:
            control = self._lanes[lane]
            if (
                len(control) >= self._max_pieces
                or self._bytes[lane] + len(encoded) > self._max_bytes
            ):
                self.overflowed = True
                return False
        elif not self._make_room(lane, len(encoded)):
            self.dropped += 1
            return False
        self._lanes[lane][key] = piece, encoded
        self._bytes[lane] += len(encoded)
        return True

    def cancel(self, message_ids: Iterable[bytes]) -> int:
        """Take messages out that the peer has got otherwise; returns how many there were."""
        found = [
            (lane, key)
            for key in (("message", each) for each in message_ids)
            for lane in (Lane.OWN, Lane.FORWARDED)
            if key in self._lanes[lane]
        ]
        for lane, key in found:
            self._remove(lane, key)
        return len(found)

    def take(self, max_bytes: int) -> bytes | None:
        """Return the next RPC, of at most `max_bytes`; None if nothing waits."""
        plain: list[bytes] = []
        control: list[bytes] = []
        room = max_bytes - _OVERHEAD
        for lane, queue in self._lanes.items():
            while queue:
                key, (piece, encoded) = next(iter(queue.items()))
                if len(encoded) > room and (plain or control):
                    return join(plain, control)
                room -= len(encoded)
                (plain if isinstance(piece, Interest | Message) else control).append(encoded)
                self._remove(lane, key)
        return join(plain, control) if plain or control else None

    def _place(self, piece: Piece, message_id: bytes, *, own: bool) -> tuple[Lane, _Key]:
        match piece:
            case Interest(topic=topic):
                return Lane.CONTROL, ("subscription", topic.encode())
            case Graft(topic=topic) | Prune(topic=topic):
                return Lane.CONTROL, ("mesh", topic.encode())
            case Message():
                return Lane.OWN if own else Lane.FORWARDED, ("message", message_id)
            case IDontWant() | IHave() | IWant():
                self._number += 1
                lane = Lane.HINT if isinstance(piece, IDontWant) else Lane.GOSSIP
                return lane, ("number", self._number)

    def _make_room(self, lane: Lane, size: int) -> bool:
        """Drop what matters less than `lane`, the oldest first, until `size` bytes fit."""
        lanes = [each for each in Lane if each is not Lane.CONTROL]
        pieces = sum(len(self._lanes[each]) for each in lanes) + 1
        total = sum(self._bytes[each] for each in lanes) + size
        lesser = [each for each in reversed(lanes) if each > lane]
        spare = sum(self._bytes[each] for each in lesser)
        if total - spare > self._max_bytes:
            return False
        for each in lesser:
            while self._lanes[each] and (pieces > self._max_pieces or total > self._max_bytes):
                pieces -= 1
                total -= self._remove(each, next(iter(self._lanes[each])))
                self.dropped += 1
        return pieces <= self._max_pieces and total <= self._max_bytes

    def _remove(self, lane: Lane, key: _Key) -> int:
        _, encoded = self._lanes[lane].pop(key)
        self._bytes[lane] -= len(encoded)
        return len(encoded)
