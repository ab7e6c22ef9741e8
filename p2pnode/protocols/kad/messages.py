"""Kademlia's messages: one request or answer each, checked once when decoded.

Source: libp2p/specs, kad-dht, "RPC messages". On a stream each message stands behind its uvarint
length. A peer's addresses that this node cannot read are left out: others may speak transports we
have never heard of.

Answers are what a node of the DHT spends most of its time on, and nearly every contact in them was
met before. So the outer message is read and written here, field by field, and the bytes of one
contact, which never change their meaning, are read once and remembered.
"""

import functools
import itertools
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, InvalidKeyError, ProtocolError
from p2pnode.wire import varint
from p2pnode.wire.addresses import read_address, split_p2p
from p2pnode.wire.pb import kad_pb2
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.protobuf import read_varint, walk_fields

MAX_KEY_BYTES: Final = 512  # the longest of ours is a prefix of an expert uid, 256 characters
MAX_PEERS: Final = 256  # read from one message; answers name at most k, or the providers of a key
MAX_ADDRESSES: Final = 16  # read of one peer
MAX_TIME_CHARACTERS: Final = 64  # of a record's time; it is sent on with the value
# Counted before decoding. Honest answers name 20 peers with some ten addresses each; but whoever
# fills a key with providers must not make what honest servers tell of them too large to be read.
MAX_FIELDS: Final = 2 * MAX_PEERS + 16
MAX_ELEMENTS: Final = 2 * MAX_PEERS * (MAX_ADDRESSES + 3)  # fields of peers, all told
UNCOUNTED_BYTES: Final = 4096  # a message so short cannot hold enough of them to matter
_PEERS: Final = frozenset({8, 9})  # the fields closerPeers and providerPeers
_TYPE_FIELD: Final = 1
_KEY: Final = 0x12  # tags
_RECORD: Final = 0x1A
_CLOSER: Final = 0x42
_PROVIDERS: Final = 0x4A
_CONTINUED: Final = 0x80  # the least byte with which a number goes on in the next one
_SHORT_SIZES: Final = [bytes((size,)) for size in range(_CONTINUED)]
_LENGTH_DELIMITED: Final = 2
_FIXED_SIZES: Final = {1: 8, 5: 4}
_MAX_MET_BYTES: Final = 256  # of a contact that is remembered: an id and some five addresses


class MessageType(IntEnum):
    """What a message asks for; the answer has the type of its request."""

    PUT_VALUE = kad_pb2.Message.PUT_VALUE
    GET_VALUE = kad_pb2.Message.GET_VALUE
    ADD_PROVIDER = kad_pb2.Message.ADD_PROVIDER
    GET_PROVIDERS = kad_pb2.Message.GET_PROVIDERS
    FIND_NODE = kad_pb2.Message.FIND_NODE
    PING = kad_pb2.Message.PING


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer as a message names it; addresses come without their `/p2p` part."""

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...] = ()
    connected: bool = False
    # Made when it is first sent: a contact is sent many times.
    _prefixed: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def prefixed(self) -> bytes:
        """The protobuf of it, behind its length."""
        if self._prefixed is None:
            object.__setattr__(self, "_prefixed", varint.prefixed(_encode_contact(self)))
        assert self._prefixed is not None
        return self._prefixed


@dataclass(frozen=True, slots=True)
class Record:
    """A value under its key; `received` is the RFC 3339 time when its holder got it, or empty."""

    key: bytes
    value: bytes
    received: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request or its answer."""

    type: MessageType
    key: bytes = b""
    record: Record | None = None
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()


def encode(message: Message) -> bytes:
    """Return the protobuf of `message`, without a length in front."""
    parts = [b"\x08", bytes((message.type,))]  # written even when it is 0
    if message.key:
        _append(parts, b"\x12", message.key)
    if (record := message.record) is not None:
        raw = kad_pb2.Record(key=record.key, value=record.value)
        if record.received:
            raw.timeReceived = record.received
        _append(parts, b"\x1a", raw.SerializeToString(deterministic=True))
    for contact in message.closer:
        parts += b"\x42", contact.prefixed
    for contact in message.providers:
        parts += b"\x4a", contact.prefixed
    return b"".join(parts)


def decode(data: bytes) -> Message:  # noqa: C901  # one loop; calls would slow it down
    """Read the protobuf of one message.

    Raises:
        ProtocolError: it is not one, its type is unknown, its key is too long, its record is not
            the key's, or it holds too many elements.
    """
    if len(data) > UNCOUNTED_BYTES:
        _check_elements(memoryview(data))
    kind = MessageType.PUT_VALUE  # js-libp2p and other writers of proto3 leave a type of 0 out
    key, raw_record = b"", None
    closer: list[bytes] = []
    providers: list[bytes] = []
    offset, end = 0, len(data)
    while offset < end:
        tag = data[offset]
        if tag & 7 != _LENGTH_DELIMITED or tag >= _CONTINUED:
            field, value, offset = _read_other(data, offset)
            if field == _TYPE_FIELD:
                kind = _type_of(value)
            continue
        start = offset + 2
        size = data[offset + 1] if start <= end else _CONTINUED
        if size >= _CONTINUED:
            size, start = read_varint(data, offset + 1)
        offset = start + size
        if offset > end:
            raise ProtocolError("a DHT message ends inside a field")
        content = data[start:offset]
        if tag == _CLOSER:
            closer.append(content)
        elif tag == _PROVIDERS:
            providers.append(content)
        elif tag == _KEY:
            key = content
        elif tag == _RECORD:
            raw_record = content
    if len(key) > MAX_KEY_BYTES:
        raise ProtocolError(f"a DHT key of {len(key)} bytes is too long")
    record = None if raw_record is None else _read_record(raw_record, key)
    return Message(
        type=kind,
        key=key,
        record=record,
        closer=_read_contacts(closer),
        providers=_read_contacts(providers) if providers else (),
    )


def _encode_contact(contact: Contact) -> bytes:
    parts: list[bytes] = []
    _append(parts, b"\x0a", contact.peer_id)
    for address in contact.addresses[:MAX_ADDRESSES]:
        _append(parts, b"\x12", address.to_bytes())
    parts.append(b"\x18\x01" if contact.connected else b"\x18\x00")
    return b"".join(parts)


def _append(parts: list[bytes], tag: bytes, content: bytes) -> None:
    size = len(content)
    parts += tag, _SHORT_SIZES[size] if size < _CONTINUED else varint.encode(size), content


def _type_of(value: int) -> MessageType:
    try:
        return MessageType(value)
    except ValueError:
        raise ProtocolError("a DHT message has a type that is unknown") from None


def _read_other(data: bytes, offset: int) -> tuple[int, int, int]:
    """Read a field that is a number, or that we do not know; numbers alone have a value."""
    tag, offset = read_varint(data, offset)
    kind, value = tag & 7, 0
    if kind == 0:
        value, offset = read_varint(data, offset)
    elif kind == _LENGTH_DELIMITED:
        size, offset = read_varint(data, offset)
        offset += size
    elif kind in _FIXED_SIZES:
        offset += _FIXED_SIZES[kind]
    else:
        raise ProtocolError("a DHT message holds a field of an unknown kind")
    if offset > len(data):
        raise ProtocolError("a DHT message ends inside a field")
    return tag >> 3 if kind == 0 else 0, value, offset


def _read_record(data: bytes, key: bytes) -> Record:
    try:
        raw = kad_pb2.Record.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a DHT message is not the protobuf it should be") from error
    if raw.key != key:
        raise ProtocolError("a DHT message holds the record of another key")
    received = raw.timeReceived
    return Record(key, raw.value, received if len(received) <= MAX_TIME_CHARACTERS else "")


def _check_elements(data: memoryview) -> None:
    elements = 0
    for fields, (number, value) in enumerate(walk_fields(data), start=1):
        if number in _PEERS:
            elements += sum(1 for _ in itertools.islice(walk_fields(value), MAX_ELEMENTS + 1))
        if fields > MAX_FIELDS or elements > MAX_ELEMENTS:
            raise ProtocolError("a DHT message holds too many elements")


def _read_contacts(parts: list[bytes]) -> tuple[Contact, ...]:
    return tuple(
        [
            _met_contact(data) if len(data) <= _MAX_MET_BYTES else _new_contact(data)
            for data in parts[:MAX_PEERS]
        ]
    )


@functools.lru_cache(maxsize=32_768)
def _met_contact(data: bytes) -> Contact:
    return _new_contact(data)


def _new_contact(data: bytes) -> Contact:
    try:
        raw = kad_pb2.Message.Peer.FromString(data)
        peer_id = PeerId(raw.id)
    except DecodeError as error:
        raise ProtocolError("a DHT message is not the protobuf it should be") from error
    except InvalidKeyError as error:
        raise ProtocolError("a DHT message names a peer by a malformed id") from error
    addresses = (read_peer_address(each, peer_id) for each in raw.addrs[:MAX_ADDRESSES])
    return Contact(
        peer_id,
        tuple(address for address in addresses if address is not None),
        raw.connection == kad_pb2.Message.CONNECTED,
    )


@functools.lru_cache(maxsize=8192)  # the same few addresses come in every answer
def read_peer_address(data: bytes, peer_id: PeerId) -> Multiaddr | None:
    """Read an address of `peer_id`; None when this node cannot, or it is another peer's."""
    try:
        address, owner = split_p2p(read_address(data))
    except InvalidAddressError:
        return None
    return address if owner in {None, peer_id} and address.to_bytes() else None
