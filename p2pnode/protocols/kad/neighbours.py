"""Who is closest to a key: looked up, or known from a look-up nearby."""

import contextlib
from collections.abc import Sequence
from functools import partial

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import ConnectionClosedError, NoPeersError, NotFoundError
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.joining import no_peers
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import MAX_ADDRESSES, Message, MessageType
from p2pnode.protocols.kad.queries import Queries
from p2pnode.protocols.kad.regions import Neighbourhood, Regions
from p2pnode.protocols.kad.search import Searches
from p2pnode.wire.peer_id import PeerId


class Neighbours:
    """Finds the peers closest to keys."""

    def __init__(
        self, core: KadCore, queries: Queries, searches: Searches, settings: DhtSettings
    ) -> None:
        self._core = core
        self._queries = queries
        self._searches = searches
        self._settings = settings
        self._regions = Regions(settings.bucket_size, settings.lookup_reuse)

    async def find(self, key: bytes) -> list[PeerId]:
        """Look up the k peers closest to `key` that answer; the closest first.

        Raises:
            NoPeersError: there is nobody to ask, or nobody answers.
        """
        return await self._searches.share("closest", key, partial(self._find, key)).wait()

    async def find_peer(self, peer_id: PeerId) -> list[Multiaddr]:
        """Look up where a peer is.

        Raises:
            NotFoundError: nobody asked knows.
            NoPeersError: there is nobody to ask.
        """
        work = partial(self._find_peer, peer_id)
        return await self._searches.share("peer", bytes(peer_id), work).wait()

    async def near(self, key: bytes) -> list[PeerId]:
        """The peers closest to `key`, remembered or found; empty when nobody answers."""
        if (known := self.recall(key)) is not None:
            return known.peers
        try:
            return await self.find(key)
        except NoPeersError:
            return []  # a server still keeps the value itself, and serves it to whoever comes

    async def look_towards(self, key: bytes, breadth: int | None = None) -> None:
        """Look up `key` for the sake of the table: ours, and of those who learn of us by it."""
        with contextlib.suppress(NoPeersError, ConnectionClosedError):  # alone, or stopping
            if breadth is None:
                await self.find(key)
            else:
                await self._searches.start(partial(self._glance, key, breadth)).wait()

    def recall(self, key: bytes) -> Neighbourhood | None:
        """Return who is closest to `key`, if a look-up has lately told and all still stand."""
        target, now = point(key), trio.current_time()
        known = self._regions.recall(target, now)
        if known is None or not known.peers:
            return None
        if any(self._core.bans.is_banned(peer, now) for peer in known.peers):
            return None
        return known if self._is_current(target, known) else None

    def forget(self, key: bytes) -> None:
        """Make the next look-up near `key` a full one."""
        self._regions.forget(point(key))

    def remember(self, key: bytes, closest: Sequence[PeerId]) -> None:
        """Note the outcome of a full look-up."""
        if closest:
            self._regions.remember(point(key), list(closest), trio.current_time())

    def need_peers(self) -> None:
        """Check that there is somebody to ask.

        Raises:
            NoPeersError: the table is empty.
        """
        if not len(self._core.table):
            raise no_peers()

    async def _find(self, key: bytes, requests: trio.Nursery) -> list[PeerId]:
        self.need_peers()
        lookup = await self._queries.iterate(Message(type=MessageType.FIND_NODE, key=key), requests)
        closest = lookup.closest
        if not closest:
            raise NoPeersError(
                f"none of the {lookup.asked} peers of the DHT that were asked answers"
            )
        self.remember(key, closest)
        return closest

    async def _find_peer(self, peer_id: PeerId, requests: trio.Nursery) -> list[Multiaddr]:
        self.need_peers()
        found: list[Multiaddr] = []

        def receive(_peer: PeerId, answer: Message) -> bool:
            for contact in answer.closer:
                if contact.peer_id == peer_id and len(found) < MAX_ADDRESSES:
                    found.extend(each for each in contact.addresses if each not in found)
            return bool(found)

        message = Message(type=MessageType.FIND_NODE, key=bytes(peer_id))
        await self._queries.iterate(message, requests, receive)
        if not found:
            raise NotFoundError(f"the DHT knows no address of {peer_id}")
        return found

    async def _glance(self, key: bytes, breadth: int, requests: trio.Nursery) -> None:
        self.need_peers()
        message = Message(type=MessageType.FIND_NODE, key=key)
        await self._queries.iterate(message, requests, breadth=breadth)

    def _is_current(self, target: int, known: Neighbourhood) -> bool:
        """Tell whether no peer in the table belongs among those remembered as closest."""
        inside = set(known.peers)
        size = self._settings.bucket_size
        if len(known.peers) < size:
            return inside.issuperset(self._core.table.closest(target, size))
        farthest = point(known.peers[known.sure - 1]) ^ target
        return all(
            peer in inside or point(peer) ^ target > farthest
            for peer in self._core.table.closest(target, known.sure)
        )
