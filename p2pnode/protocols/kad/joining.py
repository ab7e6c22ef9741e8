"""How a node finds the DHT, and finds it again.

- The peers it was told to join by are never forgotten. While the table does not know one of them,
  it is asked again once per refresh interval, even when the node has others: two networks that
  share an address grow together by it.
- Peers that were lost are tried again, a few per minute and each ever less often: after a cut in
  the network, whoever is on the other side is met again. A peer that answers is lost no longer.
- When no peer is left, all of these are tried steadily, in turns.
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import NegotiationError, NoPeersError, RemoteError
from p2pnode.host import Host
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.peers import CHECKS_AT_ONCE, KadPeers
from p2pnode.wire.peer_id import PeerId

MAX_LOST: Final = 256  # about what a table holds: half of a network may be lost at once
MAX_BOOTSTRAP: Final = 64
LOST_INTERVAL: Final = 60.0  # seconds between tries of lost peers, and before the first of one
LOST_AT_ONCE: Final = 4  # tried each time; most are gone for good
ALONE_AT_ONCE: Final = 16


@dataclass(slots=True)
class _Lost:
    addresses: tuple[Multiaddr, ...]
    due: float
    wait: float = LOST_INTERVAL


class Joining:
    """The peers to join by, and those that were lost."""

    def __init__(
        self, host: Host, core: KadCore, settings: DhtSettings, rng: random.Random
    ) -> None:
        self._host = host
        self._core = core
        self._settings = settings
        self._rng = rng
        self._bootstrap: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()
        self._met: dict[PeerId, float] = {}  # bootstrap peers: when to ask them again
        self._lost: OrderedDict[PeerId, _Lost] = OrderedDict()
        self._retry_at = float("-inf")  # not earlier
        self._turn = 0

    @property
    def remembered(self) -> list[PeerId]:
        """Whom the node would join by, were it alone."""
        return list(dict.fromkeys((*self._bootstrap, *self._lost)))

    def receive_lost(self, peer: PeerId) -> None:
        """Remember where a peer was that fell silent, in case it has to be found again."""
        self._keep_lost(peer, self._host.addresses_of(peer))
        self._met.pop(peer, None)
        now = trio.current_time()
        if self._retry_at <= now:  # a loss every few seconds must not put it off for ever
            self._retry_at = now + self._settings.rejoin_interval

    async def join(
        self, peers: KadPeers, addresses: dict[PeerId, list[Multiaddr]]
    ) -> dict[PeerId, RemoteError]:
        """Join by bootstrap peers; returns those that failed, and why."""
        failures: dict[PeerId, RemoteError] = {}

        async def attempt(peer: PeerId) -> None:
            try:
                await peers.join_by(peer, addresses[peer], insist=True)
            except RemoteError as error:
                self._core.bans.receive_failure(peer, trio.current_time())
                failures[peer] = error
            else:
                self._note_met(peer)

        for peer, where in addresses.items():
            known = self._bootstrap.get(peer, ())
            self._bootstrap[peer] = tuple(dict.fromkeys((*known, *where)))
            if len(self._bootstrap) > MAX_BOOTSTRAP:
                self._bootstrap.popitem(last=False)
        async with trio.open_nursery() as nursery:
            for peer in addresses:
                nursery.start_soon(attempt, peer)
        return failures

    async def recall(self, peers: KadPeers, known: Mapping[PeerId, Sequence[Multiaddr]]) -> int:
        """Try peers of an earlier session; returns how many answered.

        All are remembered, except who does not speak this protocol.
        """
        for peer, addresses in known.items():
            self._keep_lost(peer, (*addresses, *self._host.addresses_of(peer)))
        return await self._try(peers, known)

    def next_retry(self, now: float) -> float:
        """Return when peers are to be tried next; infinity for never."""
        if not len(self._core.table):
            return max(now, self._retry_at) if self._bootstrap or self._lost else float("inf")
        due = min((each.due for each in self._lost.values()), default=float("inf"))
        for peer in self._bootstrap:
            if not self._core.table.knows(peer):
                due = min(due, self._due(peer, now))
        return max(due, self._retry_at)

    async def retry(self, peers: KadPeers) -> int:
        """Try those that are due; returns how many of them answered."""
        now, table = trio.current_time(), self._core.table
        self._retry_at = now + self._settings.rejoin_interval
        alone = not len(table)
        for peer in [each for each in self._lost if table.knows(each)]:
            del self._lost[peer]
        missing = [peer for peer in self._bootstrap if not table.knows(peer)]
        if not alone:
            chosen = [peer for peer in missing if self._due(peer, now) <= now]
            due = [peer for peer, lost in self._lost.items() if lost.due <= now]
            due.sort(key=lambda peer: self._lost[peer].due)
            chosen += [peer for peer in due if peer not in chosen][:LOST_AT_ONCE]
            if len(due) > LOST_AT_ONCE:
                self._retry_at = now + LOST_INTERVAL
        else:
            everybody = list(dict.fromkeys((*missing, *self._lost)))
            start = self._turn % max(len(everybody), 1)
            chosen = (everybody[start:] + everybody[:start])[:ALONE_AT_ONCE]
            self._turn = start + len(chosen)
        found = await self._try(peers, chosen)
        if found and alone:
            # It was this node that was cut off, and not all of them that fell silent.
            for peer in self.remembered:
                self._core.bans.pardon(peer)
            for lost in self._lost.values():
                lost.due = trio.current_time()
        return found

    def _due(self, bootstrap_peer: PeerId, now: float) -> float:
        return max(self._met.get(bootstrap_peer, now), self._core.bans.banned_until(bootstrap_peer))

    async def _try(self, peers: KadPeers, candidates: Iterable[PeerId]) -> int:
        found: list[PeerId] = []
        limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

        async def attempt(peer: PeerId) -> None:
            lost = self._lost.get(peer)
            addresses = (*self._bootstrap.get(peer, ()), *(lost.addresses if lost else ()))
            async with limiter:
                try:
                    await peers.join_by(peer, addresses)
                except NegotiationError:
                    self._lost.pop(peer, None)
                    self._note_met(peer)
                except RemoteError:
                    now = trio.current_time()
                    self._core.bans.receive_failure(peer, now)
                    if lost is not None:
                        lost.wait = min(2 * lost.wait, self._settings.max_ban_time)
                        lost.due = now + lost.wait * self._rng.uniform(0.75, 1.25)
                else:
                    self._lost.pop(peer, None)
                    self._note_met(peer)
                    found.append(peer)

        async with trio.open_nursery() as nursery:
            for peer in candidates:
                nursery.start_soon(attempt, peer)
        return len(found)

    def _note_met(self, peer: PeerId) -> None:
        """Leave a bootstrap peer that the table has no room for alone for a while."""
        if peer in self._bootstrap:
            wait = self._settings.refresh_interval * self._rng.uniform(0.75, 1.25)
            self._met[peer] = trio.current_time() + wait

    def _keep_lost(self, peer: PeerId, addresses: Iterable[Multiaddr]) -> None:
        known = self._lost.pop(peer, None)
        where = tuple(dict.fromkeys((*(known.addresses if known else ()), *addresses)))
        due = trio.current_time() + LOST_INTERVAL * self._rng.uniform(0.5, 1.5)
        self._lost[peer] = _Lost(where, due)
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)


def no_peers() -> NoPeersError:
    """Make the error that tells a node is alone, and what to do."""
    return NoPeersError(
        "the node knows no peer of the DHT; give it the address of a running node to join by"
    )
