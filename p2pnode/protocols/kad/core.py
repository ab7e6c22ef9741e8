"""What a DHT node knows, and how it answers: pure, all I/O is in `service`.

| request       | answer                                                                  |
|---------------|-------------------------------------------------------------------------|
| FIND_NODE     | the k closest peers to the key, first the target itself if it is known  |
| GET_VALUE     | the record, if there is one, and the k closest peers                    |
| PUT_VALUE     | the request, once the record is valid and merged with what was there    |
| GET_PROVIDERS | the providers, and the k closest peers                                  |
| ADD_PROVIDER  | none; only entries that name their own sender count                     |
| PING          | the request                                                             |

Peers that gave no sign of life lately are not named in answers: they would fill the tables of all
who join. A request that breaks a rule raises `ProtocolError`, which resets its stream, as all three
other implementations do. Source: libp2p/specs, kad-dht.

A record names the time when its first holder got it from its owner. Copies that holders send each
other carry that time on, and expire when the first one does.
"""

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from p2pnode.config import DhtSettings
from p2pnode.errors import InvalidKeyError, ProtocolError, ResourceLimitError
from p2pnode.protocols.kad.bans import Bans
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import MAX_PEERS, Contact, Message, MessageType, Record
from p2pnode.protocols.kad.provider_store import ProviderStore
from p2pnode.protocols.kad.records import RecordStore, StoredRecord
from p2pnode.protocols.kad.table import RoutingTable
from p2pnode.protocols.kad.validators import Validator, validator_of
from p2pnode.wire.peer_id import PeerId

MAX_PROVIDER_KEY_BYTES = 80  # the longest multihash in use has 66 bytes; go-libp2p's bound

ContactOf = Callable[[PeerId], Contact]


class KadCore:
    """The routing table, the stores and the rules of one node; wall-clock times are `wall`."""

    def __init__(
        self, own: PeerId, settings: DhtSettings, validators: Mapping[str, Validator]
    ) -> None:
        self.own = own
        self.table = RoutingTable(
            own,
            bucket_size=settings.bucket_size,
            trust=settings.liveness_interval,
            max_per_group=settings.max_peers_per_network,
            max_per_group_in_bucket=settings.max_peers_per_network_in_bucket,
        )
        self.records = RecordStore(
            own,
            max_records=settings.max_records,
            max_bytes=settings.max_store_bytes,
            max_records_per_peer=settings.max_records_per_peer,
            max_bytes_per_peer=settings.max_store_bytes_per_peer,
            shares={name: validator.share for name, validator in validators.items()},
        )
        self.providers = ProviderStore(
            max_keys=settings.max_provider_keys,
            max_per_key=settings.max_providers_per_key,
            max_keys_per_peer=settings.max_provider_keys_per_peer,
            max_providers=settings.max_providers,
        )
        self.bans: Bans[PeerId] = Bans(settings.ban_time, settings.max_ban_time)
        self._settings = settings
        self._validators = validators

    # --- requests -------------------------------------------------------------------------------

    def receive_request(
        self, sender: PeerId, request: Message, contact_of: ContactOf, now: float, wall: float
    ) -> Message | None:
        """Answer one request; None where the protocol has no answer.

        Args:
            sender: who asks.
            request: what.
            contact_of: tells where a peer is, and whether it is connected.
            now: trio's clock.
            wall: the wall clock.

        Raises:
            ProtocolError: the request breaks a rule.
            ResourceLimitError: there is no room for the value.
        """
        key = request.key
        if request.type is MessageType.PING:
            return request
        if not key:
            raise ProtocolError(f"a {request.type.name} request has no key")
        if request.type is MessageType.PUT_VALUE:
            if request.record is None:
                raise ProtocolError("a PUT_VALUE request has no record")
            if not self.keep(request.record, wall, sender):
                raise ResourceLimitError("there is no room for the value")
            return request
        if request.type is MessageType.ADD_PROVIDER:
            self._add_provider(sender, request, wall)
            return None
        closer = self._closer(key, sender, contact_of, now)
        if request.type is MessageType.FIND_NODE:
            closer = self._with_target(key, sender, closer, contact_of)
            return Message(type=request.type, key=key, closer=tuple(closer))
        if request.type is MessageType.GET_PROVIDERS:
            self._check_provider_key(key)
            found = tuple(self.providers.get(key, wall)[:MAX_PEERS])
            return Message(type=request.type, key=key, providers=found, closer=tuple(closer))
        validator_of(key, self._validators)
        record = self.record(key, wall)
        return Message(type=request.type, key=key, record=record, closer=tuple(closer))

    def keep(self, record: Record, wall: float, sender: PeerId | None = None) -> bool:
        """Merge a record into what is kept under its key; False when there is no room for it.

        Args:
            record: it may name the time when its first holder got it.
            wall: the wall clock.
            sender: who stores it here; this node by default.

        Raises:
            ProtocolError: the value may not stand under its key.
        """
        received = wall
        if record.received:
            try:
                told = _time_of(record.received)
            except (ValueError, OverflowError):
                told = wall  # whoever writes no time that can be read tells nothing by it
            # The clock of another may be wrong: its values live for a while even so.
            ttl = self._settings.record_ttl
            least = wall - ttl + min(self._settings.cache_ttl, ttl / 10)
            received = min(max(told, least), wall)
        return self.store(record.key, record.value, wall, received=received, sender=sender)

    def store(
        self,
        key: bytes,
        value: bytes,
        wall: float,
        *,
        received: float | None = None,
        sender: PeerId | None = None,
    ) -> bool:
        """Merge a value into what is kept under `key`; False when there is no room for it.

        Args:
            key: where it stands.
            value: what.
            wall: the wall clock.
            received: when its first holder got it; now by default.
            sender: on whose account it is kept; this node's by default.

        Raises:
            ProtocolError: the value may not stand there.
        """
        validator = self.check(key, value, wall)
        received = wall if received is None else received
        held = self.records.get(key, wall)
        merged = validator.merge(key, [held.value, value] if held else [value], wall)
        if not merged:
            self.records.remove(key)
            return True
        if held is not None:
            received = max(received, held.received)
            sender = held.sender if merged == held.value else sender
        by_its_own_word = validator.expires(key, merged)
        until = received + self._settings.record_ttl
        if by_its_own_word is not None:
            until = min(until, by_its_own_word)
        record = StoredRecord(merged, received, until, renewed=wall, sender=sender)
        return until <= wall or self.records.put(key, record, wall)

    def check(self, key: bytes, value: bytes, wall: float) -> Validator:
        """Return the key's validator when `value` may stand under it.

        Raises:
            ProtocolError: it may not.
        """
        validator = validator_of(key, self._validators)
        if len(value) > self._settings.max_record_bytes:
            raise ProtocolError(f"a DHT value of {len(value)} bytes is too large")
        validator.validate(key, value, wall)
        return validator

    def value(self, key: bytes, wall: float) -> bytes | None:
        """Return what is kept under `key` and has not expired."""
        held = self.records.get(key, wall)
        if held is None:
            return None
        return validator_of(key, self._validators).merge(key, [held.value], wall) or None

    def record(self, key: bytes, wall: float) -> Record | None:
        """Return what is kept under `key` as it is told to others."""
        held, value = self.records.get(key, wall), self.value(key, wall)
        if held is None or value is None:
            return None
        return Record(key, value, time_text(held.received))

    def next_expiry(self) -> float:
        """Return when `expire` has something to do, on the wall clock; infinity for never."""
        return min(self.records.next_expiry(), self.providers.next_expiry())

    def expire(self, wall: float) -> None:
        """Drop what is over."""
        self.records.expire(wall)
        self.providers.expire(wall)

    # --- places ---------------------------------------------------------------------------------

    def is_near(self, key: bytes, closest: list[PeerId], count: int | None = None) -> bool:
        """Tell whether this node is among the `count` closest to `key`, given the others closest.

        By default `count` is k.
        """
        if len(closest) < (count or self._settings.bucket_size):
            return True
        target = point(key)
        return (self.table.own ^ target) < (point(closest[-1]) ^ target)

    def _closer(
        self, key: bytes, sender: PeerId, contact_of: ContactOf, now: float
    ) -> list[Contact]:
        """List the k closest peers that are known to live, and where they are."""
        horizon = now - 2 * self._settings.liveness_interval
        size = self._settings.bucket_size
        contacts: list[Contact] = []
        for near in self.table.by_distance(point(key)):
            for _, peer, heard in near:
                contact = contact_of(peer)
                if contact.addresses and (heard >= horizon or contact.connected) and peer != sender:
                    contacts.append(contact)
                    if len(contacts) == size:
                        return contacts
        return contacts

    def _with_target(
        self, key: bytes, sender: PeerId, closer: list[Contact], contact_of: ContactOf
    ) -> list[Contact]:
        try:
            target = contact_of(PeerId(key))
        except InvalidKeyError:
            return closer  # a look-up of some other point of the key space
        if target.peer_id == sender or not target.addresses:
            return closer
        return [target, *(each for each in closer if each.peer_id != target.peer_id)]

    def _add_provider(self, sender: PeerId, request: Message, wall: float) -> None:
        self._check_provider_key(request.key)
        for contact in request.providers:
            if contact.peer_id == sender:
                self.providers.add(request.key, contact, wall + self._settings.provider_ttl)

    def _check_provider_key(self, key: bytes) -> None:
        if len(key) > MAX_PROVIDER_KEY_BYTES:
            raise ProtocolError("a provider key must be a multihash")


def _time_of(text: str) -> float:
    """Read a time as records tell it; one without a zone is UTC, wherever this node is."""
    told = datetime.fromisoformat(text)
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()


@functools.lru_cache(maxsize=1024)  # what is asked for often is told often
def time_text(wall: float) -> str:
    """Return a time of the wall clock as records tell it (RFC 3339)."""
    return datetime.fromtimestamp(wall, UTC).isoformat().replace("+00:00", "Z")
