"""The DHT of one node: look-ups, values and providers over a `Host`.

A server answers others, is listed in their routing tables and keeps values for them; a client only
asks. Source: libp2p/specs, kad-dht; Kademlia (2002). What goes beyond them is said where it is:
`lookup` (disjoint paths, doubt), `regions` and `values` (shared searches, merging, caching),
`replication`, `joining` (finding the DHT again), `peers` (signs of life).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError
from p2pnode.events import Event
from p2pnode.host import (
    ConnectionEnded,
    Host,
    PeerIdentified,
    Reachability,
    ReachabilityChanged,
)
from p2pnode.host.kept_table import KeptTable
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.jobs import Job, Jobs
from p2pnode.protocols.kad.joining import Joining
from p2pnode.protocols.kad.neighbours import Neighbours
from p2pnode.protocols.kad.peers import DhtPeerAdded, DhtPeerLost, KadPeers
from p2pnode.protocols.kad.providers import Providers
from p2pnode.protocols.kad.publications import Publications
from p2pnode.protocols.kad.publisher import Publisher
from p2pnode.protocols.kad.queries import Queries
from p2pnode.protocols.kad.replication import Replication
from p2pnode.protocols.kad.saved_table import FORMAT
from p2pnode.protocols.kad.search import Search, Searches
from p2pnode.protocols.kad.server import KadServer
from p2pnode.protocols.kad.upkeep import TableUpkeep
from p2pnode.protocols.kad.validators import Validator
from p2pnode.protocols.kad.values import Values
from p2pnode.wire.peer_id import PeerId

IDLE_SPACING: Final = 45.0  # seconds between two rounds of closing streams; kept ones cost little
SPACING: Final = 5.0  # between two rounds of other upkeep; a round does all that waits
CLEANING_SPACING: Final = 30.0  # what has expired is not served any more, and may lie a little
CLEANING_DELAY: Final = 1.0
_RECALLED_AT_ONCE: Final = 32  # peers of an earlier session; some still run


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtModeChanged(Event):
    """This node began, or ceased, to serve the DHT."""

    serves: bool


class KadDht:
    """A node of the Kademlia DHT; its methods need `run` to be running.

    Args:
        host: the node's network side.
        settings: limits and intervals.
        rng: the source of chance.
        validators: the rules of each namespace by its name, such as `{"pk": …}`.
        table_file: where the routing table outlives the process, if anywhere.
    """

    def __init__(
        self,
        host: Host,
        settings: DhtSettings | None = None,
        rng: random.Random | None = None,
        validators: Mapping[str, Validator] | None = None,
        *,
        table_file: Path | None = None,
    ) -> None:
        self.settings = settings or DhtSettings()
        self._host = host
        self._rng = rng or random.Random()
        self._mode = self.settings.mode
        self._reachability = Reachability.UNKNOWN
        rules = dict(validators or {})
        self._core = KadCore(host.peer_id, self.settings, rules)
        self._joining = Joining(host, self._core, self.settings, self._rng)
        self._peers = KadPeers(
            host,
            self._core,
            self.settings,
            lost=self._joining.receive_lost,
            changed=self._wake_to_check,
        )
        self._server = KadServer(host, self._core, self._peers, self.settings)
        self._searches = Searches()
        self._queries = Queries(self._core, self._peers, host.events, self.settings)
        self._neighbours = Neighbours(self._core, self._queries, self._searches, self.settings)
        self._values = Values(
            core=self._core,
            peers=self._peers,
            queries=self._queries,
            neighbours=self._neighbours,
            searches=self._searches,
            validators=rules,
            settings=self.settings,
            rng=self._rng,
            serves=lambda: self.serves,
        )
        self._providers = Providers(
            core=self._core,
            peers=self._peers,
            queries=self._queries,
            neighbours=self._neighbours,
            searches=self._searches,
            settings=self.settings,
            serves=lambda: self.serves,
        )
        self._replication = Replication(self._core, self._peers, self._values, self.settings)
        self._published = Publications(
            self.settings.republish_interval, self.settings.max_published, self._rng
        )
        self._publisher = Publisher(self._core, self._values, self._providers, self._published)
        self._upkeep = TableUpkeep(
            host,
            self._core,
            self._neighbours,
            searches=self._searches,
            saved=KeptTable(table_file, FORMAT, host.events.emit),
            settings=self.settings,
            rng=self._rng,
        )
        self._jobs = Jobs(self._plan())

    @property
    def peers(self) -> list[PeerId]:
        """The peers in the routing table."""
        return list(self._core.table)

    @property
    def record_count(self) -> int:
        """How many values this node keeps."""
        return len(self._core.records)

    @property
    def busy(self) -> int:
        """How many searches and requests are under way, upkeep aside."""
        nursery = self._searches.nursery
        return len(nursery.child_tasks) - 1 if nursery is not None else 0

    @property
    def serves(self) -> bool:
        """Whether this node answers others, keeps values for them, and is told of to others."""
        if self._mode == "auto":
            return self._reachability is not Reachability.PRIVATE
        return self._mode == "server"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and maintain the DHT until cancelled."""
        async with trio.open_nursery() as nursery:
            self._searches.nursery = nursery
            events = self._host.events
            undo = [
                events.on(PeerIdentified, self._peers.receive_identified),
                events.on(ConnectionEnded, self._peers.receive_ended),
                events.on(ReachabilityChanged, self._receive_reachability),
                events.on(DhtPeerAdded, self._receive_added),
                events.on(DhtPeerLost, self._receive_lost),
            ]
            try:
                await self._upkeep.start()
                self._peers.receive_connections()
                self._apply_mode()
                nursery.start_soon(self._jobs.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._searches.nursery = None
                for each in undo:
                    each()
                self._server.stop()
                self._peers.reset_idle()

    # --- joining and leaving --------------------------------------------------------------------

    async def bootstrap(self, peers: Sequence[tuple[PeerId, Multiaddr]]) -> int:
        """Join the DHT by known peers, which are remembered.

        Whoever of them the routing table does not know is asked again from time to time, and
        steadily when all others are lost.

        Returns:
            How many of `peers` answered; this node itself among them is passed over.

        Raises:
            NoPeersError: none of them answered; it names each address and what went wrong there.
        """
        addresses: dict[PeerId, list[Multiaddr]] = {}
        for peer, address in peers:
            if peer != self._host.peer_id:
                addresses.setdefault(peer, []).append(address)
        failures = await self._joining.join(self._peers, addresses)
        self._wake()
        if failures and len(failures) == len(addresses):
            tried = "; ".join(
                f"{address}/p2p/{peer}: {failures[peer]}"
                for peer, known in addresses.items()
                for address in known
            )
            raise NoPeersError(f"no bootstrap peer answers: {tried}")
        if addresses:
            await self._upkeep.fill()
        return len(addresses) - len(failures)

    async def rejoin(self, peers: Sequence[PeerId] = ()) -> int:
        """Look for the DHT at peers of the saved routing table; those silent are tried again.

        Args:
            peers: more to try, met in an earlier session, whose addresses the host knows.

        Returns:
            How many answered.
        """
        recalled = self._upkeep.recalled
        saved = list(recalled)
        chosen = self._rng.sample(saved, min(len(saved), _RECALLED_AT_ONCE))
        known: dict[PeerId, Sequence[Multiaddr]] = dict.fromkeys(peers, ())
        known |= {peer: recalled[peer] for peer in chosen}
        known.pop(self._host.peer_id, None)
        answered = await self._joining.recall(self._peers, known)
        self._wake()
        if answered:
            await self._upkeep.fill()
        return answered

    async def leave(self) -> int:
        """Hand the values kept here to the peers that take this node's place, before it ends.

        Takes `leave_timeout` at most.

        Returns:
            How many values were handed over.
        """
        handed = 0
        with trio.move_on_after(self.settings.leave_timeout):
            await self._upkeep.save()
            if self.serves:
                handed = await self._replication.hand_over()
        return handed

    def set_mode(self, mode: str) -> None:
        """Become a server or a client, or let reachability decide (`auto`), at once.

        Identify tells the peers, who then take this node into their tables, or drop it.
        """
        self._mode = mode
        self._apply_mode()

    # --- look-ups -------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look up our own id, and each range of the table that was not looked through lately."""
        await self._upkeep.refresh()

    async def closest_peers(self, key: bytes) -> list[PeerId]:
        """Find the k peers closest to `key` that answer, this node aside; the closest first.

        Raises:
            NoPeersError: there is nobody to ask.
        """
        return await self._neighbours.find(key)

    async def find_peer(self, peer_id: PeerId) -> list[Multiaddr]:
        """Find a peer's addresses.

        Raises:
            NotFoundError: nobody asked knows them.
            NoPeersError: there is nobody to ask.
        """
        if peer_id == self._host.peer_id:
            await trio.lowlevel.checkpoint()
            return self._host.addresses
        known = self._host.addresses_of(peer_id)
        if known and (peer_id in self._core.table or self._host.connection_to(peer_id)):
            await trio.lowlevel.checkpoint()
            return known
        return await self._neighbours.find_peer(peer_id)

    # --- values ---------------------------------------------------------------------------------

    async def put_value(self, key: bytes, value: bytes, *, publish: bool = False) -> int:
        """Store `value` at the k peers closest to `key`, which may include this node.

        Args:
            key: `/<namespace>/<rest>`.
            value: what.
            publish: whether to store it again every `republish_interval`, as long as this node
                runs or until `unpublish`; without that it ends after `record_ttl`.

        Returns:
            At how many it is stored for sure: when one has it, slow ones are not waited for.

        Raises:
            ProtocolError: the value may not stand under the key.
            NoPeersError: nobody could store it; what is published is tried again all the same.
            ResourceLimitError: this node publishes too much.
        """
        self._core.check(key, value, wall_time())
        if publish:
            self._published.add(key, value, trio.current_time())
            self._wake()
        try:
            return await self._values.put(key, value)
        except NoPeersError:
            self._publisher.retry(key)
            self._wake()
            raise

    async def put_many(
        self, values: Mapping[bytes, bytes], *, copies: int | None = None
    ) -> dict[bytes, int]:
        """Store several values at once; keys close together share look-ups and connections.

        Args:
            values: by key.
            copies: at how many peers each is stored, at most k, which is the default; values that
                live for seconds and are soon stored again need fewer.

        Returns:
            By key, at how many peers the value is stored for sure; 0 if nobody could.

        Raises:
            ProtocolError: a value may not stand under its key; then none is stored.
            NoPeersError: none could be stored.
        """
        return await self._values.put_many(values, copies)

    async def get_value(self, key: bytes) -> bytes:
        """Find the value of `key`, merged from what several peers hold.

        Raises:
            NotFoundError: nobody asked holds one, now or a moment ago.
            NoPeersError: there is nobody to ask, and none is held here.
        """
        return await self._values.get(key)

    def begin_get(self, key: bytes) -> Search[bytes]:
        """Start `get_value` in the background, or join one under way; never blocks."""
        return self._values.begin_get(key)

    def forget_absence(self, key: bytes) -> None:
        """Make the next search for `key` a real one, though it was found to have no value lately.

        For who has a reason to ask again: a search does not wait for peers that are slow, and the
        one that holds the value may have been.
        """
        self._values.forget_absence(key)

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Find the values of several keys at once; keys without a value are left out.

        Raises:
            NoPeersError: there is nobody to ask, and some value is not held here.
        """
        return await self._values.get_many(keys)

    # --- providers ------------------------------------------------------------------------------

    async def provide(self, multihash: bytes, *, publish: bool = False) -> int:
        """Tell the k peers closest to `multihash` that this node provides it.

        Args:
            multihash: what is provided.
            publish: whether to tell them again every `republish_interval`, until `unpublish`;
                without that they forget it after `provider_ttl`.

        Returns:
            How many were told, which may include this node.

        Raises:
            NoPeersError: nobody could be told.
            ResourceLimitError: this node publishes too much.
        """
        if publish:
            self._published.add(multihash, None, trio.current_time())
            self._wake()
        try:
            return await self._providers.provide(multihash)
        except NoPeersError:
            self._publisher.retry(multihash)
            self._wake()
            raise

    async def find_providers(self, multihash: bytes) -> dict[PeerId, list[Multiaddr]]:
        """Find who provides `multihash`, and where they are.

        Raises:
            NoPeersError: there is nobody to ask, and no provider is known here.
        """
        return await self._providers.find(multihash)

    def unpublish(self, key: bytes) -> bool:
        """Stop publishing a value or a provided key; returns whether it was published."""
        return self._published.remove(key)

    # --- what happens ---------------------------------------------------------------------------

    def _wake(self) -> None:
        self._jobs.wake()

    def _wake_to_check(self) -> None:
        self._jobs.wake(self._peers.next_check(trio.current_time()))

    def _receive_reachability(self, event: ReachabilityChanged) -> None:
        if event.reachability is not Reachability.UNKNOWN:  # then what was true is as likely still
            self._reachability = event.reachability
            self._apply_mode()

    def _receive_added(self, event: DhtPeerAdded) -> None:
        if self.serves:
            self._replication.receive_added(event.peer_id, trio.current_time())
        self._jobs.wake(self._replication.next_greeting(trio.current_time()))
        self._wake_to_check()

    def _receive_lost(self, _event: DhtPeerLost) -> None:
        self._wake()

    def _apply_mode(self) -> None:
        if self.serves == self._server.is_running or self._searches.nursery is None:
            return
        if self.serves:
            self._server.start()
        else:
            self._server.stop()
            self._searches.nursery.start_soon(self._replication.hand_over)
        self._host.events.emit(DhtModeChanged(serves=self.serves))

    # --- upkeep ---------------------------------------------------------------------------------

    def _plan(self) -> list[Job]:
        core, peers, upkeep = self._core, self._peers, self._upkeep
        return [
            Job(
                lambda now: now + core.next_expiry() - wall_time() + CLEANING_DELAY,
                self._expire,
                CLEANING_SPACING,
            ),
            Job(lambda _: peers.next_idle(), peers.close_idle, IDLE_SPACING),
            Job(peers.next_check, peers.check_doubted, SPACING),
            Job(self._joining.next_retry, self._retry),
            Job(upkeep.next_refresh, upkeep.refresh_regularly),
            Job(self._publisher.next_due, self._publisher.publish, SPACING),
            Job(self._replication.next_greeting, self._replication.greet),
            Job(self._replication.next_look, self._replication.replicate),
            Job(upkeep.next_save, upkeep.save_regularly),
        ]

    async def _retry(self) -> None:
        if await self._joining.retry(self._peers):
            await self._upkeep.look_for_self()

    async def _expire(self) -> None:
        self._core.expire(wall_time())
