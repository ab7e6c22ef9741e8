"""Keeping values at the peers closest to them while nodes come and go.

- A newcomer that is closer to a value than this node is sent it by whoever was the closest before,
  and by nobody else. Source: Kademlia (2002), 2.5.
- A value that nobody has stored here again for an interval is stored again at those closest. They
  then leave it alone for an interval, so that one of its holders does the work for all.
- A node that leaves hands each value to the peer that takes its place among the k closest.

Copies carry the time when the value first came, so that copying makes none live longer. A value
that ends soon by its own word is left to its owner, who renews it.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import P2PNodeError, ResourceLimitError, StreamResetError
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import Message, MessageType
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.protocols.kad.values import Values
from p2pnode.wire.peer_id import PeerId

COPIES_AT_ONCE: Final = 16
COPIES_AT_ONCE_TO_ONE: Final = 4  # so that a slow peer does not hold up what others should get
COPYING_TIMEOUT: Final = 300.0  # seconds for all copies to one peer; replication does the rest
MAX_NEWCOMERS: Final = 1024  # more than a table holds
GREETING_SPACING: Final = 600.0  # seconds between two greetings of one peer that comes and goes
_KEYS_PER_STEP: Final = 256  # looked at before others may run
_LOOKS: Final = 4  # per replication interval, so that no value waits much longer than one


class Replication:
    """The copies this node sends of what it keeps."""

    def __init__(
        self, core: KadCore, peers: KadPeers, values: Values, settings: DhtSettings
    ) -> None:
        self._core = core
        self._peers = peers
        self._values = values
        self._settings = settings
        self._newcomers: dict[PeerId, float] = {}  # not to be greeted before
        self._greeted: OrderedDict[PeerId, float] = OrderedDict()  # when
        self._greet_at = float("inf")
        self._look_at = float("inf")

    # --- newcomers ------------------------------------------------------------------------------

    def receive_added(self, peer: PeerId, now: float) -> None:
        """Note a newcomer in the table."""
        if len(self._core.records):
            earliest = self._greeted.get(peer, float("-inf")) + GREETING_SPACING
            self._greet_at = min(self._greet_at, max(now + self._settings.handover_delay, earliest))
            self._newcomers[peer] = earliest
            if len(self._newcomers) > MAX_NEWCOMERS:
                del self._newcomers[next(iter(self._newcomers))]

    def next_greeting(self, _now: float) -> float:
        """Return when newcomers are to be sent what they should keep; infinity for never."""
        return self._greet_at

    async def greet(self) -> None:
        """Send the newcomers what they should keep."""
        now, noted = trio.current_time(), self._newcomers
        newcomers = {peer: None for peer, earliest in noted.items() if earliest <= now}
        self._newcomers = {peer: when for peer, when in noted.items() if peer not in newcomers}
        self._greet_at = min(self._newcomers.values(), default=float("inf"))
        for peer in newcomers:
            self._greeted[peer] = now
            self._greeted.move_to_end(peer)
            if len(self._greeted) > MAX_NEWCOMERS:
                self._greeted.popitem(last=False)
        size, table = self._settings.bucket_size, self._core.table
        copies: list[tuple[bytes, PeerId]] = []
        for number, key in enumerate(list(self._core.records)):
            if number % _KEYS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
            target = point(key)
            if not table.is_closest(target, without=noted):
                continue  # somebody else is closer, and does it
            closest = table.closest(target, size)
            if not self._core.is_near(key, closest):
                continue
            copies += [(key, peer) for peer in closest if peer in newcomers]
        await self._copy(copies, self._settings.handover_delay)

    # --- values that nobody renews --------------------------------------------------------------

    def next_look(self, now: float) -> float:
        """Return when to look for values that nobody renews; infinity for never."""
        if not len(self._core.records):
            self._look_at = float("inf")
        elif self._look_at == float("inf"):
            self._look_at = now + self._settings.replicate_interval / _LOOKS
        return self._look_at

    async def replicate(self) -> None:
        """Store again what nobody has for an interval."""
        self._look_at = float("inf")
        wall, interval = wall_time(), self._settings.replicate_interval
        due = []
        for number, key in enumerate(sorted(self._core.records, key=point)):
            if number % _KEYS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
            held = self._core.records.get(key, wall)
            if held is not None and held.renewed <= wall - interval < held.expires - 2 * interval:
                due.append(key)
        for key in due:  # one after the other: neighbours share a look-up, and there is time
            held = self._core.records.get(key, wall_time())
            record = self._core.record(key, wall_time())
            if record is None or held is None or held.renewed > wall - interval:
                continue  # one of the other holders was faster
            with contextlib.suppress(P2PNodeError):  # this one alone; there will be another time
                await self._values.put_again(key, record)
            if not len(self._core.table):
                return

    # --- leaving --------------------------------------------------------------------------------

    async def hand_over(self) -> int:
        """Hand each value to the peer that takes this node's place; returns how many."""
        size = self._settings.bucket_size
        copies = []
        for number, key in enumerate(list(self._core.records)):
            if number % _KEYS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
            closest = self._core.table.closest(point(key), size)
            if len(closest) == size and self._core.is_near(key, closest):
                copies.append((key, closest[-1]))  # all others among the k closest have it
        return await self._copy(copies, self._settings.handover_delay)

    async def _copy(self, copies: Iterable[tuple[bytes, PeerId]], least_life: float) -> int:
        """Send each value to its peer; a peer that fails is sent no more. Returns how many went."""
        keys_of: dict[PeerId, list[bytes]] = {}
        for key, peer in copies:
            keys_of.setdefault(peer, []).append(key)
        limiter = trio.CapacityLimiter(COPIES_AT_ONCE)
        sent = 0

        async def work(peer: PeerId, waiting: Iterator[bytes], scope: trio.CancelScope) -> None:
            nonlocal sent
            for key in waiting:
                async with limiter:
                    wall = wall_time()
                    held, record = self._core.records.get(key, wall), self._core.record(key, wall)
                    if held is None or record is None or held.expires <= wall + least_life:
                        continue
                    message = Message(type=MessageType.PUT_VALUE, key=key, record=record)
                    try:
                        await self._peers.ask(peer, message)
                    except (StreamResetError, ResourceLimitError):
                        continue  # it refuses this value
                    except P2PNodeError:
                        scope.cancel()
                        return
                    sent += 1

        async def serve(peer: PeerId, keys: list[bytes]) -> None:
            with trio.move_on_after(COPYING_TIMEOUT) as scope:
                async with trio.open_nursery() as nursery:
                    waiting = iter(keys)
                    for _ in range(min(len(keys), COPIES_AT_ONCE_TO_ONE)):
                        nursery.start_soon(work, peer, waiting, scope)

        async with trio.open_nursery() as nursery:
            for peer, keys in keys_of.items():
                nursery.start_soon(serve, peer, keys)
        return sent
