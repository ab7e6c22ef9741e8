"""Who hosts what right now: the index as this node sees it, cached and kept fresh.

A prefix in use is answered from memory and asked for again in the background; an entry is shown
until it expires and never longer. A prefix found empty is left alone for a short time that doubles.
So is a host whose calls fail; a host that had vanished from the index and comes back is trusted
again at once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import SwarmSettings
from p2pnode.errors import NotFoundError, P2PNodeError
from p2pnode.host import Host
from p2pnode.protocols.kad.bans import Bans
from p2pnode.protocols.kad.search import Search
from p2pnode.protocols.kad.service import KadDht
from p2pnode.swarm.index import IndexValidator, index_key
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

MAX_KNOWN_HOSTS: Final = 10_000
ADDRESS_TTL: Final = 600.0  # seconds; the host itself signed them, and renews them while it lives

Children = dict[int, list["HostEntry"]]


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A peer that hosts an expert, or experts under a prefix; `expiry` is on the wall clock."""

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]
    load: int
    expiry: float


@dataclass(slots=True)
class _Prefix:
    """What is known under one prefix; `_at` is on trio's clock, `_until` on the wall clock."""

    value: bytes = b""
    alive_until: float = 0.0  # when the last entry with experts expires
    refresh_at: float = 0.0
    refresh: Search[bytes] | None = None
    children: Children = field(default_factory=dict)  # computed from the value
    valid_until: float = 0.0  # of `children`
    bans: int = -1  # the directory's count of changes when `children` was computed


class ExpertDirectory:
    """Finds the live hosts of experts; runs are named by id.

    Args:
        host: is told the addresses of the hosts found.
        dht: where to look.
        index: the validator that the DHT uses, whose memory of verified entries is shared.
        settings: limits and intervals.
    """

    def __init__(
        self,
        host: Host,
        dht: KadDht,
        index: IndexValidator,
        settings: SwarmSettings | None = None,
    ) -> None:
        self._host = host
        self._dht = dht
        self._index = index
        self._settings = settings or SwarmSettings()
        self._prefixes: OrderedDict[bytes, _Prefix] = OrderedDict()
        self._absent: Bans[bytes] = Bans(self._settings.absent_time, self._settings.max_absent_time)
        self._failing: Bans[PeerId] = Bans(self._settings.ban_time, self._settings.max_ban_time)
        self._failing_changes = 0
        self._last_expiry: OrderedDict[PeerId, float] = OrderedDict()
        self._limiter = trio.CapacityLimiter(self._settings.lookups_at_once)

    async def hosts(self, uid: Uid) -> list[HostEntry]:
        """List the live hosts of an expert, the least loaded first; empty when there is none.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        return (await self.children(uid.run, uid.prefix)).get(uid.coordinate, [])

    async def children(self, run_id: str, prefix: str) -> Children:
        """Map each coordinate with a live expert under `prefix` to its hosts.

        The result is shared with other callers: do not change it.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        key = index_key(run_id, prefix)
        known = self._known(key)
        self._absorb_refresh(key, known)
        if wall_time() < known.alive_until:
            if known.refresh is None and trio.current_time() >= known.refresh_at:
                known.refresh = self._dht.begin_get(key)
            await trio.lowlevel.checkpoint()
            return self._children(known)
        if self._absent.is_banned(key, trio.current_time()):
            await trio.lowlevel.checkpoint()
            return {}
        async with self._limiter:
            try:
                self._absorb(key, known, await self._dht.get_value(key))
            except NotFoundError:
                known.value = b""
        if wall_time() < known.alive_until:
            self._absent.receive_success(key)
            return self._children(known)
        self._absent.receive_failure(key, trio.current_time())
        return {}

    async def children_of(self, run_id: str, prefixes: Sequence[str]) -> list[Children]:
        """Return `children` of several prefixes, looked up at once.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        found: list[Children] = [{} for _ in prefixes]
        errors: list[P2PNodeError] = []

        async def look_up(position: int, prefix: str) -> None:
            try:
                found[position] = await self.children(run_id, prefix)
            except P2PNodeError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for position, prefix in enumerate(prefixes):
                nursery.start_soon(look_up, position, prefix)
        if errors:
            raise errors[0]
        return found

    def mark_failed(self, peer_id: PeerId) -> None:
        """Leave a host out for a while: a call to it failed."""
        if self._failing.receive_failure(peer_id, trio.current_time()):
            self._failing_changes += 1

    def mark_alive(self, peer_id: PeerId) -> None:
        """Trust a host again: a call to it succeeded."""
        if self._failing.banned_until(peer_id) > float("-inf"):
            self._failing.receive_success(peer_id)
            self._failing_changes += 1

    def _known(self, key: bytes) -> _Prefix:
        known = self._prefixes.setdefault(key, _Prefix())
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > self._settings.max_cached_prefixes:
            self._prefixes.popitem(last=False)
        return known

    def _absorb_refresh(self, key: bytes, known: _Prefix) -> None:
        if known.refresh is None or not known.refresh.is_done:
            return
        search, known.refresh = known.refresh, None
        try:
            self._absorb(key, known, search.result())
        except P2PNodeError:  # what is known stays until it expires; look again after a while
            known.refresh_at = trio.current_time() + self._settings.refresh_interval

    def _absorb(self, key: bytes, known: _Prefix, value: bytes) -> None:
        """Take in a value found; one that is older than what is known takes nothing away."""
        wall, now = wall_time(), trio.current_time()
        known.value = self._index.merge(key, [each for each in (known.value, value) if each], wall)
        entries = self._index.entries(known.value, wall) if known.value else []
        alive = [entry for entry in entries if entry.coordinates]
        for entry in alive:
            self._host.add_addresses(entry.peer_id, entry.addresses, ADDRESS_TTL)
            self._note_alive(entry.peer_id, entry.expiry, wall)
        known.alive_until = max((entry.expiry for entry in alive), default=0.0)
        soonest = min((entry.expiry - wall for entry in alive), default=0.0)
        known.refresh_at = now + min(self._settings.refresh_interval, soonest / 2)
        known.bans = -1

    def _note_alive(self, peer_id: PeerId, expiry: float, wall: float) -> None:
        """Remember until when a host is listed; one that had vanished has started anew."""
        before = self._last_expiry.get(peer_id)
        if before is not None and before <= wall:
            self.mark_alive(peer_id)
        self._last_expiry[peer_id] = max(expiry, before or 0.0)
        self._last_expiry.move_to_end(peer_id)
        if len(self._last_expiry) > MAX_KNOWN_HOSTS:
            self._last_expiry.popitem(last=False)

    def _children(self, known: _Prefix) -> Children:
        wall, now = wall_time(), trio.current_time()
        if known.bans == self._failing_changes and wall < known.valid_until:
            return known.children
        children: Children = {}
        known.valid_until = known.alive_until
        for entry in self._index.entries(known.value, wall):
            known.valid_until = min(known.valid_until, entry.expiry)
            if self._failing.is_banned(entry.peer_id, now):
                until = wall + self._failing.banned_until(entry.peer_id) - now
                known.valid_until = min(known.valid_until, until)
                continue
            host = HostEntry(entry.peer_id, entry.addresses, entry.load, entry.expiry)
            for coordinate in entry.coordinates:
                children.setdefault(coordinate, []).append(host)
        for hosts in children.values():
            hosts.sort(key=lambda host: (host.load, host.peer_id))
        known.children = children
        known.bans = self._failing_changes
        return children
