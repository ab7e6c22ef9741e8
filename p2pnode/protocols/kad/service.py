"""The DHT of one node: look-ups, values and providers over a `Host`.

A server answers others, is listed in their routing tables and keeps values for them; a client only
asks. Source: libp2p/specs, kad-dht; Kademlia (2002). Beyond the specification:

- Values of a namespace merge, and who holds less than the merged value is sent it.
- Concurrent look-ups of one key are one search. For a while afterwards a value is looked up again
  by asking two of those who held it, and stored again at those found closest, without a search.
- Peers that were lost are tried again, ever less often, or steadily when no other is left.
"""

import contextlib
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import (
    ConnectionClosedError,
    NoPeersError,
    NotFoundError,
    ProtocolError,
    RemoteError,
)
from p2pnode.host import Host, PeerIdentified
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.keys import point, random_key
from p2pnode.protocols.kad.memory import PeersByKey
from p2pnode.protocols.kad.messages import Contact, Message, MessageType, Record
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.protocols.kad.queries import Queries
from p2pnode.protocols.kad.search import Search, Work
from p2pnode.protocols.kad.server import KadServer
from p2pnode.protocols.kad.validators import Validator, validator_of
from p2pnode.wire.peer_id import PeerId

KEYS_AT_ONCE: Final = 16  # of one `get_many`; each is a search of a few requests at once
HOLDERS_ASKED: Final = 2  # when a value is looked up again; two, as one may have missed an update
CLEANING_INTERVAL: Final = 5.0  # seconds; only what is due then costs anything

T = TypeVar("T")


class KadDht:
    """A node of the Kademlia DHT; its methods need `run` to be running.

    Args:
        host: the node's network side.
        settings: limits and intervals.
        rng: the source of chance.
        validators: the rules of each namespace by its name, such as `{"pk": …}`.
    """

    def __init__(
        self,
        host: Host,
        settings: DhtSettings | None = None,
        rng: random.Random | None = None,
        validators: Mapping[str, Validator] | None = None,
    ) -> None:
        self.settings = settings or DhtSettings()
        self._host = host
        self._rng = rng or random.Random()
        self._validators = dict(validators or {})
        self._core = KadCore(host.peer_id, self.settings, self._validators)
        self._peers = KadPeers(host, self._core, self.settings)
        self._queries = Queries(self._core, self._peers, self.settings)
        self._server = KadServer(host, self._core, self._peers, self.settings)
        self._nursery: trio.Nursery | None = None
        self._searches: dict[tuple[str, bytes], Search[Any]] = {}
        self._closest = PeersByKey(self.settings.lookup_reuse)
        self._holders = PeersByKey(self.settings.lookup_reuse)

    @property
    def peers(self) -> list[PeerId]:
        """The peers in the routing table."""
        return list(self._core.table)

    @property
    def serves(self) -> bool:
        """Whether this node answers others."""
        return self.settings.mode != "client"

    @property
    def record_count(self) -> int:
        """How many values this node keeps."""
        return len(self._core.records)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and maintain the DHT until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            undo = self._host.events.on(PeerIdentified, self._peers.receive_identified)
            try:
                self._peers.receive_connections()
                if self.serves:
                    self._server.start()
                nursery.start_soon(self._keep_refreshed)
                nursery.start_soon(self._keep_clean)
                nursery.start_soon(self._keep_joined)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                undo()
                self._server.stop()
                self._peers.reset_idle()

    # --- commands -------------------------------------------------------------------------------

    async def bootstrap(self, peers: Sequence[tuple[PeerId, Multiaddr]]) -> int:
        """Join the DHT by known peers, which are remembered and tried again when all are lost.

        Returns:
            How many of `peers` answered; this node itself among them is passed over.

        Raises:
            NoPeersError: none of them answered; it names each address and what went wrong there.
        """
        addresses: dict[PeerId, list[Multiaddr]] = {}
        for peer, address in peers:
            if peer != self._host.peer_id:
                addresses.setdefault(peer, []).append(address)
        failures: dict[PeerId, RemoteError] = {}

        async def join(peer: PeerId) -> None:
            self._peers.remember(peer, addresses[peer])
            try:
                await self._peers.join_by(peer, addresses[peer], insist=True)
            except RemoteError as error:
                failures[peer] = error

        async with trio.open_nursery() as nursery:
            for peer in addresses:
                nursery.start_soon(join, peer)
        if addresses and len(failures) == len(addresses):
            tried = "; ".join(
                f"{address}/p2p/{peer}: {failures[peer]}"
                for peer, known in addresses.items()
                for address in known
            )
            raise NoPeersError(f"no bootstrap peer answers: {tried}")
        if addresses:
            await self._enter()
        return len(addresses) - len(failures)

    async def rejoin(self, peers: Sequence[PeerId]) -> int:
        """Join the DHT by peers of an earlier session whose addresses the host knows.

        Those that do not answer are tried again later, as those given to `bootstrap` are.

        Returns:
            How many of `peers` answered.
        """
        answered = await self._peers.recall(peers)
        if answered:
            await self._enter()
        return answered

    async def refresh(self) -> None:
        """Look up our own id, and each range of the table that was not looked through lately."""
        await self._look_towards(bytes(self._host.peer_id))
        await self._refresh_ranges()

    async def closest_peers(self, key: bytes) -> list[PeerId]:
        """Find the k peers closest to `key` that answer, this node aside; the closest first.

        Raises:
            NoPeersError: there is nobody to ask.
        """
        return await self._share("closest", key, partial(self._find_closest, key)).wait()

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
        key = bytes(peer_id)
        return await self._share("peer", key, partial(self._find_peer, peer_id)).wait()

    async def put_value(self, key: bytes, value: bytes) -> int:
        """Store `value` at the k peers closest to `key`, which may include this node.

        Returns:
            At how many it is stored for sure: when one has it, slow ones are not waited for.

        Raises:
            ProtocolError: the value may not stand under the key.
            NoPeersError: nobody could store it.
        """
        self._core.check(key, value, wall_time())
        return await self._start(Search(partial(self._put, key, value))).wait()

    async def get_value(self, key: bytes) -> bytes:
        """Find the value of `key`, merged from what several peers hold.

        Raises:
            NotFoundError: nobody asked holds one.
            NoPeersError: there is nobody to ask, and none is held here.
        """
        return await self._share("value", key, partial(self._get, key)).wait()

    def begin_get(self, key: bytes) -> Search[bytes]:
        """Start `get_value` in the background, or join one under way; never blocks."""
        search = self._share("value", key, partial(self._get, key))
        search.detach()
        return search

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Find the values of several keys at once; keys without a value are left out.

        Raises:
            NoPeersError: there is nobody to ask, and some value is not held here.
        """
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), KEYS_AT_ONCE):
            searches = {key: self.begin_get(key) for key in keys[start : start + KEYS_AT_ONCE]}
            for key, search in searches.items():
                with contextlib.suppress(NotFoundError):
                    found[key] = await search.wait()
        return found

    async def provide(self, multihash: bytes) -> int:
        """Tell the k peers closest to `multihash` that this node provides it.

        They forget it after `provider_ttl`; call again before.

        Returns:
            How many were told, which may include this node.

        Raises:
            NoPeersError: nobody could be told.
        """
        return await self._start(Search(partial(self._provide, multihash))).wait()

    async def find_providers(self, multihash: bytes) -> dict[PeerId, list[Multiaddr]]:
        """Find who provides `multihash`, and where they are.

        Raises:
            NoPeersError: there is nobody to ask, and no provider is known here.
        """
        work = partial(self._find_providers, multihash)
        return dict(await self._share("providers", multihash, work).wait())

    # --- searches -------------------------------------------------------------------------------

    def _start(self, search: Search[T]) -> Search[T]:
        if self._nursery is None:
            raise ConnectionClosedError("the DHT is not running")
        self._nursery.start_soon(search.run)
        return search

    def _share(self, kind: str, key: bytes, work: Work[T]) -> Search[T]:
        search = self._searches.get((kind, key))
        if search is not None and search.is_joinable:
            return search

        async def tracked(requests: trio.Nursery) -> T:
            try:
                return await work(requests)
            finally:
                if self._searches.get((kind, key)) is fresh:
                    del self._searches[kind, key]

        fresh = Search(tracked)
        self._start(fresh)
        self._searches[kind, key] = fresh
        return fresh

    async def _find_closest(self, key: bytes, requests: trio.Nursery) -> list[PeerId]:
        self._need_peers()
        lookup = await self._queries.iterate(Message(type=MessageType.FIND_NODE, key=key), requests)
        if not lookup.closest:
            raise NoPeersError(
                f"none of the {lookup.asked} peers of the DHT that were asked answers"
            )
        self._closest.remember(key, lookup.closest, trio.current_time())
        return lookup.closest

    async def _enter(self) -> None:
        """Fill the table, now that somebody has answered."""
        await self._look_towards(bytes(self._host.peer_id))
        if self._nursery is not None:  # else the DHT has stopped meanwhile
            self._nursery.start_soon(self._refresh_ranges)  # the rest of the table can wait

    async def _look_towards(self, key: bytes) -> None:
        """Look up `key` for the sake of the table: ours, and of those who learn of us by it."""
        with contextlib.suppress(NoPeersError, ConnectionClosedError):  # alone, or stopping
            await self.closest_peers(key)

    async def _find_peer(self, peer_id: PeerId, requests: trio.Nursery) -> list[Multiaddr]:
        self._need_peers()
        found: list[Multiaddr] = []

        def receive(_peer: PeerId, answer: Message) -> bool:
            for contact in answer.closer:
                if contact.peer_id == peer_id:
                    found.extend(each for each in contact.addresses if each not in found)
            return bool(found)

        message = Message(type=MessageType.FIND_NODE, key=bytes(peer_id))
        await self._queries.iterate(message, requests, receive)
        if not found:
            raise NotFoundError(f"the DHT knows no address of {peer_id}")
        return found

    async def _put(self, key: bytes, value: bytes, requests: trio.Nursery) -> int:
        closest = await self._closest_or_none(key)
        stored = 0
        if self.serves and self._core.is_near(key, closest):
            self._core.store(key, value, wall_time())
            closest = closest[: self.settings.bucket_size - 1]
            stored = 1
        message = Message(type=MessageType.PUT_VALUE, key=key, record=Record(key, value))
        answers = await self._queries.ask_all(closest, message, requests)
        if len(answers) < len(closest):
            self._closest.forget(key)
        if not stored and not answers:
            raise NoPeersError("no peer of the DHT could store the value")
        return stored + len(answers)

    async def _get(self, key: bytes, requests: trio.Nursery) -> bytes:
        validator = validator_of(key, self._validators)
        held = self._core.value(key, wall_time())
        if not len(self._core.table):
            if held is None:
                raise _no_peers()
            return held
        values: dict[PeerId, bytes | None] = {}
        message = Message(type=MessageType.GET_VALUE, key=key)

        def receive(peer: PeerId, answer: Message) -> bool:
            values[peer] = self._valid_value(peer, key, answer)
            known = sum(value is not None for value in (held, *values.values()))
            return known >= self.settings.quorum

        keep = held is not None
        holders = self._recall(self._holders, key)
        for peer, answer in (await self._ask_some(holders, message, requests)).items():
            receive(peer, answer)
        if not values or None in values.values():
            self._holders.forget(key)
            lookup = await self._queries.iterate(message, requests, receive)
            holders = [peer for peer, value in values.items() if value is not None]
            self._holders.remember(key, holders, trio.current_time())
            keep = keep or self._core.is_near(key, lookup.closest)
        found = [value for value in (held, *values.values()) if value is not None]
        merged = validator.merge(key, found, wall_time()) if found else b""
        if not merged:
            raise NotFoundError("the DHT holds no value under this key")
        self._write_back(key, merged, values, requests)
        if self.serves and keep and validator.lacks(key, held, merged, wall_time()):
            self._core.store(key, merged, wall_time())
        return merged

    async def _ask_some(
        self, holders: Sequence[PeerId], message: Message, requests: trio.Nursery
    ) -> dict[PeerId, Message]:
        chosen = self._rng.sample(holders, min(HOLDERS_ASKED, len(holders)))
        answers = await self._queries.ask_all(chosen, message, requests)
        if len(answers) < len(chosen):
            self._holders.forget(message.key)  # the next look-up is a full search
        return answers

    def _valid_value(self, peer: PeerId, key: bytes, answer: Message) -> bytes | None:
        if answer.record is None:
            return None
        try:
            self._core.check(key, answer.record.value, wall_time())
        except ProtocolError as error:
            self._peers.report(peer, f"it holds an invalid value: {error}")
            return None
        return answer.record.value

    def _write_back(
        self,
        key: bytes,
        merged: bytes,
        values: Mapping[PeerId, bytes | None],
        requests: trio.Nursery,
    ) -> None:
        """Send the merged value to those that answered with less, without waiting for them."""
        validator = validator_of(key, self._validators)
        message = Message(type=MessageType.PUT_VALUE, key=key, record=Record(key, merged))
        lacking = [
            peer
            for peer, value in values.items()
            if validator.lacks(key, value, merged, wall_time())
        ]
        if lacking:
            requests.start_soon(self._queries.ask_all, lacking, message, requests)

    async def _provide(self, multihash: bytes, requests: trio.Nursery) -> int:
        own = self._peers.contact_of(self._host.peer_id)
        closest = await self._closest_or_none(multihash)
        told = 0
        if self.serves and self._core.is_near(multihash, closest):
            self._core.providers.add(multihash, own, wall_time() + self.settings.provider_ttl)
            told = 1
        message = Message(type=MessageType.ADD_PROVIDER, key=multihash, providers=(own,))
        answers = await self._queries.ask_all(closest, message, requests)
        if not told and not answers:
            raise NoPeersError("no peer of the DHT could be told")
        return told + len(answers)

    async def _find_providers(
        self, multihash: bytes, requests: trio.Nursery
    ) -> dict[PeerId, list[Multiaddr]]:
        found: dict[PeerId, list[Multiaddr]] = {}

        def note(contacts: Sequence[Contact]) -> bool:
            for contact in contacts:
                known = found.setdefault(contact.peer_id, [])
                known += [address for address in contact.addresses if address not in known]
            return len(found) >= self.settings.bucket_size

        enough = note(self._core.providers.get(multihash, wall_time()))
        if not found:
            self._need_peers()
        if not enough:
            message = Message(type=MessageType.GET_PROVIDERS, key=multihash)
            await self._queries.iterate(
                message, requests, lambda _peer, answer: note(answer.providers)
            )
        return found

    # --- what is remembered ---------------------------------------------------------------------

    async def _closest_or_none(self, key: bytes) -> list[PeerId]:
        """The peers closest to `key`, remembered or found; empty when nobody answers."""
        if (closest := self._recall(self._closest, key)) and self._is_current(key, closest):
            return closest
        try:
            return await self.closest_peers(key)
        except NoPeersError:
            return []  # a server still keeps the value itself, and serves it to whoever comes

    def _recall(self, memory: PeersByKey, key: bytes) -> list[PeerId]:
        now = trio.current_time()
        return [
            each for each in memory.recall(key, now) if not self._core.bans.is_banned(each, now)
        ]

    def _is_current(self, key: bytes, closest: Sequence[PeerId]) -> bool:
        """Tell whether no peer in the table belongs among those remembered as closest."""
        target, size = point(key), self.settings.bucket_size
        if len(closest) < size:
            return set(self._core.table.closest(target, size)) <= set(closest)
        return all(
            point(peer) ^ target >= point(closest[-1]) ^ target or peer in closest
            for peer in self._core.table.closest(target, size)
        )

    def _need_peers(self) -> None:
        if not len(self._core.table):
            raise _no_peers()

    # --- upkeep ---------------------------------------------------------------------------------

    async def _refresh_ranges(self) -> None:
        due = self._core.table.due_for_refresh(trio.current_time(), self.settings.refresh_interval)
        for bits in due:
            await self._look_towards(random_key(self._core.table.own, bits, self._rng))

    async def _keep_refreshed(self) -> None:
        while True:
            # Not all nodes at once: those started together would stay in step for ever.
            await trio.sleep(self.settings.refresh_interval * self._rng.uniform(0.75, 1.25))
            await self.refresh()

    async def _keep_clean(self) -> None:
        while True:
            await trio.sleep(CLEANING_INTERVAL)
            self._core.expire(wall_time())
            await self._peers.close_idle()
            await self._peers.check_doubted()

    async def _keep_joined(self) -> None:
        while True:
            await trio.sleep(self.settings.rejoin_interval)
            if await self._peers.rejoin(banned_too=not len(self._core.table)):
                await self._look_towards(bytes(self._host.peer_id))


def _no_peers() -> NoPeersError:
    return NoPeersError(
        "the node knows no peer of the DHT; give it the address of a running node to join by"
    )
