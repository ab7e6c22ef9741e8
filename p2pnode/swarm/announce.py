"""Telling the DHT which experts this node hosts, again and again while it does.

Each announcement lives `max(2 x update period, 3 s)`: one that is missed does no harm, and a host
that dies without a word is forgotten that soon. A host that ends properly withdraws.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings
from p2pnode.errors import P2PNodeError, TokenExpiredError
from p2pnode.events import Event
from p2pnode.host import Host
from p2pnode.protocols.kad.service import KadDht
from p2pnode.swarm.index import MAX_LIFETIME, IndexEntry, encode_index, index_key, seal_entry
from p2pnode.swarm.index import to_ranges as check_coordinates
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

MIN_LIFETIME: Final = 3.0  # seconds, however often a host announces
WITHDRAWAL_TIMEOUT: Final = 2.0  # seconds; if it fails, the entries expire by themselves
PUTS_AT_ONCE: Final = 16

_Place = tuple[str, str]  # run id and prefix


@dataclass(frozen=True, slots=True)
class Proof:
    """A membership token bound to this node, and its wall-clock expiry; the default is none."""

    token: bytes = b""
    expires: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsAnnounced(Event):
    """A round of announcements ended; `failures` says what could not be announced and why."""

    prefixes: int
    failures: tuple[str, ...]


class Announcer:
    """Keeps this node's experts in the index.

    Args:
        host: tells the addresses to announce.
        dht: where to.
        key: the node's identity, which signs the entries.
        settings: the update period.
        proof_of: this node's proof of membership, by run id.
        load: how many calls are queued on this node.
    """

    def __init__(
        self,
        host: Host,
        dht: KadDht,
        key: PrivateKey,
        settings: HostingSettings | None = None,
        *,
        proof_of: Callable[[str], Proof] = lambda _run_id: Proof(),
        load: Callable[[], int] = lambda: 0,
    ) -> None:
        self._host = host
        self._dht = dht
        self._key = key
        self._period = (settings or HostingSettings()).update_period
        self._lifetime = min(max(2 * self._period, MIN_LIFETIME), MAX_LIFETIME)
        self._proof_of = proof_of
        self._load = load
        self._uids: set[Uid] = set()
        self._announced: dict[_Place, None] = {}
        self._seq = 0
        self._changed = trio.Event()

    @property
    def uids(self) -> frozenset[Uid]:
        """The experts to announce, their runs named by id."""
        return frozenset(self._uids)

    def add(self, uids: Iterable[Uid]) -> None:
        """Announce more experts, at once when `run` is running; uids name their run by its id.

        Raises:
            InvalidUidError: too many, or too scattered, coordinates under one prefix.
        """
        added = list(uids)
        self.check(added)
        self._uids.update(added)
        self._changed.set()

    def check(self, uids: Iterable[Uid]) -> None:
        """See whether `add` would take these.

        Raises:
            InvalidUidError: it would not.
        """
        for coordinates in _by_place(self._uids.union(uids)).values():
            check_coordinates(coordinates)

    def remove(self, uids: Iterable[Uid]) -> None:
        """Withdraw experts, at once when `run` is running."""
        self._uids.difference_update(uids)
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce every update period, and withdraw everything when cancelled."""
        task_status.started()
        try:
            while True:
                self._changed = trio.Event()
                due = trio.current_time() + self._period
                # A round is not cut off when it takes long: the same prefixes would be last, and
                # missing, each time.
                await self.announce()
                with trio.move_on_at(due):
                    await self._changed.wait()
        finally:
            self._uids.clear()
            with trio.move_on_after(WITHDRAWAL_TIMEOUT, shield=True):
                await self.announce()

    async def announce(self) -> None:
        """Announce all experts once, and withdraw those removed since; failures are an event."""
        places = _by_place(self._uids)
        withdrawn: dict[_Place, set[int]] = {
            place: set() for place in self._announced if place not in places
        }
        failures: list[str] = []
        limiter = trio.CapacityLimiter(PUTS_AT_ONCE)
        self._seq = max(self._seq + 1, int(wall_time() * 1000))  # rises over restarts, too
        async with trio.open_nursery() as nursery:
            for place, coordinates in (places | withdrawn).items():
                nursery.start_soon(self._put, place, coordinates, limiter, failures)
        if places or withdrawn:
            self._host.events.emit(
                ExpertsAnnounced(prefixes=len(places), failures=tuple(sorted(failures)))
            )

    async def _put(
        self,
        place: _Place,
        coordinates: set[int],
        limiter: trio.CapacityLimiter,
        failures: list[str],
    ) -> None:
        run_id, prefix = place
        async with limiter:
            self._announced[place] = None
            try:
                entry = self._entry(run_id, prefix, coordinates)
                value = encode_index([seal_entry(self._key, entry)])
                await self._dht.put_value(index_key(run_id, prefix), value)
            except P2PNodeError as error:
                failures.append(f"{run_id}/{prefix}: {error}")
                return
            if not coordinates:
                self._announced.pop(place, None)

    def _entry(self, run_id: str, prefix: str, coordinates: set[int]) -> IndexEntry:
        now, proof = wall_time(), self._proof_of(run_id)
        if proof.expires <= now:
            raise TokenExpiredError("this node's membership has expired; ask for a new invite")
        return IndexEntry(
            run_id=run_id,
            prefix=prefix,
            coordinates=tuple(sorted(coordinates)),
            peer_id=self._host.peer_id,
            addresses=tuple(self._host.addresses),
            expiry=min(now + self._lifetime, proof.expires),
            seq=self._seq,
            load=self._load(),
            token=proof.token,
        )


def _by_place(uids: Iterable[Uid]) -> dict[_Place, set[int]]:
    places: dict[_Place, set[int]] = {}
    for uid in uids:
        for prefix, coordinate in uid.prefixes:
            places.setdefault((uid.run, prefix), set()).add(coordinate)
    return places
