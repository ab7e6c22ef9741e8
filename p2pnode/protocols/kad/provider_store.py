"""Who provides what, as providers themselves say. Times are the wall clock's.

A full store keeps what was renewed last; a peer that provides more keys than its share displaces
its own oldest ones, nobody else's. Of a provider's addresses as many are kept as fit into
`MAX_CONTACT_BYTES`, so that the store is bounded in bytes, too.
"""

import heapq
from collections import OrderedDict
from typing import Final

from p2pnode.protocols.kad.messages import Contact
from p2pnode.wire.peer_id import PeerId

MAX_CONTACT_BYTES: Final = 1024  # honest ones take some hundreds


class ProviderStore:
    """Providers by key, each until its expiry."""

    def __init__(
        self, *, max_keys: int, max_per_key: int, max_keys_per_peer: int, max_providers: int
    ) -> None:
        self._max_keys = max_keys
        self._max_providers = max_providers  # of all keys
        self._max_per_key = max_per_key
        self._max_keys_per_peer = max_keys_per_peer
        self._keys: OrderedDict[bytes, OrderedDict[PeerId, tuple[Contact, float]]] = OrderedDict()
        self._of_peer: dict[PeerId, OrderedDict[bytes, None]] = {}  # the longest unrenewed first
        self._expiries: list[tuple[float, bytes, PeerId]] = []  # a heap; holds stale items too
        self._count = 0

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._keys)

    def add(self, key: bytes, contact: Contact, expires: float) -> None:
        """Note a provider; the longest unrenewed makes room when there are too many."""
        peer = contact.peer_id
        self._drop(key, peer)
        self._keys.setdefault(key, OrderedDict())[peer] = (_cut(contact), expires)
        self._keys.move_to_end(key)
        self._of_peer.setdefault(peer, OrderedDict())[key] = None
        self._count += 1
        if len(self._keys[key]) > self._max_per_key:
            self._drop(key, next(iter(self._keys[key])))
        if len(self._of_peer[peer]) > self._max_keys_per_peer:
            self._drop(next(iter(self._of_peer[peer])), peer)
        if len(self._keys) > self._max_keys:
            oldest = next(iter(self._keys))
            for each in list(self._keys[oldest]):
                self._drop(oldest, each)
        if self._count > self._max_providers:
            oldest = next(iter(self._keys))
            self._drop(oldest, next(iter(self._keys[oldest])))
        heapq.heappush(self._expiries, (expires, key, peer))
        if len(self._expiries) > 2 * self._count + 64:  # mostly stale: start afresh
            self._expiries = [
                (until, name, who)
                for name, providers in self._keys.items()
                for who, (_, until) in providers.items()
            ]
            heapq.heapify(self._expiries)

    def get(self, key: bytes, now: float) -> list[Contact]:
        """List the providers of `key` that have not expired, the latest renewed first."""
        providers = self._keys.get(key) or OrderedDict()
        return [contact for contact, expires in reversed(providers.values()) if expires > now]

    def next_expiry(self) -> float:
        """Return when `expire` may have something to do; infinity for never."""
        return self._expiries[0][0] if self._expiries else float("inf")

    def expire(self, now: float) -> None:
        """Drop the providers whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            _, key, peer = heapq.heappop(self._expiries)
            providers = self._keys.get(key)
            if providers and peer in providers and providers[peer][1] <= now:
                self._drop(key, peer)

    def _drop(self, key: bytes, peer: PeerId) -> None:
        providers = self._keys.get(key)
        if providers is None or providers.pop(peer, None) is None:
            return
        self._count -= 1
        if not providers:
            del self._keys[key]
        del self._of_peer[peer][key]
        if not self._of_peer[peer]:
            del self._of_peer[peer]


def _cut(contact: Contact) -> Contact:
    """Leave out the addresses for which there is no room."""
    if len(contact.prefixed) <= MAX_CONTACT_BYTES:
        return contact
    kept, size = [], len(contact.peer_id)
    for address in contact.addresses:
        size += len(address.to_bytes())
        if size > MAX_CONTACT_BYTES:
            break
        kept.append(address)
    return Contact(contact.peer_id, tuple(kept), contact.connected)
