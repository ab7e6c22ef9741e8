"""The values and provider records a node keeps for others, bounded in number, bytes and time.

A full record store keeps the keys closest to the node, which are those it is asked for; a full
provider store keeps what was renewed last. Times are the wall clock's.
"""

import bisect
import heapq
from collections import OrderedDict
from dataclasses import dataclass

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import Contact
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A value, when it came, and until when it is served (wall clock)."""

    value: bytes
    received: float
    expires: float


class RecordStore:
    """Values by key, each until its expiry."""

    def __init__(self, own: PeerId, *, max_records: int, max_bytes: int) -> None:
        self._own = point(own)
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: dict[bytes, StoredRecord] = {}
        self._order: list[tuple[int, bytes]] = []  # (distance, key), the closest first
        self._expiries: list[tuple[float, bytes]] = []  # a heap; holds stale items too
        self.size = 0  # bytes of all values

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: bytes, now: float) -> StoredRecord | None:
        """Return the record of `key` that has not expired, if there is one."""
        record = self._records.get(key)
        return record if record is not None and record.expires > now else None

    def put(self, key: bytes, record: StoredRecord, now: float) -> bool:
        """Keep `record` in place of what stood under `key`; False when there is no room for it."""
        self.expire(now)
        before = self._records.get(key)
        self.remove(key)
        if record.expires > now and self._make_room(key, len(record.value)):
            self._insert(key, record)
            return True
        if before is not None:
            self._insert(key, before)
        return False

    def remove(self, key: bytes) -> None:
        """Drop the record of `key`, if there is one."""
        record = self._records.pop(key, None)
        if record is not None:
            self.size -= len(record.value)
            del self._order[bisect.bisect_left(self._order, (point(key) ^ self._own, key))]

    def expire(self, now: float) -> None:
        """Drop the records whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            _, key = heapq.heappop(self._expiries)
            record = self._records.get(key)
            if record is not None and record.expires <= now:
                self.remove(key)

    def _make_room(self, key: bytes, size: int) -> bool:
        """Drop records farther away than `key` until one of `size` bytes fits."""
        candidate = (point(key) ^ self._own, key)
        while len(self._records) >= self._max_records or self.size + size > self._max_bytes:
            if not self._order or self._order[-1] < candidate:
                return False
            self.remove(self._order[-1][1])
        return True

    def _insert(self, key: bytes, record: StoredRecord) -> None:
        self._records[key] = record
        self.size += len(record.value)
        bisect.insort(self._order, (point(key) ^ self._own, key))
        heapq.heappush(self._expiries, (record.expires, key))
        if len(self._expiries) > 2 * len(self._records) + 64:  # mostly stale: start afresh
            self._expiries = [(each.expires, name) for name, each in self._records.items()]
            heapq.heapify(self._expiries)


class ProviderStore:
    """Who provides what, each provider until its expiry."""

    def __init__(self, *, max_keys: int, max_per_key: int) -> None:
        self._max_keys = max_keys
        self._max_per_key = max_per_key
        self._keys: OrderedDict[bytes, OrderedDict[PeerId, tuple[Contact, float]]] = OrderedDict()

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._keys)

    def add(self, key: bytes, contact: Contact, expires: float) -> None:
        """Note a provider; the longest unrenewed makes room when there are too many."""
        providers = self._keys.setdefault(key, OrderedDict())
        self._keys.move_to_end(key)
        providers[contact.peer_id] = (contact, expires)
        providers.move_to_end(contact.peer_id)
        if len(providers) > self._max_per_key:
            providers.popitem(last=False)
        if len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)

    def get(self, key: bytes, now: float) -> list[Contact]:
        """List the providers of `key` that have not expired, the latest renewed first."""
        providers = self._keys.get(key) or OrderedDict()
        return [contact for contact, expires in reversed(providers.values()) if expires > now]

    def expire(self, now: float) -> None:
        """Drop the providers whose time is over."""
        for key in list(self._keys):
            providers = self._keys[key]
            for peer in [peer for peer, (_, expires) in providers.items() if expires <= now]:
                del providers[peer]
            if not providers:
                del self._keys[key]
