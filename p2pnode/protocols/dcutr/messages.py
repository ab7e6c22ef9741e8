"""DCUtR's one message, checked once when decoded.

Source: libp2p/specs, relay/DCUtR. On a stream each stands behind its uvarint length.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import ProtocolError
from p2pnode.wire.addresses import read_addresses
from p2pnode.wire.pb import dcutr_pb2
from p2pnode.wire.protobuf import walk_fields

MAX_FIELDS: Final = 256  # counted before decoding; honest messages hold a dozen addresses
MAX_ADDRESSES: Final = 64  # read of one message


class MessageType(IntEnum):
    """What a message is for."""

    CONNECT = dcutr_pb2.HolePunch.CONNECT
    SYNC = dcutr_pb2.HolePunch.SYNC


@dataclass(frozen=True, slots=True, kw_only=True)
class HolePunch:
    """A message.

    Attributes:
        type: what it is for.
        addresses: where its sender may be found, as far as it knows; those that this node cannot
            read are left out.
    """

    type: MessageType
    addresses: tuple[Multiaddr, ...] = ()


def encode(message: HolePunch) -> bytes:
    """Return the protobuf of `message`, without a length in front."""
    return dcutr_pb2.HolePunch(
        type=message.type.value,
        ObsAddrs=[each.to_bytes() for each in message.addresses],
    ).SerializeToString(deterministic=True)


def decode(data: bytes) -> HolePunch:
    """Read the protobuf of one message.

    Raises:
        ProtocolError: it is not one, its type is unknown, or it has far too many fields.
    """
    for count, _ in enumerate(walk_fields(memoryview(data)), 1):
        if count > MAX_FIELDS:
            raise ProtocolError("a hole punching message has too many fields")
    try:
        message = dcutr_pb2.HolePunch.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a hole punching message is malformed") from error
    try:
        kind = MessageType(message.type)
    except ValueError:
        raise ProtocolError(
            f"a hole punching message has the unknown type {message.type}"
        ) from None
    return HolePunch(
        type=kind, addresses=tuple(read_addresses(message.ObsAddrs, limit=MAX_ADDRESSES))
    )
