"""The messages of circuit relay v2, checked once when decoded.

Source: libp2p/specs, relay/circuit-v2. On a stream each stands behind its uvarint length.

js-libp2p 3 writes a limit's duration in milliseconds, where the specification has seconds. Nobody
relies on the number here: a relay says by cutting the circuit when it is over.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire.addresses import read_addresses
from p2pnode.wire.pb import relay_pb2
from p2pnode.wire.peer_id import PeerId

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE: Final = 4 * 1024  # as the specification says
MAX_ADDRESSES: Final = 32  # read of one message
_MAX_DURATION: Final = (1 << 32) - 1

K = TypeVar("K", bound=IntEnum)


class Status(IntEnum):
    """How a request ended."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class HopType(IntEnum):
    """What a message between a relay and who asks it is for."""

    RESERVE = relay_pb2.HopMessage.RESERVE
    CONNECT = relay_pb2.HopMessage.CONNECT
    STATUS = relay_pb2.HopMessage.STATUS


class StopType(IntEnum):
    """What a message between a relay and who is reached through it is for."""

    CONNECT = relay_pb2.StopMessage.CONNECT
    STATUS = relay_pb2.StopMessage.STATUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a circuit may carry.

    Attributes:
        duration: seconds from its beginning; 0 for no limit.
        data: bytes each way; 0 for no limit.
    """

    duration: int = 0
    data: int = 0

    def __bool__(self) -> bool:
        """Whether it limits anything."""
        return bool(self.duration or self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a relay promises.

    Attributes:
        expire: until when, in seconds since the Unix epoch.
        addresses: where the relay is, as it says itself; those this node cannot read left out.
        voucher: the relay's signed word for it, or None; see `p2pnode.protocols.relay.vouchers`.
    """

    expire: int
    addresses: tuple[Multiaddr, ...] = ()
    voucher: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HopMessage:
    """A message between a relay and who asks it.

    Attributes:
        type: what it is for.
        peer: whom a CONNECT is to reach.
        reservation: what an answer to RESERVE grants.
        limit: of the circuits, in an answer.
        status: of an answer; a number that no specification names is kept as it is.
    """

    type: HopType
    peer: PeerId | None = None
    reservation: Reservation | None = None
    limit: Limit = Limit()
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMessage:
    """A message between a relay and who is reached through it.

    Attributes:
        type: what it is for.
        peer: who wants to connect.
        limit: of the circuit.
        status: of an answer.
    """

    type: StopType
    peer: PeerId | None = None
    limit: Limit = Limit()
    status: int | None = None


def encode_hop(message: HopMessage) -> bytes:
    """Return the protobuf of `message`, without a length in front."""
    encoded = relay_pb2.HopMessage(type=message.type.value)
    if message.peer is not None:
        encoded.peer.id = bytes(message.peer)
    if (reservation := message.reservation) is not None:
        encoded.reservation.expire = reservation.expire
        encoded.reservation.addrs.extend(each.to_bytes() for each in reservation.addresses)
        if reservation.voucher is not None:
            encoded.reservation.voucher = reservation.voucher
    if message.limit:
        encoded.limit.CopyFrom(_encode_limit(message.limit))
    if message.status is not None:
        encoded.status = message.status  # type: ignore[assignment]  # a number is one, too
    return encoded.SerializeToString(deterministic=True)


def encode_stop(message: StopMessage) -> bytes:
    """Return the protobuf of `message`, without a length in front."""
    encoded = relay_pb2.StopMessage(type=message.type.value)
    if message.peer is not None:
        encoded.peer.id = bytes(message.peer)
    if message.limit:
        encoded.limit.CopyFrom(_encode_limit(message.limit))
    if message.status is not None:
        encoded.status = message.status  # type: ignore[assignment]  # a number is one, too
    return encoded.SerializeToString(deterministic=True)


def decode_hop(data: bytes) -> HopMessage:
    """Read the protobuf of one message.

    Raises:
        ProtocolError: it is not one, or lacks what its type must have.
    """
    message = relay_pb2.HopMessage()
    _parse(message, data)
    kind = _kind(HopType, message.type, given=message.HasField("type"))
    reservation = None
    if message.HasField("reservation"):
        granted = message.reservation
        reservation = Reservation(
            expire=granted.expire,
            addresses=tuple(read_addresses(granted.addrs[:MAX_ADDRESSES], limit=MAX_ADDRESSES)),
            voucher=granted.voucher if granted.HasField("voucher") else None,
        )
    return HopMessage(
        type=kind,
        peer=_peer(message.peer, required=kind is HopType.CONNECT),
        reservation=reservation,
        limit=_limit(message.limit),
        status=_status(message, required=kind is HopType.STATUS),
    )


def decode_stop(data: bytes) -> StopMessage:
    """Read the protobuf of one message.

    Raises:
        ProtocolError: it is not one, or lacks what its type must have.
    """
    message = relay_pb2.StopMessage()
    _parse(message, data)
    kind = _kind(StopType, message.type, given=message.HasField("type"))
    return StopMessage(
        type=kind,
        peer=_peer(message.peer, required=kind is StopType.CONNECT),
        limit=_limit(message.limit),
        status=_status(message, required=kind is StopType.STATUS),
    )


def describe(status: int | None) -> str:
    """Name a status in words."""
    try:
        return Status(status or 0).name.lower().replace("_", " ")
    except ValueError:
        return f"status {status}"


def _encode_limit(limit: Limit) -> relay_pb2.Limit:
    return relay_pb2.Limit(duration=min(limit.duration, _MAX_DURATION), data=limit.data)


def _parse(message: relay_pb2.HopMessage | relay_pb2.StopMessage, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("a relay message is malformed") from error


def _kind(kinds: type[K], number: int, *, given: bool) -> K:
    try:
        if given:
            return kinds(number)
    except ValueError:
        raise ProtocolError(f"a relay message has the unknown type {number}") from None
    raise ProtocolError("a relay message has no type")


def _peer(peer: relay_pb2.Peer, *, required: bool) -> PeerId | None:
    if not peer.id:
        if required:
            raise ProtocolError("a relay message names no peer")
        return None
    try:
        return PeerId(peer.id)
    except InvalidKeyError as error:
        raise ProtocolError("a relay message names no peer that could be") from error


def _limit(limit: relay_pb2.Limit) -> Limit:
    return Limit(duration=limit.duration, data=limit.data)


def _status(message: relay_pb2.HopMessage | relay_pb2.StopMessage, *, required: bool) -> int | None:
    if message.HasField("status"):
        return int(message.status)
    if required:
        raise ProtocolError("an answer of a relay has no status")
    return None
