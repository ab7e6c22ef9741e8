"""Kademlia's messages: one request or answer each, checked once when decoded.

Source: libp2p/specs, kad-dht, "RPC messages". On a stream each message stands behind its uvarint
length. A peer's addresses that this node cannot read are left out: others may speak transports we
have never heard of.
"""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, InvalidKeyError, ProtocolError
from p2pnode.wire.addresses import read_address, split_p2p
from p2pnode.wire.pb import kad_pb2
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.protobuf import walk_fields

MAX_KEY_BYTES: Final = 512  # the longest of ours is a prefix of an expert uid, 256 characters
MAX_PEERS: Final = 256  # read from one message; answers name at most k, or the providers of a key
MAX_ADDRESSES: Final = 16  # read of one peer
# Counted before decoding; honest answers name 20 peers with some ten addresses each.
MAX_FIELDS: Final = 2 * MAX_PEERS + 16
MAX_ELEMENTS: Final = MAX_PEERS * (MAX_ADDRESSES + 3)  # fields of peers, all told
UNCOUNTED_BYTES: Final = 4096  # a message so short cannot hold enough of them to matter
_PEERS: Final = frozenset({8, 9})  # the fields closerPeers and providerPeers


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
    out = kad_pb2.Message(
        type=kad_pb2.Message.MessageType.Name(message.type),  # written even when it is 0
        closerPeers=map(_encode_contact, message.closer),
        providerPeers=map(_encode_contact, message.providers),
    )
    if message.key:
        out.key = message.key
    if (record := message.record) is not None:
        out.record.key = record.key
        out.record.value = record.value
        if record.received:
            out.record.timeReceived = record.received
    return out.SerializeToString(deterministic=True)


def decode(data: bytes) -> Message:
    """Read the protobuf of one message.

    Raises:
        ProtocolError: it is not one, its type is unknown, its key is too long, its record is not
            the key's, or it holds too many elements.
    """
    if len(data) > UNCOUNTED_BYTES:
        _check_elements(memoryview(data))
    try:
        raw = kad_pb2.Message.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a DHT message is not the protobuf it should be") from error
    try:
        # Writers of proto3, js-libp2p among them, leave a type of 0 out: that is PUT_VALUE.
        kind = MessageType(raw.type)
    except ValueError:
        raise ProtocolError("a DHT message has a type that is unknown") from None
    if len(raw.key) > MAX_KEY_BYTES:
        raise ProtocolError(f"a DHT key of {len(raw.key)} bytes is too long")
    record = None
    if raw.HasField("record"):
        if raw.record.key != raw.key:
            raise ProtocolError("a DHT message holds the record of another key")
        record = Record(raw.record.key, raw.record.value, raw.record.timeReceived)
    return Message(
        type=kind,
        key=raw.key,
        record=record,
        closer=_decode_contacts(raw.closerPeers[:MAX_PEERS]),
        providers=_decode_contacts(raw.providerPeers[:MAX_PEERS]),
    )


def _check_elements(data: memoryview) -> None:
    elements = 0
    for fields, (field, value) in enumerate(walk_fields(data), start=1):
        if field in _PEERS:
            elements += sum(1 for _ in itertools.islice(walk_fields(value), MAX_ELEMENTS + 1))
        if fields > MAX_FIELDS or elements > MAX_ELEMENTS:
            raise ProtocolError("a DHT message holds too many elements")


def _encode_contact(contact: Contact) -> kad_pb2.Message.Peer:
    connection = "CONNECTED" if contact.connected else "NOT_CONNECTED"
    return kad_pb2.Message.Peer(
        id=bytes(contact.peer_id),
        addrs=[address.to_bytes() for address in contact.addresses],
        connection=connection,
    )


def _decode_contacts(peers: Iterable[kad_pb2.Message.Peer]) -> tuple[Contact, ...]:
    found = []
    for peer in peers:
        try:
            peer_id = PeerId(peer.id)
        except InvalidKeyError as error:
            raise ProtocolError("a DHT message names a peer by a malformed id") from error
        addresses = (read_peer_address(data, peer_id) for data in peer.addrs[:MAX_ADDRESSES])
        found.append(
            Contact(
                peer_id,
                tuple(address for address in addresses if address is not None),
                peer.connection == kad_pb2.Message.CONNECTED,
            )
        )
    return tuple(found)


@functools.lru_cache(maxsize=8192)  # the same few addresses come in every answer
def read_peer_address(data: bytes, peer_id: PeerId) -> Multiaddr | None:
    """Read an address of `peer_id`; None when this node cannot, or it is another peer's."""
    try:
        address, owner = split_p2p(read_address(data))
    except InvalidAddressError:
        return None
    return address if owner in {None, peer_id} and address.to_bytes() else None
