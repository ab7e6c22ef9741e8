"""The routing table: k-buckets with replacement caches, the least recently heard of first.

Source: Maymounkov and Mazières, Kademlia (2002), 2.2 and 4.1; libp2p/specs, kad-dht. Bucket i holds
the peers whose points share exactly i leading bits with our own.

Rules:
- A peer that is heard of again moves to the fresh end of its bucket.
- A newcomer to a full bucket waits in the bucket's replacement cache. If the bucket's least
  recently heard peer gave no sign of life for a while, it is named, so that the caller can ask it.
- So does a newcomer whose network has as many peers in the bucket, or the table, as it may have.
- A peer that fails is removed, and the freshest one in waiting takes its place.
"""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Final

from p2pnode.protocols.kad.keys import KEY_BITS, MAX_RANDOM_PREFIX, common_prefix, point
from p2pnode.wire.peer_id import PeerId

_UNLIMITED: Final = 2**31


@dataclass(slots=True)
class _Entry:
    point: int
    heard: float
    group: bytes | None


@dataclass(slots=True)
class _Bucket:
    seen: dict[PeerId, _Entry] = field(default_factory=dict)  # the stalest first
    waiting: dict[PeerId, _Entry] = field(default_factory=dict)

    def count(self, group: bytes) -> int:
        return sum(entry.group == group for entry in self.seen.values())


class RoutingTable:
    """The peers a node may ask, at most `bucket_size` for each distance range.

    Args:
        own: this node.
        bucket_size: k.
        trust: a peer heard of within so many seconds is not doubted when a newcomer wants its
            place.
        max_per_group: peers of one network in the table, and
        max_per_group_in_bucket: in one bucket; peers of no group are not limited.
    """

    def __init__(
        self,
        own: PeerId,
        *,
        bucket_size: int,
        trust: float,
        max_per_group: int = _UNLIMITED,
        max_per_group_in_bucket: int = _UNLIMITED,
    ) -> None:
        self.own = point(own)
        self._own_id = own
        self._size = bucket_size
        self._trust = trust
        self._max_per_group = max_per_group
        self._max_per_group_in_bucket = max_per_group_in_bucket
        self._buckets: dict[int, _Bucket] = {}
        self._order: list[int] = []  # the numbers of all buckets, the deepest first
        self._refreshed: dict[int, float] = {}  # when a look-up last went through a range
        self._groups: Counter[bytes] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """Count the peers, without those in waiting."""
        return self._count

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._bucket_of(peer)
        return bucket is not None and peer in bucket.seen

    def __iter__(self) -> Iterator[PeerId]:
        for bucket in self._buckets.values():
            yield from bucket.seen

    def knows(self, peer: PeerId) -> bool:
        """Tell whether a peer is in the table or waits for a place in it."""
        bucket = self._bucket_of(peer)
        return bucket is not None and (peer in bucket.seen or peer in bucket.waiting)

    def heard_of(self, peer: PeerId) -> float:
        """Return when a peer of the table was last heard of; minus infinity for others."""
        bucket = self._bucket_of(peer)
        entry = bucket.seen.get(peer) if bucket else None
        return entry.heard if entry else float("-inf")

    def group_of(self, peer: PeerId) -> bytes | None:
        """Return the network that a peer in the table counts for."""
        bucket = self._bucket_of(peer)
        entry = bucket.seen.get(peer) if bucket else None
        return entry.group if entry else None

    def heard(self) -> Iterator[tuple[PeerId, float]]:
        """List the peers, each with the time of its last sign of life."""
        for bucket in self._buckets.values():
            for peer, entry in bucket.seen.items():
                yield peer, entry.heard

    def is_full(self, bits: int) -> bool:
        """Tell whether the range of peers that share exactly `bits` leading bits has no room."""
        bucket = self._buckets.get(bits)
        return bucket is not None and len(bucket.seen) >= self._size

    # --- inputs ---------------------------------------------------------------------------------

    def renew(self, peer: PeerId, now: float) -> bool:
        """Note a sign of life of a peer of the table; False when it is none."""
        bucket = self._bucket_of(peer)
        entry = bucket.seen.pop(peer, None) if bucket else None
        if bucket is None or entry is None:
            return False
        entry.heard = max(entry.heard, now)
        bucket.seen[peer] = entry
        return True

    def receive_alive(self, peer: PeerId, now: float, group: bytes | None = None) -> PeerId | None:
        """Note a sign of life of a peer that serves the protocol; `group` is its network.

        Returns:
            The peer to ask for a sign of life, if `peer` wants its place.
        """
        if peer == self._own_id or self.renew(peer, now):
            return None
        where = point(peer)
        bits = common_prefix(self.own, where)
        bucket = self._buckets.get(bits)
        if bucket is None:
            bucket = self._buckets[bits] = _Bucket()
            self._order = sorted(self._buckets, reverse=True)
        bucket.waiting.pop(peer, None)
        entry = _Entry(where, now, group)
        if self._admits(bucket, entry):
            self._insert(bucket, peer, entry)
            return None
        bucket.waiting[peer] = entry
        if len(bucket.waiting) > self._size:
            del bucket.waiting[next(iter(bucket.waiting))]
        return self._doubtful(bucket, entry, now)

    def remove(self, peer: PeerId) -> list[PeerId] | None:
        """Drop a peer that failed or stopped serving; one in waiting takes its place.

        Returns:
            Who has taken the place, if anybody; None when the peer had none.
        """
        bucket = self._bucket_of(peer)
        if bucket is None:
            return None
        bucket.waiting.pop(peer, None)
        entry = bucket.seen.pop(peer, None)
        if entry is None:
            return None
        self._count -= 1
        if entry.group is not None:
            self._groups[entry.group] -= 1
            if not self._groups[entry.group]:
                del self._groups[entry.group]
        for successor in reversed(bucket.waiting):
            if self._admits(bucket, bucket.waiting[successor]):
                self._insert(bucket, successor, bucket.waiting.pop(successor))
                return [successor]
        return []

    def receive_lookup(self, target: int, now: float) -> None:
        """Note that a look-up of `target` has just refreshed its range."""
        self._refreshed[min(common_prefix(self.own, target), KEY_BITS - 1)] = now

    # --- outputs --------------------------------------------------------------------------------

    def closest(self, target: int, count: int) -> list[PeerId]:
        """List the `count` peers closest to `target`, a point, the closest first."""
        found: list[tuple[int, PeerId, float]] = []
        for near in self.by_distance(target):
            found += near
            if len(found) >= count:
                break
        return [peer for _, peer, _ in found[:count]]

    def by_distance(self, target: int) -> Iterator[list[tuple[int, PeerId, float]]]:
        """List all peers, range by range, the closest to `target` first.

        Of each: its distance, who it is, and its last sign of life.
        """
        for bucket in self._by_distance(target):
            seen = bucket.seen.items()
            yield sorted([(entry.point ^ target, peer, entry.heard) for peer, entry in seen])

    def is_closest(self, target: int, without: Container[PeerId] = ()) -> bool:
        """Tell whether no peer of the table is closer to `target` than this node itself."""
        bits = common_prefix(self.own, target)
        distance = self.own ^ target
        return not any(
            entry.point ^ target < distance and peer not in without
            for number in self._order
            if number >= bits
            for peer, entry in self._buckets[number].seen.items()
        )

    def due_for_refresh(self, now: float, age: float) -> list[int]:
        """List the ranges, by shared leading bits, that no look-up went through for `age` seconds.

        Ranges beyond the deepest one that holds a peer are as good as empty: the look-up of our own
        id, which every refresh includes, covers them all.
        """
        deepest = next((bits for bits in self._order if self._buckets[bits].seen), -1)
        return [
            bits
            for bits in range(min(deepest, MAX_RANDOM_PREFIX) + 1)
            if self._refreshed.get(bits, float("-inf")) <= now - age
        ]

    # --- buckets --------------------------------------------------------------------------------

    def _bucket_of(self, peer: PeerId) -> _Bucket | None:
        return self._buckets.get(common_prefix(self.own, point(peer)))

    def _by_distance(self, target: int) -> Iterator[_Bucket]:
        """List the buckets so that all peers of one are closer to `target` than of the next.

        Where the target differs from us in a bit, the peers who differ from us in it first agree
        with the target there: they are closer than all deeper ones. Where it does not, they are
        farther.
        """
        distance = self.own ^ target
        farther: list[_Bucket] = []
        for number in reversed(self._order):
            if distance >> (KEY_BITS - 1 - number) & 1:
                yield self._buckets[number]
            else:
                farther.append(self._buckets[number])
        yield from reversed(farther)

    def _admits(self, bucket: _Bucket, entry: _Entry) -> bool:
        if len(bucket.seen) >= self._size:
            return False
        return entry.group is None or (
            self._groups[entry.group] < self._max_per_group
            and bucket.count(entry.group) < self._max_per_group_in_bucket
        )

    def _insert(self, bucket: _Bucket, peer: PeerId, entry: _Entry) -> None:
        bucket.seen[peer] = entry
        self._count += 1
        if entry.group is not None:
            self._groups[entry.group] += 1

    def _doubtful(self, bucket: _Bucket, newcomer: _Entry, now: float) -> PeerId | None:
        """Name the stalest peer whose leaving would make room for `newcomer`."""
        full = len(bucket.seen) >= self._size
        crowded = newcomer.group is not None and bucket.count(newcomer.group) >= min(
            self._max_per_group_in_bucket, self._max_per_group
        )
        for peer, entry in bucket.seen.items():
            if crowded and entry.group != newcomer.group:
                continue
            if full or crowded:
                return peer if entry.heard <= now - self._trust else None
        return None
