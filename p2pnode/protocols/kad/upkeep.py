"""What keeps a routing table full and fresh, and carries it over a restart.

A node that has just heard of somebody looks for itself, which fills the ranges near it, and then
glances into the others. Both happen again every `refresh_interval`, for what was not looked through
lately. Source: Kademlia (2002), section 2.3.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.host import Host
from p2pnode.host.kept_table import KeptTable
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.keys import common_prefix, point, random_key
from p2pnode.protocols.kad.neighbours import Neighbours
from p2pnode.protocols.kad.search import Searches

if TYPE_CHECKING:
    from p2pnode.protocols.kad.saved_table import Saved

GLANCE_BREADTH: Final = 4  # peers found in each range on joining, and from time to time


class TableUpkeep:
    """The upkeep of a node's routing table.

    Args:
        host: tells where peers are.
        core: whose table it is.
        neighbours: finds peers.
        searches: whose nursery the slower part runs in.
        saved: the table's file.
        settings: intervals.
        rng: the source of chance.

    Attributes:
        recalled: the table of the last session.
    """

    def __init__(
        self,
        host: Host,
        core: KadCore,
        neighbours: Neighbours,
        *,
        searches: Searches,
        saved: KeptTable[Sequence[Multiaddr]],
        settings: DhtSettings,
        rng: random.Random,
    ) -> None:
        self.recalled: Saved = {}
        self._host = host
        self._core = core
        self._neighbours = neighbours
        self._searches = searches
        self._saved = saved
        self._settings = settings
        self._rng = rng
        self._refresh_at = float("inf")
        self._save_at = float("inf")

    async def start(self) -> None:
        """Recall the table of the last session, and be due from now on."""
        self.recalled = await self._saved.load()
        self._schedule_refresh()
        self._schedule_save()

    async def look_for_self(self) -> None:
        """Look up our own id, which finds the peers nearest to us."""
        await self._neighbours.look_towards(bytes(self._host.peer_id))

    async def fill(self) -> None:
        """Fill the table, now that somebody has answered."""
        await self.look_for_self()
        if self._searches.nursery is not None:  # else the DHT has stopped meanwhile
            self._searches.nursery.start_soon(self._refresh_ranges)  # the rest can wait

    async def refresh(self) -> None:
        """Look up our own id, and each range of the table that was not looked through lately."""
        await self.look_for_self()
        await self._refresh_ranges()

    async def _refresh_ranges(self) -> None:
        table = self._core.table
        due = table.due_for_refresh(trio.current_time(), self._settings.refresh_interval)
        # Those closest to us, whom the look-up of our own id has just found, are all there are
        # in the ranges behind the farthest of them.
        near = table.closest(table.own, self._settings.bucket_size)
        deepest = common_prefix(table.own, point(near[-1])) if near else 0
        for bits in due:
            if bits <= deepest:
                key = random_key(table.own, bits, self._rng)
                await self._neighbours.look_towards(key, GLANCE_BREADTH)

    def next_refresh(self, _now: float) -> float:
        """Return when `refresh_regularly` is due."""
        return self._refresh_at

    async def refresh_regularly(self) -> None:
        """Refresh, and be due again."""
        self._schedule_refresh()
        await self.refresh()

    def _schedule_refresh(self) -> None:
        # Not all nodes at once: those started together would stay in step for ever.
        wait = self._settings.refresh_interval * self._rng.uniform(0.75, 1.25)
        self._refresh_at = trio.current_time() + wait

    def next_save(self, _now: float) -> float:
        """Return when `save_regularly` is due; infinity if there is no file."""
        return self._save_at

    async def save_regularly(self) -> None:
        """Save, and be due again."""
        self._schedule_save()
        await self.save()

    def _schedule_save(self) -> None:
        if self._saved.is_kept:
            wait = self._settings.save_interval * self._rng.uniform(0.75, 1.25)
            self._save_at = trio.current_time() + wait

    async def save(self) -> None:
        """Write the table to its file, unless it is empty: then the last one is worth more."""
        if self._saved.is_kept and len(self._core.table):
            found = {peer: self._host.addresses_of(peer) for peer in self._core.table}
            await self._saved.save({peer: where for peer, where in found.items() if where})
