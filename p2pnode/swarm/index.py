"""The index of live experts: signed entries in each record, merged wherever they meet.

A record's value is a msgpack list of entries. What counts is, for each peer and coordinate, the
entry of that peer that was issued last and names the coordinate; it serves it or withdraws it. Of
each coordinate the freshest such places are kept, at most `Bounds.per_coordinate`, and of all
coordinates together `Bounds.places`: each coordinate's freshest first, then each one's second, and
so on. An entry stays while it holds any place.

So the order and grouping of merges make no difference, no coordinate can crowd out another one,
who dies is displaced by who lives within an update period, and a peer id made to measure gains
nothing. `docs/decisions` has the bounds on what a flood can do.

In a closed run every entry must prove membership, and ends with it. The run's id is the owner's
public key, so any DHT server can check that without knowing the run.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgpack

from p2pnode.errors import P2PNodeError, ProtocolError
from p2pnode.protocols.kad.validators import Validator
from p2pnode.swarm.entries import Entry, open_entry
from p2pnode.swarm.places import SPAN, Kind, Place, bits_of, place_of
from p2pnode.wire.packing import unpack
from p2pnode.wire.peer_id import PeerId

MAX_SKEW: Final = 3.0  # seconds by which another machine's clock may be ahead
_MAX_OPENED: Final = 16_384  # verified entries remembered: an entry is met many times
_MAX_PROOFS: Final = 4096
_MAX_VALUES: Final = 16  # read lately; a value has up to 1000 entries

VerifyMembership = Callable[[bytes, str, PeerId, float], float]
"""Takes (token, run id, peer, now); returns when the token expires, or raises P2PNodeError."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a record is kept, in places: one peer's word about one coordinate."""

    per_coordinate: int
    places: int


# With the bounds of an entry, a record has at most 500 kB. Two peers that say a branch is alive
# are enough: nobody can deny it, and others are as fresh within an update period.
BRANCHES: Final = Bounds(per_coordinate=2, places=256)
OPEN_HOSTS: Final = Bounds(per_coordinate=128, places=1000)
CLOSED_HOSTS: Final = Bounds(per_coordinate=128, places=384)

Opened = tuple[Entry, bytes]  # an entry, and how it was signed


def bounds_of(place: Place) -> Bounds:
    """Return how much of a record is kept."""
    if place.kind is Kind.BRANCHES:
        return BRANCHES
    return OPEN_HOSTS if place.is_open else CLOSED_HOSTS


def encode_index(sealed: Sequence[bytes]) -> bytes:
    """Return the DHT value that holds these entries."""
    packed: bytes = msgpack.packb(list(sealed))
    return packed


def decode_index(place: Place, value: bytes) -> list[bytes]:
    """Split a DHT value into its entries.

    Raises:
        ProtocolError: it is malformed, or holds more entries than any merge leaves.
    """
    sealed = unpack(value, "an index value")
    if not isinstance(sealed, list) or not all(isinstance(each, bytes) for each in sealed):
        raise ProtocolError("an index value is not a list of entries")
    if len(sealed) > (most := bounds_of(place).places):
        raise ProtocolError(f"an index value holds {len(sealed)} entries, above {most}")
    return sealed


class EntryCache:
    """Entries whose signature was verified; nodes of one process may share it."""

    def __init__(self, limit: int = _MAX_OPENED) -> None:
        self._limit = limit
        self._opened: OrderedDict[bytes, tuple[Place, Entry]] = OrderedDict()
        self.verified = 0

    def __len__(self) -> int:
        return len(self._opened)

    def open(self, place: Place, sealed: bytes) -> Entry:
        """Read an entry, as `open_entry` does.

        Raises:
            ProtocolError: see there.
        """
        known, entry = self._opened.get(sealed, (None, None))
        if entry is None or known != place:
            entry = open_entry(place, sealed)
            self._opened[sealed] = (place, entry)
            self.verified += 1
            if len(self._opened) > self._limit:
                self._opened.popitem(last=False)
        return entry


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as it was read: entries that were verified, the freshest first."""

    place: Place
    opened: list[Opened]
    soonest: float  # when the first of them expires
    is_merged: bool  # whether a merge leaves it as it is until then


class IndexValidator(Validator):
    """The rules of the index: who may say what, and how entries merge.

    Args:
        verify: checks a proof of membership.
        cache: of verified entries; one of its own by default.
    """

    is_renewed = True

    def __init__(self, verify: VerifyMembership, cache: EntryCache | None = None) -> None:
        self._verify = verify
        self._cache = EntryCache() if cache is None else cache
        self._proofs: OrderedDict[tuple[bytes, str, PeerId], float] = OrderedDict()
        self._values: OrderedDict[bytes, _Value] = OrderedDict()

    def validate(self, key: bytes, value: bytes, now: float) -> None:
        """See `Validator`."""
        place = place_of(key)
        for sealed in decode_index(place, value):
            entry = self._cache.open(place, sealed)
            if entry.issued > now + MAX_SKEW:
                raise ProtocolError(
                    f"an index entry was issued {entry.issued - now:.1f} s in the future; one of"
                    " the clocks is wrong"
                )
            if entry.expiry > now:
                self._check_membership(place, entry, now)

    def merge(self, key: bytes, values: Sequence[bytes], now: float) -> bytes:
        """See `Validator`."""
        place = place_of(key)
        read = [self._read(place, value) for value in values]
        if len(read) == 1 and read[0].is_merged and now < read[0].soonest:
            return values[0]
        kept = _standing(_joined(read, now), bounds_of(place))
        if not kept:
            return b""
        merged = encode_index([sealed for (_, sealed), _ in kept])
        self._remember(merged, place, [opened for opened, _ in kept], is_merged=True)
        return merged

    def expires(self, key: bytes, value: bytes) -> float | None:
        """See `Validator`: when its last entry does."""
        opened = self._read(place_of(key), value).opened
        return max((entry.expiry for entry, _ in opened), default=0.0)

    def lacks(self, key: bytes, held: bytes | None, best: bytes, now: float) -> bool:
        """See `Validator`: fewer live hosts count, or one withdrawn; a missed renewal does not."""
        ours = self.standing(key, held, now) if held else []
        alive = Counter(bit for entry, places in ours for bit in bits_of(places & entry.served))
        served: dict[PeerId, int] = {}
        for entry, places in ours:
            served[entry.peer_id] = served.get(entry.peer_id, 0) | places & entry.served
        found: Counter[int] = Counter()
        for entry, places in self.standing(key, best, now):
            found.update(bits_of(places & entry.served))
            if served.get(entry.peer_id, 0) & places & entry.withdrawn:
                return True
        return any(found[bit] > alive[bit] for bit in found)

    def standing(self, key: bytes, value: bytes, now: float) -> list[tuple[Entry, int]]:
        """List the entries of a valid value, the freshest first, with the places each holds."""
        place = place_of(key)
        kept = _standing(_joined([self._read(place, value)], now), bounds_of(place))
        return [(entry, places) for (entry, _), places in kept]

    def _read(self, place: Place, value: bytes) -> _Value:
        """Open a value's entries, or recall them: the same one is merged into again and again."""
        found = self._values.get(value)
        if found is None or found.place != place:
            sealed = decode_index(place, value)
            opened = [(self._cache.open(place, each), each) for each in sealed]
            found = self._remember(value, place, opened, is_merged=False)
        return found

    def _remember(
        self, value: bytes, place: Place, opened: list[Opened], *, is_merged: bool
    ) -> _Value:
        soonest = min((entry.expiry for entry, _ in opened), default=math.inf)
        found = self._values[value] = _Value(place, opened, soonest, is_merged)
        self._values.move_to_end(value)
        if len(self._values) > _MAX_VALUES:
            self._values.popitem(last=False)
        return found

    def _check_membership(self, place: Place, entry: Entry, now: float) -> None:
        if place.is_open:
            if entry.token:
                raise ProtocolError("an index entry of an open run carries a token")
            return
        proof = (entry.token, place.run_id, entry.peer_id)
        until = self._proofs.get(proof)
        if until is None or until <= now:
            try:
                until = self._verify(*proof, now)
            except P2PNodeError as error:
                raise ProtocolError(f"an index entry proves no membership: {error}") from error
            self._proofs[proof] = until
            if len(self._proofs) > _MAX_PROOFS:
                self._proofs.popitem(last=False)
        if entry.expiry > until:
            raise ProtocolError("an index entry outlives its membership")


def _joined(values: Iterable[_Value], now: float) -> list[Opened]:
    """Return the entries of all values that have not expired, each once, the freshest first."""
    distinct = {
        sealed: (entry, sealed)
        for value in values
        for entry, sealed in value.opened
        if entry.expiry > now
    }
    return sorted(distinct.values(), key=lambda each: (each[0].issued, each[1]), reverse=True)


def _standing(order: Iterable[Opened], bounds: Bounds) -> list[tuple[Opened, int]]:
    """Choose the places that stand, and return who holds any, and which.

    Takes time in proportion to the coordinates named; a place's rank is the number of fresher
    ones of its coordinate.

    Args:
        order: entries, the freshest first.
        bounds: how many places stand.
    """
    named: dict[PeerId, int] = {}  # coordinates that a fresher entry of the peer speaks of
    count = [0] * SPAN
    ranked: list[tuple[Opened, list[tuple[int, int]]]] = []
    taken = [0] * bounds.per_coordinate  # places of each rank
    for opened in order:
        entry, _ = opened
        before = named.get(entry.peer_id, 0)
        says = entry.served | entry.withdrawn
        named[entry.peer_id] = before | says
        places = []
        for bit in bits_of(says & ~before):
            rank = count[bit]
            if rank < bounds.per_coordinate:
                count[bit] = rank + 1
                taken[rank] += 1
                places.append((rank, bit))
        if places:
            ranked.append((opened, places))
    full, left = _last_rank(taken, bounds.places)
    found = []
    for opened, places in ranked:
        standing = 0
        for rank, bit in places:
            if rank < full or (rank == full and left > 0):
                left -= rank == full
                standing |= 1 << bit
        if standing:
            found.append((opened, standing))
    return found


def _last_rank(taken: Sequence[int], limit: int) -> tuple[int, int]:
    """Return the first rank that does not fit whole, and how many of its places do."""
    left = limit
    for rank, places in enumerate(taken):
        if places > left:
            return rank, left
        left -= places
    return len(taken), 0
