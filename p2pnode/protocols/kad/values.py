"""Storing and finding values.

Values of a namespace merge, and who holds less than the merged value is sent it. For a while after
a search a value is asked for again at two of those who held it, and stored again at those found
closest, without a search; and keys that lie close together share searches.

A value that was found is also stored at the closest peer that was asked and lacked it, for a short
time if that is none of the k closest: so a key that many ask for is answered by ever more peers.
Source: Kademlia (2002), 2.3.
"""

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.errors import NoPeersError, NotFoundError, P2PNodeError, ProtocolError
from p2pnode.protocols.kad.core import KadCore, time_text
from p2pnode.protocols.kad.joining import no_peers
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.lookup import Lookup
from p2pnode.protocols.kad.memory import Absences, PeersByKey
from p2pnode.protocols.kad.messages import Message, MessageType, Record
from p2pnode.protocols.kad.neighbours import Neighbours
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.protocols.kad.queries import Queries
from p2pnode.protocols.kad.search import Search, Searches
from p2pnode.protocols.kad.validators import Validator, validator_of
from p2pnode.wire.peer_id import PeerId

HOLDERS_ASKED: Final = 2  # when a value is looked up again; two, as one may have missed an update

_Found = dict[PeerId, Record | None]  # what each peer that answered holds


class Values:
    """The values of the DHT, as one node stores and finds them.

    Args:
        core: what this node keeps itself.
        peers: told of peers that hold what is invalid.
        queries: asks others.
        neighbours: tells who is closest to a key.
        searches: where searches run.
        validators: the rules of each namespace.
        settings: limits and intervals.
        rng: chooses among holders.
        serves: tells whether this node keeps values for others.
    """

    def __init__(
        self,
        *,
        core: KadCore,
        peers: KadPeers,
        queries: Queries,
        neighbours: Neighbours,
        searches: Searches,
        validators: Mapping[str, Validator],
        settings: DhtSettings,
        rng: random.Random,
        serves: Callable[[], bool],
    ) -> None:
        self._core = core
        self._peers = peers
        self._queries = queries
        self._neighbours = neighbours
        self._searches = searches
        self._validators = validators
        self._settings = settings
        self._rng = rng
        self._serves = serves
        self._holders = PeersByKey(settings.lookup_reuse)
        self._absent = Absences(settings.absence_reuse)

    # --- commands -------------------------------------------------------------------------------

    async def put(self, key: bytes, value: bytes, copies: int | None = None) -> int:
        """Store a value; see `KadDht.put_value`, and `KadDht.put_many` for `copies`."""
        self._core.check(key, value, wall_time())
        self._absent.receive_stored(key, trio.current_time())
        put = partial(self._put, key, Record(key, value), copies=copies)
        try:
            return await self._searches.start(put).wait()
        finally:
            self._absent.receive_stored(key, trio.current_time())

    async def put_many(
        self, values: Mapping[bytes, bytes], copies: int | None = None
    ) -> dict[bytes, int]:
        """Store several values; see `KadDht.put_many`."""
        wall = wall_time()
        for key, value in values.items():
            self._core.check(key, value, wall)
        stored: dict[bytes, int] = {}

        async def put(key: bytes) -> None:
            with contextlib.suppress(NoPeersError):
                stored[key] = await self.put(key, values[key], copies)

        await self._for_each(values, put)
        if values and not stored:
            raise no_peers()
        return {key: stored.get(key, 0) for key in values}

    async def put_again(self, key: bytes, record: Record) -> int:
        """Store what this node keeps at those closest now, with the time it first came.

        Raises:
            NoPeersError: nobody could store it.
        """
        return await self._searches.start(partial(self._put, key, record)).wait()

    async def get(self, key: bytes) -> bytes:
        """Find a value; see `KadDht.get_value`."""
        return await self._share(key).wait()

    def begin_get(self, key: bytes) -> Search[bytes]:
        """Start finding a value in the background; see `KadDht.begin_get`."""
        search = self._share(key)
        search.detach()
        return search

    def forget_absence(self, key: bytes) -> None:
        """See `KadDht.forget_absence`."""
        self._absent.forget(key)

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Find several values; see `KadDht.get_many`."""
        found: dict[bytes, bytes] = {}

        async def get(key: bytes) -> None:
            with contextlib.suppress(NotFoundError):
                found[key] = await self.get(key)

        await self._for_each(keys, get)
        return {key: found[key] for key in keys if key in found}

    # --- storing --------------------------------------------------------------------------------

    async def _put(
        self, key: bytes, record: Record, requests: trio.Nursery, copies: int | None = None
    ) -> int:
        copies = min(copies or self._settings.bucket_size, self._settings.bucket_size)
        closest = await self._neighbours.near(key)
        stored = 0
        if self._serves() and self._core.is_near(key, closest[:copies], copies):
            stored = int(self._core.keep(record, wall_time()))
        message = Message(type=MessageType.PUT_VALUE, key=key, record=record)
        count = copies - stored
        while closest and stored < copies:
            chosen, closest = closest[:count], closest[count:]
            answers = await self._queries.ask_all(chosen, message, requests, hurried=stored > 0)
            stored += len(answers)
            if len(answers) < len(chosen):  # the next ones take their place
                self._neighbours.forget(key)
            # A few at once: where many are gone, each round takes all of its patience.
            count = max(copies - stored, self._settings.resiliency)
        if not stored:
            raise NoPeersError("no peer of the DHT could store the value")
        return stored

    # --- finding --------------------------------------------------------------------------------

    def _share(self, key: bytes) -> Search[bytes]:
        return self._searches.share("value", key, partial(self._get, key))

    async def _get(self, key: bytes, requests: trio.Nursery) -> bytes:
        validator = validator_of(key, self._validators)
        own = self._core.record(key, wall_time())
        if not len(self._core.table):
            if own is None:
                raise no_peers()
            return own.value
        begun = trio.current_time()
        if own is None and self._absent.holds(key, begun):
            raise _not_found()
        found, lookup = await self._gather(key, own, validator, requests)
        record = _merged(key, [own, *found.values()], validator)
        if record is None:
            if lookup is not None and lookup.answered:
                self._absent.remember(key, begun, trio.current_time())
            raise _not_found()
        self._correct(record, found, requests)
        if lookup is not None:
            self._cache(record, found, lookup, requests)
        self._keep(record, own, validator)
        return record.value

    async def _gather(
        self, key: bytes, own: Record | None, validator: Validator, requests: trio.Nursery
    ) -> tuple[_Found, Lookup | None]:
        """Ask for a value, if need be in a look-up; returns what was found, and the look-up."""
        settings = self._settings
        # Each of its holders may lack what somebody has added since it was stored there last.
        quorum = settings.renewed_quorum if validator.is_renewed else settings.quorum
        message = Message(type=MessageType.GET_VALUE, key=key)
        found: _Found = {}

        def missing() -> int:
            return quorum - sum(record is not None for record in (own, *found.values()))

        def receive(peer: PeerId, answer: Message) -> bool:
            found[peer] = self._valid(peer, key, answer)
            return missing() <= 0

        def wanted() -> int:
            # Once one has it, those around it have it, too: few more than are needed are asked.
            return missing() + settings.resiliency if any(found.values()) else settings.parallelism

        if await self._ask_known(message, requests, receive, found):
            return found, None
        lookup = await self._queries.iterate(message, requests, receive, wanted=wanted)
        holders = [peer for peer, record in found.items() if record is not None]
        self._holders.remember(key, holders, trio.current_time())
        return found, lookup

    async def _ask_known(
        self,
        message: Message,
        requests: trio.Nursery,
        receive: Callable[[PeerId, Message], bool],
        found: _Found,
    ) -> bool:
        """Ask those who should hold the value; False when that does not settle it."""
        key, now = message.key, trio.current_time()
        holders = [
            peer
            for peer in self._holders.recall(key, now)
            if not self._core.bans.is_banned(peer, now)
        ]
        if holders:
            chosen = self._rng.sample(holders, min(HOLDERS_ASKED, len(holders)))
        elif (near := self._neighbours.recall(key)) is not None:
            chosen = near.peers[: min(near.sure, self._settings.quorum)]
        else:
            return False
        answers = await self._queries.ask_all(chosen, message, requests, hurried=True)
        for peer, answer in answers.items():
            receive(peer, answer)
        values = [record for record in found.values() if record is not None]
        settled = (
            len(answers) == len(chosen) and len(values) == len(found)
            if holders
            else len(values) == len(chosen)  # newcomers may hold less than those before them
        )
        if not settled or len(answers) < len(chosen):
            self._holders.forget(key)  # the next look-up is a full search
        if settled and not holders:
            keepers = [peer for peer, record in found.items() if record is not None]
            self._holders.remember(key, keepers, now)
        return bool(values) and settled

    def _valid(self, peer: PeerId, key: bytes, answer: Message) -> Record | None:
        if answer.record is None:
            return None
        try:
            self._core.check(key, answer.record.value, wall_time())
        except ProtocolError as error:
            self._peers.report(peer, f"it holds an invalid value: {error}")
            return None
        return answer.record

    # --- passing on what was found --------------------------------------------------------------

    def _correct(self, record: Record, found: _Found, requests: trio.Nursery) -> None:
        """Send the merged value to those that hold less, without waiting for them."""
        validator, wall = validator_of(record.key, self._validators), wall_time()
        behind = [
            peer
            for peer, held in found.items()
            if held is not None and validator.lacks(record.key, held.value, record.value, wall)
        ]
        self._send(record, behind, requests)

    def _cache(self, record: Record, found: _Found, lookup: Lookup, requests: trio.Nursery) -> None:
        """Send the value to the closest peer that was asked and lacks it."""
        validator, wall = validator_of(record.key, self._validators), wall_time()
        if validator.is_renewed:
            return
        peer = lookup.lacking(peer for peer, held in found.items() if held is not None)
        if peer is None or not validator.lacks(record.key, None, record.value, wall):
            return
        if not lookup.is_among_closest(peer):
            early = wall - max(self._settings.record_ttl - self._settings.cache_ttl, 0.0)
            record = Record(record.key, record.value, time_text(early))
        self._send(record, [peer], requests)

    def _keep(self, record: Record, own: Record | None, validator: Validator) -> None:
        """Keep the value here, where this node is one of those who should hold it."""
        if not self._serves() or (own is None and validator.is_renewed):
            return
        wall, size = wall_time(), self._settings.bucket_size
        near = self._core.table.closest(point(record.key), size)
        held = None if own is None else own.value
        if (own is not None or self._core.is_near(record.key, near)) and validator.lacks(
            record.key, held, record.value, wall
        ):
            self._core.keep(record, wall)

    def _send(self, record: Record, peers: Sequence[PeerId], requests: trio.Nursery) -> None:
        if peers:
            message = Message(type=MessageType.PUT_VALUE, key=record.key, record=record)
            requests.start_soon(self._queries.ask_all, peers, message, requests)

    # --- many keys ------------------------------------------------------------------------------

    async def _for_each(
        self, keys: Iterable[bytes], work: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Do `work` for each key, several at once, and those close together one after another."""
        ordered = sorted(dict.fromkeys(keys), key=point)
        size = max(1, -(-len(ordered) // self._settings.keys_at_once))
        failures: list[P2PNodeError] = []

        async def do(part: Sequence[bytes]) -> None:
            try:
                for key in part:
                    await work(key)
            except P2PNodeError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for start in range(0, len(ordered), size):
                nursery.start_soon(do, ordered[start : start + size])
        if failures:
            raise failures[0]


def _merged(key: bytes, found: Sequence[Record | None], validator: Validator) -> Record | None:
    """Merge what several hold; None if nothing is left of it."""
    records = [each for each in found if each is not None]
    values = [each.value for each in records]
    merged = validator.merge(key, values, wall_time()) if values else b""
    if not merged:
        return None
    received = max((each.received for each in records if each.value == merged), default="")
    return Record(key, merged, received)


def _not_found() -> NotFoundError:
    return NotFoundError("the DHT holds no value under this key")
