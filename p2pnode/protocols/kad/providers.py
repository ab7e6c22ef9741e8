"""Telling who provides what, and finding it out."""

from collections.abc import Callable, Sequence
from functools import partial

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.messages import MAX_ADDRESSES, Contact, Message, MessageType
from p2pnode.protocols.kad.neighbours import Neighbours
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.protocols.kad.queries import Queries
from p2pnode.protocols.kad.search import Searches
from p2pnode.wire.peer_id import PeerId


class Providers:
    """The provider records of the DHT; `serves` tells whether this node keeps some for others."""

    def __init__(
        self,
        *,
        core: KadCore,
        peers: KadPeers,
        queries: Queries,
        neighbours: Neighbours,
        searches: Searches,
        settings: DhtSettings,
        serves: Callable[[], bool],
    ) -> None:
        self._core = core
        self._peers = peers
        self._queries = queries
        self._neighbours = neighbours
        self._searches = searches
        self._settings = settings
        self._serves = serves

    async def provide(self, multihash: bytes) -> int:
        """Tell the peers closest to a multihash that we provide it; see `KadDht.provide`."""
        return await self._searches.start(partial(self._provide, multihash)).wait()

    async def find(self, multihash: bytes) -> dict[PeerId, list[Multiaddr]]:
        """Find who provides a multihash; see `KadDht.find_providers`."""
        work = partial(self._find, multihash)
        return dict(await self._searches.share("providers", multihash, work).wait())

    async def _provide(self, multihash: bytes, requests: trio.Nursery) -> int:
        own = self._peers.contact_of(self._core.own)
        closest = await self._neighbours.near(multihash)
        told = 0
        if self._serves() and self._core.is_near(multihash, closest):
            self._core.providers.add(multihash, own, wall_time() + self._settings.provider_ttl)
            told = 1
        message = Message(type=MessageType.ADD_PROVIDER, key=multihash, providers=(own,))
        answers = await self._queries.ask_all(closest, message, requests)
        if len(answers) < len(closest):
            self._neighbours.forget(multihash)
        if not told and not answers:
            raise NoPeersError("no peer of the DHT could be told")
        return told + len(answers)

    async def _find(
        self, multihash: bytes, requests: trio.Nursery
    ) -> dict[PeerId, list[Multiaddr]]:
        found: dict[PeerId, list[Multiaddr]] = {}
        informers = 0

        def note(contacts: Sequence[Contact]) -> None:
            for contact in contacts:
                known = found.setdefault(contact.peer_id, [])
                if len(known) < MAX_ADDRESSES:
                    known += [address for address in contact.addresses if address not in known]

        def receive(_peer: PeerId, answer: Message) -> bool:
            nonlocal informers
            informers += bool(answer.providers)
            note(answer.providers)
            # One liar could otherwise end the search before anybody else is asked.
            return informers >= self._settings.resiliency and enough()

        def enough() -> bool:
            return len(found) >= self._settings.bucket_size

        note(self._core.providers.get(multihash, wall_time()))
        if not found:
            self._neighbours.need_peers()
        if not enough():
            message = Message(type=MessageType.GET_PROVIDERS, key=multihash)
            await self._queries.iterate(message, requests, receive)
        return found
