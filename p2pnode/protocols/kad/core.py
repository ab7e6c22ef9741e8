"""What a DHT node knows, and how it answers: pure, all I/O is in `service`.

| request       | answer                                                                  |
|---------------|-------------------------------------------------------------------------|
| FIND_NODE     | the k closest peers to the key, first the target itself if it is known  |
| GET_VALUE     | the record, if there is one, and the k closest peers                    |
| PUT_VALUE     | the request, once the record is valid and merged with what was there    |
| GET_PROVIDERS | the providers, and the k closest peers                                  |
| ADD_PROVIDER  | none; only entries that name their own sender count                     |
| PING          | the request                                                             |

A request that breaks a rule raises `ProtocolError`, which resets its stream, as all three other
implementations do. Source: libp2p/specs, kad-dht.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from p2pnode.config import DhtSettings
from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.protocols.kad.bans import Bans
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import Contact, Message, MessageType, Record
from p2pnode.protocols.kad.records import ProviderStore, RecordStore, StoredRecord
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
            own, bucket_size=settings.bucket_size, trust=settings.liveness_interval
        )
        self.records = RecordStore(
            own, max_records=settings.max_records, max_bytes=settings.max_store_bytes
        )
        self.providers = ProviderStore(
            max_keys=settings.max_provider_keys, max_per_key=settings.max_providers_per_key
        )
        self.bans: Bans[PeerId] = Bans(settings.ban_time, settings.max_ban_time)
        self._settings = settings
        self._validators = validators

    def receive_request(
        self, sender: PeerId, request: Message, contact_of: ContactOf, wall: float
    ) -> Message | None:
        """Answer one request; None where the protocol has no answer.

        Raises:
            ProtocolError: the request breaks a rule.
        """
        key = request.key
        if request.type is MessageType.PING:
            return request
        if not key:
            raise ProtocolError(f"a {request.type.name} request has no key")
        if request.type is MessageType.PUT_VALUE:
            if request.record is None:
                raise ProtocolError("a PUT_VALUE request has no record")
            self.store(key, request.record.value, wall)
            return request
        if request.type is MessageType.ADD_PROVIDER:
            self._add_provider(sender, request, wall)
            return None
        closer = [contact_of(peer) for peer in self._closest(key, sender)]
        if request.type is MessageType.FIND_NODE:
            closer = self._with_target(key, sender, closer, contact_of)
            return Message(type=request.type, key=key, closer=tuple(closer))
        if request.type is MessageType.GET_PROVIDERS:
            self._check_provider_key(key)
            found = tuple(self.providers.get(key, wall))
            return Message(type=request.type, key=key, providers=found, closer=tuple(closer))
        record = self._record(key, wall)
        return Message(type=request.type, key=key, record=record, closer=tuple(closer))

    def store(self, key: bytes, value: bytes, wall: float) -> None:
        """Merge a value into what is kept under `key`.

        Raises:
            ProtocolError: the value may not stand there.
        """
        validator = self.check(key, value, wall)
        held = self.records.get(key, wall)
        merged = validator.merge(key, [held.value, value] if held else [value], wall)
        if merged:
            until = min(
                wall + self._settings.record_ttl, validator.expires(key, merged) or float("inf")
            )
            self.records.put(key, StoredRecord(merged, wall, until), wall)
        else:
            self.records.remove(key)

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

    def is_near(self, key: bytes, closest: list[PeerId]) -> bool:
        """Tell whether this node is among the k closest to `key`, given the others closest."""
        if len(closest) < self._settings.bucket_size:
            return True
        target = point(key)
        return (self.table.own ^ target) < (point(closest[-1]) ^ target)

    def expire(self, wall: float) -> None:
        """Drop what is over."""
        self.records.expire(wall)
        self.providers.expire(wall)

    def _closest(self, key: bytes, sender: PeerId) -> list[PeerId]:
        return self.table.closest(point(key), self._settings.bucket_size, without={sender})

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

    def _record(self, key: bytes, wall: float) -> Record | None:
        validator_of(key, self._validators)
        held, value = self.records.get(key, wall), self.value(key, wall)
        if held is None or value is None:
            return None
        received = datetime.fromtimestamp(held.received, UTC).isoformat()
        return Record(key, value, received.replace("+00:00", "Z"))

    def _add_provider(self, sender: PeerId, request: Message, wall: float) -> None:
        self._check_provider_key(request.key)
        for contact in request.providers:
            if contact.peer_id == sender:
                self.providers.add(request.key, contact, wall + self._settings.provider_ttl)

    def _check_provider_key(self, key: bytes) -> None:
        if len(key) > MAX_PROVIDER_KEY_BYTES:
            raise ProtocolError("a provider key must be a multihash")
