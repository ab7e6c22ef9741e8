"""What a light host knows of others' addresses and protocols: a peerstore for a simulation.

Unlike `p2pnode.host.peerstore` it asks for no proof, since light hosts do not lie, and has but two
kinds of addresses: those that a peer says itself, and those that others tell of.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class _Known:
    own: tuple[Multiaddr, ...] = ()
    own_until: float = -math.inf  # infinity while it is connected
    told: tuple[Multiaddr, ...] = ()
    told_until: float = -math.inf
    protocols: frozenset[str] = frozenset()


class AddressBook:
    """The peers that a light host has heard of; if they are too many, the first goes first.

    Args:
        settings: how many there may be, and how long an address lasts.
        connected: peers that are never forgotten.
    """

    def __init__(self, settings: NetworkSettings, connected: Container[PeerId]) -> None:
        self._settings = settings
        self._connected = connected
        self._known: dict[PeerId, _Known] = {}

    def _of(self, peer_id: PeerId) -> _Known:
        known = self._known.get(peer_id)
        if known is None:
            known = self._known[peer_id] = _Known()
            if len(self._known) > self._settings.max_peerstore_peers:
                self._forget_one()
        return known

    def _forget_one(self) -> None:
        for peer_id in self._known:
            if peer_id not in self._connected:
                del self._known[peer_id]
                return

    def receive_identity(
        self, peer_id: PeerId, addresses: tuple[Multiaddr, ...], protocols: frozenset[str]
    ) -> None:
        """Learn what a connected peer says of itself."""
        known = self._of(peer_id)
        known.own, known.own_until = addresses, math.inf
        known.protocols = protocols

    def receive_ended(self, peer_id: PeerId) -> None:
        """Note that a peer is connected no more: what it said lasts for a while yet."""
        known = self._known.get(peer_id)
        if known is not None and known.own_until == math.inf:
            known.own_until = trio.current_time() + self._settings.connected_address_ttl

    def add(self, peer_id: PeerId, addresses: Sequence[Multiaddr], ttl: float) -> None:
        """Learn what others tell of a peer, for `ttl` seconds."""
        known = self._of(peer_id)
        now = trio.current_time()
        if known.told_until <= now:
            known.told, known.told_until = tuple(addresses), now + ttl
            return
        known.told_until = max(known.told_until, now + ttl)
        if fresh := [each for each in addresses if each not in known.told]:
            known.told = (*known.told, *fresh)[-self._settings.max_addresses_per_peer :]

    def addresses_of(self, peer_id: PeerId, *, hearsay: bool) -> list[Multiaddr]:
        """Return the addresses of a peer, with those that only others tell of if `hearsay`."""
        known = self._known.get(peer_id)
        if known is None:
            return []
        if known.own_until == math.inf and not hearsay:
            return list(known.own)  # asked for twenty peers in each answer of a DHT
        now = trio.current_time()
        found = list(known.own) if known.own_until > now else []
        if hearsay and known.told_until > now:
            found += [each for each in known.told if each not in found]
        return found

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """Return the protocols that a peer said it speaks; none of one that never said."""
        known = self._known.get(peer_id)
        return frozenset() if known is None else known.protocols
