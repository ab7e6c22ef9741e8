"""The values a node keeps for others, bounded in number, bytes and time.

A full store keeps the keys closest to the node, which are those it is asked for. So that nobody
fills it alone, each peer that stores has a share of it, and so has each namespace. Times are the
wall clock's.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.validators import namespace_of
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A value and its times.

    Attributes:
        value: what is stored.
        received: when its first holder got it from its owner.
        expires: until when it is served.
        renewed: when somebody stored it here last.
        sender: on whose account it is kept; None for this node itself.
    """

    value: bytes
    received: float
    expires: float
    renewed: float = 0.0
    sender: PeerId | None = None


class RecordStore:
    """Values by key, each until its expiry.

    Args:
        own: this node.
        max_records: values in all, and
        max_bytes: their bytes.
        max_records_per_peer: values on account of one sender, and
        max_bytes_per_peer: their bytes.
        shares: of the store that a namespace may fill, between 0 and 1; 1 by default.
    """

    def __init__(
        self,
        own: PeerId,
        *,
        max_records: int,
        max_bytes: int,
        max_records_per_peer: int,
        max_bytes_per_peer: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self._own = point(own)
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_records_per_peer = max_records_per_peer
        self._max_bytes_per_peer = max_bytes_per_peer
        self._shares = dict(shares or {})
        self._records: dict[bytes, StoredRecord] = {}
        # By namespace: (distance, key), the closest first.
        self._orders: dict[str, list[tuple[int, bytes]]] = {}
        self._sizes: Counter[str] = Counter()  # bytes by namespace
        self._sent: Counter[PeerId] = Counter()  # values by sender
        self._sent_bytes: Counter[PeerId] = Counter()
        self._expiries: list[tuple[float, bytes]] = []  # a heap; holds stale items too
        self.size = 0  # bytes of all values

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[bytes]:
        """List the keys."""
        return iter(self._records)

    def get(self, key: bytes, now: float) -> StoredRecord | None:
        """Return the record of `key` that has not expired, if there is one."""
        record = self._records.get(key)
        return record if record is not None and record.expires > now else None

    def put(self, key: bytes, record: StoredRecord, now: float) -> bool:
        """Keep `record` in place of what stood under `key`; False when there is no room for it."""
        self.expire(now)
        before = self._records.get(key)
        self.remove(key)
        if record.expires > now and self._make_room(key, record):
            self._insert(key, record)
            return True
        if before is not None:
            self._insert(key, before)
        return False

    def remove(self, key: bytes) -> None:
        """Drop the record of `key`, if there is one."""
        record = self._records.pop(key, None)
        if record is None:
            return
        size, namespace = len(record.value), namespace_of(key)
        self.size -= size
        self._sizes[namespace] -= size
        order = self._orders[namespace]
        del order[bisect.bisect_left(order, (point(key) ^ self._own, key))]
        if record.sender is not None:
            self._sent[record.sender] -= 1
            self._sent_bytes[record.sender] -= size
            if not self._sent[record.sender]:
                del self._sent[record.sender], self._sent_bytes[record.sender]

    def next_expiry(self) -> float:
        """Return when `expire` may have something to do; infinity for never."""
        return self._expiries[0][0] if self._expiries else float("inf")

    def expire(self, now: float) -> None:
        """Drop the records whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            _, key = heapq.heappop(self._expiries)
            record = self._records.get(key)
            if record is not None and record.expires <= now:
                self.remove(key)

    def _make_room(self, key: bytes, record: StoredRecord) -> bool:
        """Drop records farther away than `key` until `record` fits; none where it would not."""
        size, sender, namespace = len(record.value), record.sender, namespace_of(key)
        if sender is not None and (
            self._sent[sender] >= self._max_records_per_peer
            or self._sent_bytes[sender] + size > self._max_bytes_per_peer
        ):
            return False
        leaving = self._farther(key, namespace, size)
        for each in leaving or ():
            self.remove(each)
        return leaving is not None

    def _farther(self, key: bytes, namespace: str, size: int) -> list[bytes] | None:
        """List the keys, all farther away than `key`, that must go for it; None: too few would."""
        candidate = (point(key) ^ self._own, key)
        share = self._shares.get(namespace, 1.0)
        left = {name: len(order) for name, order in self._orders.items()}
        count, in_all = left.get(namespace, 0), len(self._records)
        own_bytes, all_bytes = self._sizes[namespace] + size, self.size + size
        leaving: list[bytes] = []
        while True:
            if count >= share * self._max_records or own_bytes > share * self._max_bytes:
                names = [namespace]
            elif in_all >= self._max_records or all_bytes > self._max_bytes:
                names = list(left)
            else:
                return leaving
            last = [(self._orders[name][left[name] - 1], name) for name in names if left.get(name)]
            if not last or max(last)[0] < candidate:
                return None
            (_, farthest), name = max(last)
            leaving.append(farthest)
            freed = len(self._records[farthest].value)
            left[name], in_all, all_bytes = left[name] - 1, in_all - 1, all_bytes - freed
            if name == namespace:
                count, own_bytes = count - 1, own_bytes - freed

    def _insert(self, key: bytes, record: StoredRecord) -> None:
        size, namespace = len(record.value), namespace_of(key)
        self._records[key] = record
        self.size += size
        self._sizes[namespace] += size
        bisect.insort(self._orders.setdefault(namespace, []), (point(key) ^ self._own, key))
        if record.sender is not None:
            self._sent[record.sender] += 1
            self._sent_bytes[record.sender] += size
        heapq.heappush(self._expiries, (record.expires, key))
        if len(self._expiries) > 2 * len(self._records) + 64:  # mostly stale: start afresh
            self._expiries = [(each.expires, name) for name, each in self._records.items()]
            heapq.heapify(self._expiries)
