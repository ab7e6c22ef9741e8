"""What is known of peers: addresses with an expiry, and the protocols they say they serve.

Bounded: the peers that were heard of longest ago are forgotten first, and of one peer's addresses
those that expire first. Peers that are connected are pinned and stay. Durations are by trio's
clock, given as `now`; the saved form has wall-clock expiries, since it outlives the process.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import InvalidAddressError, InvalidKeyError
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.peer_id import PeerId

FORMAT: Final = 1


class _Entry:
    __slots__ = ("addresses", "pinned", "preferred", "protocols")

    def __init__(self) -> None:
        self.addresses: dict[Multiaddr, float] = {}  # until when
        self.preferred: Multiaddr | None = None  # the one that worked last
        self.protocols: frozenset[str] = frozenset()
        self.pinned = False


class Peerstore:
    """The known peers."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._entries: OrderedDict[PeerId, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add_addresses(
        self, peer_id: PeerId, addresses: Iterable[Multiaddr], ttl: float, now: float
    ) -> None:
        """Remember addresses until `now + ttl`, or longer where that was known already."""
        fresh = list(addresses)
        if fresh:
            self._add(self._touch(peer_id), fresh, now + ttl)
            self._evict()

    def prefer(self, peer_id: PeerId, address: Multiaddr, ttl: float, now: float) -> None:
        """Note that `address` has just worked: it is tried first from now on."""
        entry = self._touch(peer_id)
        self._add(entry, [address], now + ttl)
        entry.preferred = address
        self._evict()

    def addresses_of(self, peer_id: PeerId, now: float) -> list[Multiaddr]:
        """Return the addresses that have not expired, the one that worked last first."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return []
        live = [each for each, until in entry.addresses.items() if entry.pinned or until > now]
        live.sort(key=lambda address: address != entry.preferred)
        return live

    def set_protocols(self, peer_id: PeerId, protocols: Collection[str]) -> None:
        """Note what a peer says it serves."""
        self._touch(peer_id).protocols = frozenset(protocols)
        self._evict()

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """Return what a peer last said it serves."""
        entry = self._entries.get(peer_id)
        return entry.protocols if entry else frozenset()

    def pin(self, peer_id: PeerId) -> None:
        """Keep a peer and its addresses while it is connected."""
        self._touch(peer_id).pinned = True
        self._evict()

    def unpin(self, peer_id: PeerId, now: float) -> None:
        """The peer is no longer connected: its addresses expire after the configured time."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            entry.pinned = False
            self._add(entry, tuple(entry.addresses), now + self._settings.address_ttl)
            self._evict()

    def expire(self, now: float) -> None:
        """Forget addresses that have expired, and peers of whom nothing is left."""
        for peer_id, entry in tuple(self._entries.items()):
            if entry.pinned:
                continue
            entry.addresses = {
                each: until for each, until in entry.addresses.items() if until > now
            }
            if not entry.addresses:
                del self._entries[peer_id]

    def dump(self, now: float, wall: float) -> str:
        """Return the addresses as JSON, their expiries by the wall clock."""
        longest = self._settings.address_ttl
        peers = {
            str(peer_id): {
                str(address): wall + (longest if entry.pinned else min(until - now, longest))
                for address, until in entry.addresses.items()
                if entry.pinned or until > now
            }
            for peer_id, entry in self._entries.items()
        }
        kept = {peer_id: addresses for peer_id, addresses in peers.items() if addresses}
        return json.dumps({"format": FORMAT, "peers": kept}, indent=1)

    def load(self, text: str, now: float, wall: float) -> None:
        """Take in what `dump` returned, leaving out what has expired meanwhile.

        Raises:
            ValueError: the text is not of this format.
        """
        for peer_id, addresses in _parse(text).items():
            for address, until in addresses.items():
                ttl = min(until - wall, self._settings.address_ttl)  # the clock may have jumped
                if ttl > 0:
                    self.add_addresses(peer_id, [address], ttl, now)

    def _touch(self, peer_id: PeerId) -> _Entry:
        entry = self._entries.setdefault(peer_id, _Entry())
        self._entries.move_to_end(peer_id)
        return entry

    def _add(self, entry: _Entry, addresses: Iterable[Multiaddr], until: float) -> None:
        known = entry.addresses
        for address in addresses:
            known[address] = max(until, known.get(address, 0.0))
        while len(known) > self._settings.max_addresses_per_peer:
            del known[min(known, key=known.__getitem__)]

    def _evict(self) -> None:
        for _ in range(len(self._entries) - self._settings.max_peerstore_peers):
            oldest = next((each for each, entry in self._entries.items() if not entry.pinned), None)
            if oldest is None:
                return
            del self._entries[oldest]


def _parse(text: str) -> dict[PeerId, dict[Multiaddr, float]]:
    try:
        document: Any = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is not known")
        return {
            PeerId.from_text(peer_id): {
                parse_address(address): float(until) for address, until in addresses.items()
            }
            for peer_id, addresses in document["peers"].items()
        }
    except (KeyError, TypeError, AttributeError, InvalidKeyError, InvalidAddressError) as error:
        raise ValueError(f"not a saved peerstore: {error}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path`, so that a crash leaves the old or the new one whole."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
