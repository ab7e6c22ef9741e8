"""Telling the DHT which experts this node hosts, again and again while it does.

Each announcement lives `max(2 x update period, 3 s)`: one that is missed does no harm, and a host
that dies without a word is forgotten that soon. A host that ends properly withdraws.

A record is announced when what it says of this node changes, its addresses included, and otherwise
a little before an update period has passed; nodes that were started together drift apart.
"""

import math
import random
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings
from p2pnode.errors import InvalidUidError, P2PNodeError, TokenExpiredError
from p2pnode.events import Event
from p2pnode.host import Host, LocalPeerChanged
from p2pnode.host.ranking import is_relayed
from p2pnode.protocols.kad.service import KadDht
from p2pnode.swarm.entries import MAX_LIFETIME, Entry, seal_entry
from p2pnode.swarm.index import encode_index
from p2pnode.swarm.places import Kind, Place, by_place
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

MIN_LIFETIME: Final = 3.0  # seconds, however often a host announces
WITHDRAWAL_TIMEOUT: Final = 2.0  # seconds; if it fails, the entries expire by themselves
# Of each record. Half of what the DHT keeps of others: all of them are gone when the next
# announcement comes with a probability of 6e-6, also where 30 % of the peers have just failed.
COPIES: Final = 10
MAX_PLACES: Final = 8192  # records of one node; 4096 scattered experts have so many in two levels
JITTER: Final = 0.2  # of the period, by which a renewal may come early
ROUNDING: Final = 0.002  # seconds, by which an entry ends before its proof; it is told in ms
RETRY: Final = 0.25  # of the period, until what failed is tried again


@dataclass(frozen=True, slots=True)
class Proof:
    """A membership token bound to this node, and its wall-clock expiry; the default is none."""

    token: bytes = b""
    expires: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsAnnounced(Event):
    """Some records were announced; `failures` says which could not be, and why."""

    records: int
    failures: tuple[str, ...]


@dataclass(slots=True)
class _Announced:
    """What this node says in one record; times are on trio's clock."""

    served: int = 0
    withdrawn: int = 0
    due: float = -math.inf  # when it is to be said again
    withdrawn_until: float = -math.inf  # when what it withdraws has expired everywhere


class Announcer:
    """Keeps this node's experts in the index.

    Args:
        host: tells the addresses to announce.
        dht: where to.
        key: the node's identity, which signs the entries.
        settings: the update period.
        proof_of: this node's proof of membership, by run id.
        load: how many calls are queued on this node.
        throughput: rows a second through each expert when all are in use; 0 when not known.
        rng: spreads the renewals.
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
        throughput: Callable[[], float] = lambda: 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._dht = dht
        self._key = key
        self._period = (settings or HostingSettings()).update_period
        self._lifetime = min(max(2 * self._period, MIN_LIFETIME), MAX_LIFETIME)
        self._proof_of = proof_of
        self._load = load
        self._throughput = throughput
        self._rng = rng or random.Random()
        self._uids: dict[Uid, None] = {}
        self._is_suspended = False
        self._loading: list[Uid] = []
        self._announced: dict[Place, _Announced] = {}
        self._issued = 0.0
        self._told: tuple[Multiaddr, ...] = ()  # where this node is, as last announced
        self._changed = trio.Event()

    @property
    def uids(self) -> frozenset[Uid]:
        """The experts to announce, their runs named by id."""
        return frozenset(self._uids)

    def add(self, uids: Iterable[Uid]) -> None:
        """Announce more experts, at once when `run` is running; uids name their run by its id.

        Raises:
            InvalidUidError: they would need too many records.
        """
        added = list(uids)
        self.check(added)
        self._uids.update(dict.fromkeys(added))
        self._update()

    def check(self, uids: Iterable[Uid]) -> None:
        """See whether `add` would take these.

        Raises:
            InvalidUidError: it would not.
        """
        if len(by_place({**self._uids, **dict.fromkeys(uids)})) > MAX_PLACES:
            raise InvalidUidError(
                f"a node announces its experts in at most {MAX_PLACES} records; host neighbouring"
                " experts"
            )

    def set_loading(self, uids: Iterable[Uid]) -> None:
        """Say what this node will host soon, so that others who want to help look elsewhere."""
        self._loading = list(uids)
        self._update()

    def remove(self, uids: Iterable[Uid]) -> None:
        """Withdraw experts, at once when `run` is running."""
        for uid in uids:
            self._uids.pop(uid, None)
        self._update()

    @property
    def lifetime(self) -> float:
        """How long what is announced counts, in seconds."""
        return self._lifetime

    @property
    def is_suspended(self) -> bool:
        """Whether nothing is announced until `go_on`."""
        return self._is_suspended

    def suspend(self) -> None:
        """Withdraw everything until `go_on`; what is added or removed meanwhile counts then."""
        self._is_suspended = True
        self._update()

    def go_on(self) -> None:
        """Announce again what was suspended."""
        self._is_suspended = False
        self._update()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce what is due again and again, and withdraw everything when cancelled."""
        undo = self._host.events.on(LocalPeerChanged, self._receive_local_change)
        task_status.started()
        try:
            while True:
                self._changed = trio.Event()
                # A round is not cut off when it takes long: the same records would be last, and
                # missing, each time.
                await self.announce()
                next_due = min((each.due for each in self._announced.values()), default=math.inf)
                with trio.move_on_at(next_due):
                    await self._changed.wait()
        finally:
            undo()
            self._uids.clear()
            self._loading.clear()
            self._update()
            with trio.move_on_after(WITHDRAWAL_TIMEOUT, shield=True):
                await self.announce()

    async def announce(self) -> None:
        """Announce all records that are due now; failures are an event."""
        now = trio.current_time()
        due = [place for place, each in self._announced.items() if each.due <= now]
        if not due:
            await trio.lowlevel.checkpoint()
            return
        self._told = self._addresses()
        # All in step, so that a round is few searches; but not in step with other nodes.
        again = now + self._period * self._rng.uniform(1 - JITTER, 1)
        self._issued = max(self._issued + 0.001, wall_time())  # rises over restarts, too
        failures: dict[Place, str] = {}
        by_run: dict[str, dict[Place, bytes]] = {}
        for place in due:
            said = self._announced[place]
            said.due = again
            try:
                sealed = seal_entry(self._key, place, self._entry(place, said))
            except P2PNodeError as error:
                failures[place] = str(error)
            else:
                by_run.setdefault(place.run_id, {})[place] = encode_index([sealed])
        try:
            async with trio.open_nursery() as nursery:
                for values in by_run.values():  # apart: what is wrong in one run is so in no other
                    nursery.start_soon(self._put, values, failures)
        except BaseException:  # cut off: nobody knows what was stored
            for place in due:
                if place in self._announced:
                    self._announced[place].due = -math.inf
            raise
        self._settle(due, failures)
        texts = sorted(f"{each.run_id}/{each.prefix}: {why}" for each, why in failures.items())
        self._host.events.emit(ExpertsAnnounced(records=len(due), failures=tuple(texts)))

    async def _put(self, values: Mapping[Place, bytes], failures: dict[Place, str]) -> None:
        by_key = {place.key: value for place, value in values.items()}
        try:
            stored = await self._dht.put_many(by_key, copies=COPIES)
        except P2PNodeError as error:
            failures.update(dict.fromkeys(values, str(error)))
        else:
            lost = [place for place in values if not stored[place.key]]
            failures.update(dict.fromkeys(lost, "no peer of the DHT could store it"))

    def _settle(self, due: Iterable[Place], failures: Container[Place]) -> None:
        """Note when what failed is tried again, and forget what has been withdrawn."""
        now = trio.current_time()
        for place in due:
            said = self._announced.get(place)
            if said is None or said.due == -math.inf:  # it has changed meanwhile
                continue
            if place in failures:
                said.due = min(said.due, now + self._period * RETRY)
                if now < said.withdrawn_until:
                    continue
            if not said.served:
                del self._announced[place]

    def _update(self) -> None:
        """Make due what has changed."""
        now = trio.current_time()
        wanted = {} if self._is_suspended else by_place(self._uids, self._loading)
        for place in [*wanted, *(each for each in self._announced if each not in wanted)]:
            said = self._announced.setdefault(place, _Announced())
            served = wanted.get(place, 0)
            if served == said.served and said.due > -math.inf:
                continue
            if gone := said.served & ~served:
                said.withdrawn |= gone
                said.withdrawn_until = now + self._lifetime
            said.withdrawn &= ~served
            said.served = served
            said.due = -math.inf
            if not served and place.kind is Kind.BRANCHES:  # others may be below it: it expires
                del self._announced[place]
        self._changed.set()

    def _addresses(self) -> tuple[Multiaddr, ...]:
        """Where this node is: through relays first, since who has relays cannot be dialled.

        Where an entry has no room for all addresses, it is the last ones that are left out.
        """
        return tuple(sorted(self._host.addresses, key=is_relayed, reverse=True))

    def _receive_local_change(self, _event: LocalPeerChanged) -> None:
        """Tell anew where this node is, if that has changed."""
        before, self._told = self._told, self._addresses()
        if before != self._told:
            for place, said in self._announced.items():
                if place.kind is Kind.HOSTS:
                    said.due = -math.inf
            self._changed.set()

    def _entry(self, place: Place, said: _Announced) -> Entry:
        now, proof = wall_time(), self._proof_of(place.run_id)
        if proof.expires <= now:
            raise TokenExpiredError("this node's membership has expired; ask for a new invite")
        if trio.current_time() >= said.withdrawn_until:
            said.withdrawn = 0
        hosts, branches = place.kind is Kind.HOSTS, place.kind is Kind.BRANCHES
        return Entry(
            peer_id=self._host.peer_id,
            served=said.served,
            withdrawn=0 if branches else said.withdrawn,
            issued=self._issued,
            lifetime=min(self._lifetime, proof.expires - self._issued - ROUNDING),
            load=self._load() if hosts else 0,
            throughput=0.0 if branches else self._throughput(),
            addresses=self._told if hosts else (),
            token=proof.token,
        )
