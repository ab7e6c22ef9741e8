"""Who hosts what right now: the index as this node sees it, cached and kept fresh.

A record in use is answered from memory and asked for again in the background; an entry is shown
until it expires and never longer. A record found empty is left alone for a short time that
doubles, or until somebody announces the branch that it belongs to. A host whose calls fail is left
alone, too; one that had vanished from the index and comes back is trusted again at once.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import SwarmSettings
from p2pnode.errors import NotFoundError, P2PNodeError
from p2pnode.host import Host
from p2pnode.host.ranking import is_relayed
from p2pnode.protocols.kad.bans import Bans
from p2pnode.protocols.kad.search import Search
from p2pnode.protocols.kad.service import KadDht
from p2pnode.swarm.entries import Entry
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.places import SPAN, Kind, Place, bits_of, host_place, shards
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

MAX_KNOWN_HOSTS: Final = 10_000
ADDRESS_TTL: Final = 600.0  # seconds; the host itself signed them, and renews them while it lives
# An entry that will not be renewed is not chased ever faster as its end comes near.
MIN_REFRESH: Final = 0.2  # of the refresh interval


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A peer that hosts an expert.

    Attributes:
        peer_id: who it is.
        addresses: where it can be dialled.
        load: how many calls it had queued.
        expiry: on the wall clock.
        throughput: rows a second through each of its experts when all are in use; 0 if not known.
        has_relays: whether it is reached through relays, as nobody can dial it.
    """

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]
    load: int
    expiry: float
    throughput: float = 0.0
    has_relays: bool = False


Listing = Mapping[int, Sequence[HostEntry]]
"""Live coordinates under a prefix: with their hosts, or with nothing where they are branches."""


@dataclass(slots=True)
class _Record:
    """What is known of one record; `_until` is on the wall clock."""

    value: bytes = b""
    entries: list[tuple[Entry, int]] = field(default_factory=list)  # of the value, and their places
    alive_until: float = 0.0  # when the last entry that serves something expires
    empty_at: float = 0.0  # when it was last found empty, on the wall clock
    asked_at: float = 0.0  # for it, on trio's clock, as are
    known_at: float = float("-inf")  # when what is known was asked for
    refresh_at: float = 0.0
    refresh: Search[bytes] | None = None
    listing: Listing = field(default_factory=dict)  # computed from the entries
    valid_until: float = 0.0  # of `listing`
    bans: int = -1  # the directory's count of changes when `listing` was computed


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
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._absent: Bans[bytes] = Bans(self._settings.absent_time, self._settings.max_absent_time)
        self._failing: Bans[PeerId] = Bans(self._settings.ban_time, self._settings.max_ban_time)
        self._failing_changes = 0
        self._last_expiry: OrderedDict[PeerId, float] = OrderedDict()
        self._limiter = trio.CapacityLimiter(self._settings.lookups_at_once)

    async def hosts(self, uid: Uid) -> Sequence[HostEntry]:
        """List the live hosts of an expert, the least loaded first; empty when there is none.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        return (await self._look_up(host_place(uid))).get(uid.coordinate, ())

    async def look_again(self, uid: Uid) -> Sequence[HostEntry]:
        """List the live hosts of an expert as `hosts` does, but by what the DHT says from now on.

        For who was just told that what is known is old. It waits a little where the DHT was asked
        only a moment ago, and those who wait together share one answer.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        place = host_place(uid)
        record = self._record(place)
        began = trio.current_time()
        await trio.sleep_until(record.known_at + self._settings.refresh_interval * MIN_REFRESH)
        if record.known_at < began:
            self._dht.forget_absence(place.key)
            await self._ask(place, record)
        return self._listing(place, record).get(uid.coordinate, ())

    async def listings(
        self,
        run_id: str,
        kind: Kind,
        prefixes: Sequence[str],
        width: int,
        *,
        fresh: bool = False,
    ) -> list[Listing]:
        """List what lives under each of several prefixes, looked up at once.

        Args:
            run_id: the run's id.
            kind: whether what lies under the prefixes are branches, or experts and their hosts, or
                those who are about to host them.
            prefixes: blocks with some of their coordinates.
            width: how many coordinates there are under each prefix.
            fresh: whether others are asked even where something is known.

        Returns:
            What is live of the first `width` coordinates, or some more; shared with other callers:
            do not change it.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        found: dict[Place, Listing] = {}
        errors: list[P2PNodeError] = []

        async def look_up(place: Place) -> None:
            try:
                found[place] = await self._look_up(place, fresh=fresh)
            except P2PNodeError as error:
                errors.append(error)

        wanted = [shards(run_id, kind, prefix, width) for prefix in prefixes]
        async with trio.open_nursery() as nursery:
            for places in wanted:
                for place in places:
                    if not fresh and (shown := self._at_once(place)) is not None:
                        found[place] = shown
                    else:
                        nursery.start_soon(look_up, place)
        if errors:
            raise errors[0]
        return [_joined([found[place] for place in places]) for places in wanted]

    def knows(self, run_id: str, kind: Kind, prefix: str, width: int) -> bool:
        """Tell whether what lives under a prefix is known without asking anybody."""
        places = shards(run_id, kind, prefix, width)
        return all(self._at_once(place) is not None for place in places)

    def prefetch(self, run_id: str, kind: Kind, prefixes: Iterable[str], width: int) -> None:
        """Begin to look up what will probably be asked for next, as far as there is room for it."""
        room = self._limiter.total_tokens - self._limiter.borrowed_tokens
        for prefix in prefixes:
            for place in shards(run_id, kind, prefix, width):
                if room <= 0:
                    return
                if self._at_once(place) is None:
                    self._refresh(place, self._record(place))
                    room -= 1

    def mark_failed(self, peer_id: PeerId) -> None:
        """Leave a host out for a while: a call to it failed."""
        if self._failing.receive_failure(peer_id, trio.current_time()):
            self._failing_changes += 1

    def mark_alive(self, peer_id: PeerId) -> None:
        """Trust a host again: a call to it succeeded."""
        if self._failing.banned_until(peer_id) > float("-inf"):
            self._failing.receive_success(peer_id)
            self._failing_changes += 1

    def needs_relay(self, host: HostEntry) -> bool:
        """Whether calls to a host go through a relay, or will, as far as is known now."""
        connection = self._host.connection_to(host.peer_id)
        return host.has_relays if connection is None else connection.is_relayed

    async def _look_up(self, place: Place, *, fresh: bool = False) -> Listing:
        if not fresh and (shown := self._at_once(place)) is not None:
            await trio.lowlevel.checkpoint()
            return shown
        record = self._record(place)
        await self._ask(place, record)
        return self._listing(place, record)

    async def _ask(self, place: Place, record: _Record) -> None:
        async with self._limiter:
            record.asked_at = trio.current_time()
            try:
                value = await self._dht.get_value(place.key)
            except NotFoundError:
                value = b""
        record.refresh = None
        self._absorb(place, record, value)

    def _at_once(self, place: Place) -> Listing | None:
        """Return what is known, and have it refreshed when it is time; None when nothing is."""
        record = self._record(place)
        self._absorb_refresh(place, record)
        if wall_time() < record.alive_until:
            if trio.current_time() >= record.refresh_at:
                self._refresh(place, record)
            return self._listing(place, record)
        return {} if self._is_absent(place, record) else None

    def _record(self, place: Place) -> _Record:
        record = self._records.setdefault(place.key, _Record())
        self._records.move_to_end(place.key)
        if len(self._records) > self._settings.max_cached_prefixes:
            self._records.popitem(last=False)
        return record

    def _refresh(self, place: Place, record: _Record) -> None:
        if record.refresh is None:
            record.refresh = self._dht.begin_get(place.key)
            record.asked_at = trio.current_time()

    def _absorb_refresh(self, place: Place, record: _Record) -> None:
        if record.refresh is None or not record.refresh.is_done:
            return
        search, record.refresh = record.refresh, None
        try:
            self._absorb(place, record, search.result())
        except NotFoundError:
            self._absorb(place, record, b"")
        except P2PNodeError:  # what is known stays until it expires; look again after a while
            record.refresh_at = trio.current_time() + self._settings.refresh_interval

    def _absorb(self, place: Place, record: _Record, value: bytes) -> None:
        """Take in a value found; one that is older than what is known takes nothing away."""
        wall, now = wall_time(), trio.current_time()
        parts = [each for each in (record.value, value) if each]
        record.value = self._index.merge(place.key, parts, wall) if parts else b""
        record.known_at = record.asked_at
        record.entries = self._index.standing(place.key, record.value, wall) if record.value else []
        alive = [entry for entry, places in record.entries if places & entry.served]
        record.alive_until = max((entry.expiry for entry in alive), default=0.0)
        record.bans = -1
        if not alive:
            record.empty_at = max(wall, self._said_alive(place))
            self._absent.receive_failure(place.key, now)
            return
        self._absent.receive_success(place.key)
        interval = self._settings.refresh_interval
        soonest = min(entry.expiry - wall for entry in alive) + now - record.asked_at
        record.refresh_at = record.asked_at + min(
            interval, max(soonest / 2, interval * MIN_REFRESH)
        )
        if place.kind is Kind.HOSTS:
            for entry in alive:
                self._host.add_addresses(entry.peer_id, entry.addresses, ADDRESS_TTL)
                self._note_alive(entry.peer_id, entry.expiry, wall)

    def _is_absent(self, place: Place, record: _Record) -> bool:
        """Tell whether a record was found empty, and nobody has said since that it is not."""
        if not self._absent.is_banned(place.key, trio.current_time()):
            return False
        return self._said_alive(place) <= record.empty_at

    def _said_alive(self, place: Place) -> float:
        """Return when the branch that a record belongs to was last announced, by the wall clock."""
        above, dot, last = place.prefix.rpartition(".")
        if not dot:
            return 0.0
        shard, bit = divmod(int(last), SPAN)
        branch = self._records.get(Place(place.run_id, Kind.BRANCHES, above, shard).key)
        entries = branch.entries if branch else []
        return max((entry.issued for entry, places in entries if places >> bit & 1), default=0.0)

    def _note_alive(self, peer_id: PeerId, expiry: float, wall: float) -> None:
        """Remember until when a host is listed; one that had vanished has started anew."""
        before = self._last_expiry.get(peer_id)
        if before is not None and before <= wall:
            self.mark_alive(peer_id)
        self._last_expiry[peer_id] = max(expiry, before or 0.0)
        self._last_expiry.move_to_end(peer_id)
        if len(self._last_expiry) > MAX_KNOWN_HOSTS:
            self._last_expiry.popitem(last=False)

    def _listing(self, place: Place, record: _Record) -> Listing:
        wall, now = wall_time(), trio.current_time()
        if record.bans == self._failing_changes and wall < record.valid_until:
            return record.listing
        listing: dict[int, list[HostEntry]] = {}
        record.valid_until = record.alive_until
        for entry, places in record.entries:
            if entry.expiry <= wall:
                continue
            record.valid_until = min(record.valid_until, entry.expiry)
            if place.kind is Kind.HOSTS and self._failing.is_banned(entry.peer_id, now):
                until = wall + self._failing.banned_until(entry.peer_id) - now
                record.valid_until = min(record.valid_until, until)
                continue
            host = HostEntry(
                entry.peer_id,
                entry.addresses,
                entry.load,
                entry.expiry,
                entry.throughput,
                has_relays=any(map(is_relayed, entry.addresses)),
            )
            for bit in bits_of(places & entry.served):
                hosts = listing.setdefault(place.first + bit, [])
                if place.kind is not Kind.BRANCHES:
                    hosts.append(host)
        for hosts in listing.values():
            hosts.sort(key=lambda host: (host.load, host.peer_id))
        record.listing = listing
        record.bans = self._failing_changes
        return listing


def _joined(listings: Sequence[Listing]) -> Listing:
    if len(listings) == 1:
        return listings[0]
    return {coordinate: hosts for listing in listings for coordinate, hosts in listing.items()}
