"""What is known of peers: addresses by who said so, keys, signed records and protocols. Pure.

| origin | who says so | kept for |
|---|---|---|
| told | other peers: the DHT, discovery | what the teller gives it |
| identified | the peer itself, unsigned | `identified_address_ttl` |
| certified | its newest signed record | `certified_address_ttl` |
| connected | a dial that reached it there | `connected_address_ttl` |
| configured | this node's owner | for ever |

Times count from the last word about an address, and while a peer is connected nothing of it
expires. A signed record replaces what the peer said before, signed or not, unless its sequence
number is lower than that of the one known. What it says unsigned afterwards stands beside it: the
connection proves who speaks, but nobody else can be shown it.

Bounded in peers, in addresses for each, and in bytes. Of one peer's addresses the least founded
ones go first; of peers first those that are known by hearsay only, then those met, each time the
one heard of longest ago. So strangers who tell of thousands of peers push out hearsay, and neither
what peers say of themselves nor whom we met. Peers connected or configured stay.

Durations are by trio's clock, given as `now`. (go-libp2p's certified address book is the model.)
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import InvalidKeyError
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId

# What Python keeps besides the bytes themselves, as measured: an address, a protocol, a peer.
_ADDRESS_OVERHEAD: Final = 170
_PROTOCOL_OVERHEAD: Final = 100
_PEER_OVERHEAD: Final = 850

MAX_EXPIRED_AT_ONCE: Final = 1000  # entries; some milliseconds of work


class Origin(IntEnum):
    """Who says that an address is a peer's; the better founded, the higher."""

    TOLD = 0
    IDENTIFIED = 1
    CERTIFIED = 2
    CONNECTED = 3


@dataclass(frozen=True, slots=True)
class KnownAddress:
    """How well an address is founded, and until when it is kept."""

    origin: Origin
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """What of one peer outlives the process; expiries are by the wall clock."""

    addresses: Mapping[Multiaddr, KnownAddress]
    preferred: Multiaddr | None = None
    key: PublicKey | None = None
    record: bytes | None = None
    seq: int = 0


class _Standing(IntEnum):
    HEARSAY = 0
    MET = 1
    KEPT = 2


class _Entry:
    __slots__ = (
        "addresses",
        "configured",
        "expires",
        "key",
        "pinned",
        "preferred",
        "protocols",
        "record",
        "seq",
        "size",
        "standing",
    )

    def __init__(self) -> None:
        self.addresses: dict[Multiaddr, KnownAddress] = {}
        self.configured: dict[Multiaddr, None] = {}
        self.preferred: Multiaddr | None = None  # the one that worked last
        self.protocols: frozenset[str] = frozenset()
        self.key: PublicKey | None = None  # only where the peer id does not hold it
        self.record: bytes | None = None  # the envelope, to be handed on as it came
        self.seq = 0
        self.pinned = False
        self.standing = _Standing.HEARSAY
        self.size = 0
        self.expires = math.inf  # when something of it does

    def measure(self) -> int:
        size = _PEER_OVERHEAD + len(self.record or b"")
        size += len(self.key.protobuf) if self.key else 0
        size += sum(_PROTOCOL_OVERHEAD + len(each) for each in self.protocols)
        for each in (*self.addresses, *self.configured):
            size += _ADDRESS_OVERHEAD + len(each.to_bytes())
        return size

    def next_expiry(self) -> float:
        if self.pinned or (self.configured and not self.addresses):
            return math.inf
        return min((known.until for known in self.addresses.values()), default=-math.inf)

    def rate(self) -> _Standing:
        if self.pinned or self.configured:
            return _Standing.KEPT
        met = self.key or self.record or self.protocols
        if met or any(each.origin is not Origin.TOLD for each in self.addresses.values()):
            return _Standing.MET
        return _Standing.HEARSAY


class Peerstore:
    """The known peers."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._lifetimes = {
            Origin.IDENTIFIED: settings.identified_address_ttl,
            Origin.CERTIFIED: settings.certified_address_ttl,
            Origin.CONNECTED: settings.connected_address_ttl,
        }
        self._longest = max(self._lifetimes.values())
        self._entries: dict[PeerId, _Entry] = {}
        self._ages: dict[_Standing, OrderedDict[PeerId, None]] = {
            each: OrderedDict() for each in _Standing
        }
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._entries)

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return self._size

    # --- addresses ------------------------------------------------------------------------------

    def add_addresses(
        self, peer_id: PeerId, addresses: Iterable[Multiaddr], ttl: float, now: float
    ) -> None:
        """Note what others tell, until `now + ttl`, or longer where more is known."""
        self._note(peer_id, addresses, Origin.TOLD, now + ttl)

    def identify(self, peer_id: PeerId, addresses: Iterable[Multiaddr], now: float) -> None:
        """Note what a peer says of itself, unsigned."""
        until = now + self._lifetimes[Origin.IDENTIFIED]
        self._note(peer_id, addresses, Origin.IDENTIFIED, until)

    def certify(
        self, peer_id: PeerId, seq: int, addresses: Iterable[Multiaddr], record: bytes, now: float
    ) -> bool:
        """Take in a peer's signed record; returns whether it counts, being no older than ours.

        Args:
            peer_id: whose it is.
            seq: of the record.
            addresses: those of its addresses that are of use here.
            record: the envelope, its signature verified, and signed by the peer.
            now: trio's clock.
        """
        entry = self._entries.get(peer_id) or _Entry()
        if entry.record is not None and seq < entry.seq:
            return False
        replaced = {Origin.IDENTIFIED, Origin.CERTIFIED}
        entry.addresses = {
            address: known
            for address, known in entry.addresses.items()
            if known.origin not in replaced
        }
        entry.record = record
        entry.seq = seq
        self._entries[peer_id] = entry
        self._add(entry, addresses, Origin.CERTIFIED, now + self._lifetimes[Origin.CERTIFIED])
        self._settle(peer_id, entry)
        return True

    def configure(self, peer_id: PeerId, addresses: Iterable[Multiaddr]) -> None:
        """Keep addresses that this node's owner gave, and their peer, for as long as it runs."""
        entry = self._entries.setdefault(peer_id, _Entry())
        entry.configured.update(dict.fromkeys(addresses))
        self._settle(peer_id, entry)

    def prefer(self, peer_id: PeerId, address: Multiaddr, now: float) -> None:
        """Note that `address` has just worked: it is tried first from now on."""
        entry = self._entries.setdefault(peer_id, _Entry())
        self._add(entry, [address], Origin.CONNECTED, now + self._lifetimes[Origin.CONNECTED])
        entry.preferred = address
        self._settle(peer_id, entry)

    def forget_address(self, peer_id: PeerId, address: Multiaddr) -> None:
        """Drop an address that proved to be somebody else's, unless it is configured."""
        entry = self._entries.get(peer_id)
        if entry is not None and entry.addresses.pop(address, None) is not None:
            if entry.preferred == address:
                entry.preferred = None
            self._settle(peer_id, entry)

    def addresses_of(self, peer_id: PeerId, now: float, *, hearsay: bool = True) -> list[Multiaddr]:
        """Return the addresses that have not expired: the one that worked last, then by origin.

        Args:
            peer_id: whose.
            now: trio's clock.
            hearsay: also those that only others tell of.
        """
        entry = self._entries.get(peer_id)
        if entry is None:
            return []
        live = {
            address: known.origin
            for address, known in entry.addresses.items()
            if (entry.pinned or known.until > now) and (hearsay or known.origin is not Origin.TOLD)
        }
        live |= dict.fromkeys(entry.configured, Origin.CONNECTED)
        return sorted(live, key=lambda each: (each != entry.preferred, -live[each]))

    def preferred_of(self, peer_id: PeerId) -> Multiaddr | None:
        """Return the address at which a peer was reached last."""
        entry = self._entries.get(peer_id)
        return entry.preferred if entry else None

    def met(self, limit: int, now: float) -> list[PeerId]:
        """List up to `limit` peers met before that can be dialled, none of them connected now.

        Those that this node reached itself come first, and among equals the one heard of last.
        """
        newest = reversed(self._ages[_Standing.MET])
        found = [each for each in newest if self.addresses_of(each, now)]
        return sorted(found, key=lambda each: self.preferred_of(each) is None)[:limit]

    # --- other facts ----------------------------------------------------------------------------

    def set_protocols(self, peer_id: PeerId, protocols: Collection[str]) -> None:
        """Note what a peer says it serves."""
        entry = self._entries.setdefault(peer_id, _Entry())
        entry.protocols = frozenset(protocols)
        self._settle(peer_id, entry)

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """Return what a peer last said it serves."""
        entry = self._entries.get(peer_id)
        return entry.protocols if entry else frozenset()

    def set_key(self, peer_id: PeerId, key: PublicKey) -> None:
        """Keep a peer's public key, where its id does not hold it already (RSA, ECDSA)."""
        if peer_id.inline_key_bytes is None:
            entry = self._entries.setdefault(peer_id, _Entry())
            entry.key = key
            self._settle(peer_id, entry)

    def public_key_of(self, peer_id: PeerId) -> PublicKey | None:
        """Return a peer's public key, from its id or as it was proved on a connection."""
        if (inline := peer_id.inline_key_bytes) is not None:
            try:
                return PublicKey.from_bytes(inline)
            except InvalidKeyError:
                return None
        entry = self._entries.get(peer_id)
        return entry.key if entry else None

    def record_of(self, peer_id: PeerId) -> bytes | None:
        """Return the envelope of a peer's newest signed record, to be handed on to others."""
        entry = self._entries.get(peer_id)
        return entry.record if entry else None

    # --- lifetimes ------------------------------------------------------------------------------

    def pin(self, peer_id: PeerId) -> None:
        """Keep a peer and its addresses while it is connected."""
        entry = self._entries.setdefault(peer_id, _Entry())
        entry.pinned = True
        self._settle(peer_id, entry)

    def unpin(self, peer_id: PeerId, now: float) -> None:
        """The peer is no longer connected: what it stood for until now starts to expire."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            entry.pinned = False
            for address, known in entry.addresses.items():
                if known.origin is not Origin.TOLD:
                    until = max(known.until, now + self._lifetimes[known.origin])
                    entry.addresses[address] = KnownAddress(known.origin, until)
            self._settle(peer_id, entry)

    def expire(self, now: float) -> None:
        """Forget addresses that have expired, and peers of whom none is left.

        Of very many, some are left for the next call; nobody is told of them any more.
        """
        due = [peer_id for peer_id, entry in self._entries.items() if entry.expires <= now]
        for peer_id in due[:MAX_EXPIRED_AT_ONCE]:
            entry = self._entries[peer_id]
            entry.addresses = {
                address: known for address, known in entry.addresses.items() if known.until > now
            }
            if entry.addresses or entry.configured:
                self._refile(peer_id, entry, touch=False)
            else:
                self._drop(peer_id)

    def snapshot(
        self, now: float, wall: float, peers: Iterable[PeerId] | None = None
    ) -> dict[PeerId, KnownPeer]:
        """Copy what is worth keeping on disk.

        Configured addresses are left out, as the configuration will give them again, and so are
        protocols, which identify tells anew before they matter.

        Args:
            now: trio's clock.
            wall: the wall clock.
            peers: of whom; of all if None. Those that are no longer known are passed over.
        """
        found = {}
        for peer_id in self._entries if peers is None else peers:
            if (entry := self._entries.get(peer_id)) is None:
                continue
            addresses = {
                address: KnownAddress(
                    known.origin, wall + self._remaining(known, now, pinned=entry.pinned)
                )
                for address, known in entry.addresses.items()
                if entry.pinned or known.until > now
            }
            if addresses:
                found[peer_id] = KnownPeer(
                    addresses=addresses,
                    preferred=entry.preferred if entry.preferred in addresses else None,
                    key=entry.key,
                    record=entry.record,
                    seq=entry.seq,
                )
        return found

    def restore(self, peers: Mapping[PeerId, KnownPeer], now: float, wall: float) -> None:
        """Take in what `snapshot` returned, leaving out what has expired meanwhile."""
        for peer_id, saved in peers.items():
            entry = self._entries.setdefault(peer_id, _Entry())
            for address, known in saved.addresses.items():
                # The clock may have been set back since.
                remaining = min(known.until - wall, self._longest)
                if remaining > 0:
                    self._add(entry, [address], known.origin, now + remaining)
            if saved.preferred in entry.addresses:
                entry.preferred = saved.preferred
            entry.key = saved.key
            if saved.record is not None and (entry.record is None or saved.seq > entry.seq):
                entry.record, entry.seq = saved.record, saved.seq
            if entry.addresses or entry.configured or entry.pinned:
                self._settle(peer_id, entry)
            else:
                del self._entries[peer_id]

    def _remaining(self, known: KnownAddress, now: float, *, pinned: bool) -> float:
        if pinned and known.origin is not Origin.TOLD:
            return self._lifetimes[known.origin]
        return min(known.until - now, self._longest)

    # --- bounds ---------------------------------------------------------------------------------

    def _note(
        self, peer_id: PeerId, addresses: Iterable[Multiaddr], origin: Origin, until: float
    ) -> None:
        fresh = list(addresses)
        if fresh:
            entry = self._entries.setdefault(peer_id, _Entry())
            self._add(entry, fresh, origin, until)
            self._settle(peer_id, entry)

    def _add(
        self, entry: _Entry, addresses: Iterable[Multiaddr], origin: Origin, until: float
    ) -> None:
        known = entry.addresses
        for address in addresses:
            if (old := known.get(address)) is None:
                known[address] = KnownAddress(origin, until)
            else:
                known[address] = KnownAddress(max(origin, old.origin), max(until, old.until))
        while len(known) > self._settings.max_addresses_per_peer:
            del known[min(known, key=lambda each: (known[each].origin, known[each].until))]

    def _settle(self, peer_id: PeerId, entry: _Entry) -> None:
        """Note that an entry has changed, and make room for it."""
        self._refile(peer_id, entry, touch=True)
        for standing in (_Standing.HEARSAY, _Standing.MET):
            ages = self._ages[standing]
            while ages and self._is_over():
                self._drop(next(iter(ages)))

    def _is_over(self) -> bool:
        return (
            len(self._entries) > self._settings.max_peerstore_peers
            or self._size > self._settings.max_peerstore_bytes
        )

    def _refile(self, peer_id: PeerId, entry: _Entry, *, touch: bool) -> None:
        size, standing = entry.measure(), entry.rate()
        entry.expires = entry.next_expiry()
        self._size += size - entry.size
        entry.size = size
        if standing is not entry.standing:
            self._ages[entry.standing].pop(peer_id, None)
            entry.standing = standing
        ages = self._ages[standing]
        ages[peer_id] = None
        if touch:
            ages.move_to_end(peer_id)

    def _drop(self, peer_id: PeerId) -> None:
        entry = self._entries.pop(peer_id)
        del self._ages[entry.standing][peer_id]
        self._size -= entry.size
