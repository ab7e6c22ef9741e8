"""The routing table: k-buckets with replacement caches, the least recently seen first.

Source: Maymounkov and Mazières, Kademlia (2002), 2.2 and 4.1; libp2p/specs, kad-dht. Bucket i holds
the peers whose points share exactly i leading bits with our own.

Rules:
- A peer that is heard of again moves to the fresh end of its bucket.
- A newcomer to a full bucket waits in the bucket's replacement cache. If the bucket's least
  recently seen peer gave no sign of life for a while, it is named, so that the caller can ask it.
- A peer that fails is removed, and the freshest one in waiting takes its place.
"""

import heapq
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from p2pnode.protocols.kad.keys import KEY_BITS, MAX_RANDOM_PREFIX, common_prefix, point
from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class _Bucket:
    seen: OrderedDict[PeerId, float] = field(default_factory=OrderedDict)  # the stalest first
    waiting: OrderedDict[PeerId, float] = field(default_factory=OrderedDict)
    refreshed: float = float("-inf")  # when a look-up last went through the bucket's range


class RoutingTable:
    """The peers a node may ask, at most `bucket_size` for each distance range.

    A peer heard of within `trust` seconds is not doubted when a newcomer wants its place.
    """

    def __init__(self, own: PeerId, *, bucket_size: int, trust: float) -> None:
        self.own = point(own)
        self._own_id = own
        self._size = bucket_size
        self._trust = trust
        self._buckets: dict[int, _Bucket] = {}
        self._count = 0

    def __len__(self) -> int:
        """Count the peers, without those in waiting."""
        return self._count

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(common_prefix(self.own, point(peer)))
        return bucket is not None and peer in bucket.seen

    def __iter__(self) -> Iterator[PeerId]:
        for bucket in self._buckets.values():
            yield from bucket.seen

    def knows(self, peer: PeerId) -> bool:
        """Tell whether a peer is in the table or waits for a place in it."""
        bucket = self._buckets.get(common_prefix(self.own, point(peer)))
        return bucket is not None and (peer in bucket.seen or peer in bucket.waiting)

    def receive_alive(self, peer: PeerId, now: float) -> PeerId | None:
        """Note a sign of life of a peer that serves the protocol.

        Returns:
            The peer to ask for a sign of life, if `peer` wants its place in a full bucket.
        """
        if peer == self._own_id:
            return None
        bucket = self._buckets.setdefault(common_prefix(self.own, point(peer)), _Bucket())
        if peer in bucket.seen or len(bucket.seen) < self._size:
            self._count += peer not in bucket.seen
            bucket.waiting.pop(peer, None)
            bucket.seen[peer] = now
            bucket.seen.move_to_end(peer)
            return None
        bucket.waiting[peer] = now
        bucket.waiting.move_to_end(peer)
        if len(bucket.waiting) > self._size:
            bucket.waiting.popitem(last=False)
        stalest, seen = next(iter(bucket.seen.items()))
        return stalest if seen <= now - self._trust else None

    def remove(self, peer: PeerId) -> bool:
        """Drop a peer that failed or stopped serving; one in waiting takes its place."""
        bucket = self._buckets.get(common_prefix(self.own, point(peer)))
        if bucket is None:
            return False
        bucket.waiting.pop(peer, None)
        if bucket.seen.pop(peer, None) is None:
            return False
        self._count -= 1
        if bucket.waiting:
            successor, when = bucket.waiting.popitem(last=True)
            bucket.seen[successor] = when
            self._count += 1
        return True

    def closest(self, target: int, count: int, without: Container[PeerId] = ()) -> list[PeerId]:
        """List the `count` peers closest to `target`, the closest first."""
        candidates = (peer for peer in self if peer not in without)
        return heapq.nsmallest(count, candidates, key=lambda peer: point(peer) ^ target)

    def unheard(self, now: float, age: float) -> list[PeerId]:
        """List the peers that gave no sign of life for `age` seconds, the stalest first."""
        found = [
            (when, peer)
            for bucket in self._buckets.values()
            for peer, when in bucket.seen.items()
            if when <= now - age
        ]
        return [peer for _, peer in sorted(found)]

    def receive_lookup(self, target: int, now: float) -> None:
        """Note that a look-up of `target` has just refreshed its range."""
        shared = min(common_prefix(self.own, target), KEY_BITS - 1)
        self._buckets.setdefault(shared, _Bucket()).refreshed = now

    def due_for_refresh(self, now: float, age: float) -> list[int]:
        """List the ranges, by shared leading bits, that no look-up went through for `age` seconds.

        Ranges beyond the deepest one that holds a peer are as good as empty: the look-up of our own
        id, which every refresh includes, covers them all.
        """
        deepest = max((bits for bits, bucket in self._buckets.items() if bucket.seen), default=-1)
        return [
            bits
            for bits in range(min(deepest, MAX_RANDOM_PREFIX) + 1)
            if bits not in self._buckets or self._buckets[bits].refreshed <= now - age
        ]
