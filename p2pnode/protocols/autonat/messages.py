"""AutoNAT's messages, of both versions: checked once when decoded.

Source: libp2p/specs, autonat-v1 and autonat-v2. Each message stands behind its uvarint length.
Version 1 asks "can you reach me?" in one message and gets one back. Version 2:

```
dial-request:  DialRequest ──►                      dial-back:
               ◄── DialDataRequest   (only for an   DialBack (nonce) ──►
               DialData ──► …         IP address    ◄── DialBackResponse
               ◄── DialResponse       not the asker's)
```
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, InvalidKeyError, ProtocolError
from p2pnode.wire.addresses import read_address, split_p2p
from p2pnode.wire.pb import autonat_pb2 as pb
from p2pnode.wire.peer_id import PeerId

PROTOCOL_V1: Final = "/libp2p/autonat/1.0.0"
DIAL_REQUEST: Final = "/libp2p/autonat/2/dial-request"
DIAL_BACK: Final = "/libp2p/autonat/2/dial-back"
MAX_DATA_PIECE: Final = 4096  # bytes of one DialData
MAX_TEXT: Final = 256  # characters of a status text, kept for people to read
MAX_NONCE_MESSAGE: Final = 64  # bytes; a DialBack takes 9, its answer 2

E = TypeVar("E", bound=IntEnum)
Addresses = tuple[Multiaddr | None, ...]  # None: one that this node cannot read


# --- version 1 ------------------------------------------------------------------------------------


class V1Status(IntEnum):
    """How a request of version 1 ended."""

    OK = 0
    E_DIAL_ERROR = 100
    E_DIAL_REFUSED = 101
    E_BAD_REQUEST = 200
    E_INTERNAL_ERROR = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Answer:
    """What a server of version 1 says.

    Attributes:
        status: how it went.
        text: why, for people.
        address: the one that was reached, or None.
    """

    status: V1Status
    text: str = ""
    address: Multiaddr | None = None


def encode_v1_request(peer_id: PeerId, addresses: tuple[Multiaddr, ...]) -> bytes:
    """Ask to be dialled at `addresses`."""
    info = pb.Message.PeerInfo(id=bytes(peer_id), addrs=[each.to_bytes() for each in addresses])
    message = pb.Message(type=pb.Message.DIAL, dial=pb.Message.Dial(peer=info))
    return message.SerializeToString(deterministic=True)


def decode_v1_request(data: bytes, *, limit: int) -> tuple[PeerId, Addresses]:
    """Read whom to dial, and the first `limit` addresses.

    Raises:
        ProtocolError: it is no request, or names no peer.
    """
    message = _parse_v1(data)
    if message.type != pb.Message.DIAL or not message.HasField("dial"):
        raise ProtocolError("an AutoNAT request asks for no dial")
    try:
        peer_id = PeerId(message.dial.peer.id)
    except InvalidKeyError as error:
        raise ProtocolError("an AutoNAT request names its peer by a malformed id") from error
    return peer_id, _read_addresses(message.dial.peer.addrs[:limit])


def encode_v1_answer(answer: V1Answer) -> bytes:
    """Say how a request went; its type and status are written also where they are 0."""
    response = pb.Message.DialResponse(status=answer.status.name)
    if answer.text:
        response.statusText = answer.text
    if answer.address is not None:
        response.addr = answer.address.to_bytes()
    message = pb.Message(type=pb.Message.DIAL_RESPONSE, dialResponse=response)
    return message.SerializeToString(deterministic=True)


def decode_v1_answer(data: bytes) -> V1Answer:
    """Read how our request went.

    Raises:
        ProtocolError: it is no answer, or its status is unknown.
    """
    message = _parse_v1(data)
    if message.type != pb.Message.DIAL_RESPONSE or not message.HasField("dialResponse"):
        raise ProtocolError("an AutoNAT answer is none")
    raw = message.dialResponse
    return V1Answer(
        status=_enum(V1Status, raw.status),
        text=_printable(raw.statusText),
        address=_read_addresses([raw.addr])[0] if raw.addr else None,
    )


# --- version 2 ------------------------------------------------------------------------------------


class ResponseStatus(IntEnum):
    """Whether a request of version 2 was served."""

    E_INTERNAL_ERROR = 0
    E_REQUEST_REJECTED = 100
    E_DIAL_REFUSED = 101
    OK = 200


class DialStatus(IntEnum):
    """How the dial of version 2 went."""

    UNUSED = 0
    E_DIAL_ERROR = 100
    E_DIAL_BACK_ERROR = 101
    OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DialRequest:
    """Asks to be dialled at the first of `addresses` that the server is willing to dial."""

    addresses: Addresses
    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DialDataRequest:
    """Asks for `size` bytes before the address at `index` is dialled."""

    index: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DialData:
    """A piece of these bytes, of which only the number matters."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DialResponse:
    """Says how the dial of the address at `index` went, if there was one."""

    status: ResponseStatus
    index: int = 0
    dial_status: DialStatus = DialStatus.UNUSED


V2Message = DialRequest | DialDataRequest | DialData | DialResponse


def encode_v2(message: V2Message) -> bytes:
    """Write a message of the dial-request protocol."""
    raw = pb.Message2()
    match message:
        case DialRequest():
            raw.dialRequest.nonce = message.nonce
            raw.dialRequest.addrs.extend(
                each.to_bytes() for each in message.addresses if each is not None
            )
        case DialDataRequest():
            raw.dialDataRequest.addrIdx = message.index
            raw.dialDataRequest.numBytes = message.size
        case DialData():
            raw.dialDataResponse.data = bytes(message.size)
        case DialResponse():
            raw.dialResponse.CopyFrom(
                pb.DialResponse2(
                    status=message.status.name,
                    addrIdx=message.index,
                    dialStatus=message.dial_status.name,
                )
            )
    return raw.SerializeToString(deterministic=True)


def decode_v2(data: bytes, *, limit: int) -> V2Message:
    """Read a message of the dial-request protocol, with the first `limit` addresses of a request.

    Raises:
        ProtocolError: it is none, or a status in it is unknown.
    """
    try:
        raw = pb.Message2.FromString(data)
    except DecodeError as error:
        raise ProtocolError("an AutoNAT message is not the protobuf it should be") from error
    match raw.WhichOneof("msg"):
        case "dialRequest":
            request = raw.dialRequest
            return DialRequest(
                addresses=_read_addresses(request.addrs[:limit]), nonce=request.nonce
            )
        case "dialDataRequest":
            wanted = raw.dialDataRequest
            return DialDataRequest(index=wanted.addrIdx, size=wanted.numBytes)
        case "dialDataResponse":
            size = len(raw.dialDataResponse.data)
            if size > MAX_DATA_PIECE:
                raise ProtocolError(f"a piece of dial data has {size} bytes")
            return DialData(size=size)
        case "dialResponse":
            response = raw.dialResponse
            return DialResponse(
                status=_enum(ResponseStatus, response.status),
                index=response.addrIdx,
                dial_status=_enum(DialStatus, response.dialStatus),
            )
        case _:
            raise ProtocolError("an AutoNAT message is empty")


def encode_dial_back(nonce: int) -> bytes:
    """Write what is handed over at the address that was dialled."""
    return pb.DialBack2(nonce=nonce).SerializeToString(deterministic=True)


def decode_dial_back(data: bytes) -> int:
    """Read a nonce handed over to us.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return pb.DialBack2.FromString(data).nonce
    except DecodeError as error:
        raise ProtocolError("an AutoNAT dial-back is not the protobuf it should be") from error


# The one answer there is; its only status is the default, which proto3 leaves out.
DIAL_BACK_RESPONSE: Final = pb.DialBackResponse2().SerializeToString(deterministic=True)


def check_dial_back_response(data: bytes) -> None:
    """Check that a nonce was taken.

    Raises:
        ProtocolError: it was not, or this is no answer.
    """
    try:
        status = pb.DialBackResponse2.FromString(data).status
    except DecodeError as error:
        raise ProtocolError("the answer to a dial-back is not the protobuf it should be") from error
    if status != pb.DialBackResponse2.OK:
        raise ProtocolError(f"a dial-back was answered with status {status}")


# --- parts ----------------------------------------------------------------------------------------


def _parse_v1(data: bytes) -> pb.Message:
    try:
        return pb.Message.FromString(data)
    except DecodeError as error:
        raise ProtocolError("an AutoNAT message is not the protobuf it should be") from error


def _enum(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ProtocolError(f"an AutoNAT message holds an unknown status, {value}") from None


def _read_addresses(items: Iterable[bytes]) -> Addresses:
    """Read addresses, each in its place; a `/p2p` part says nothing here, and is left out."""
    return tuple(map(_read_address, items))


def _read_address(data: bytes) -> Multiaddr | None:
    try:
        address = split_p2p(read_address(data))[0]
    except InvalidAddressError:
        return None
    return address if address.to_bytes() else None


def _printable(text: str) -> str:
    return "".join(each for each in text[:MAX_TEXT] if each.isprintable())
