"""The messages of `/p2pnode/weights/1.0.0`: bytes to values and back, pure.

Each message is a msgpack map behind its uvarint length. Whoever opens a stream says first who he
is, then asks one thing after the other, without waiting for answers; they come in the same order:

    {v: 1, run: run id, as: "host" | "train", token?: biscuit}              first, not answered

    {op: "head", name, all: bool, codec, follow?: ms}
                                                 -> {head: [name, steps, bytes], peers: [peer id…]}
    {op: "manifest", of: name}                   -> {bytes: n} and n bytes
    {op: "have", of: name, beyond?: n, within?: ms}
                                                 -> {have: bits}
    {op: "chunk", of: name, index}               -> {bytes: n, have?: bits} and n bytes

`head` asks which version of an expert is the newest, with the optimiser's state or without, and in
which codec; `name` is the expert's without its run. Who says to `follow` is told who else does:
these are the expert's replicas, and each asks again within so many milliseconds. Of the bits of
`have`, bit i of byte k stands for chunk 8 k + i; a holder that still fetches a state already gives
what it has. With a chunk it says what that is, if it has more by now than it last said on the
stream. Who knows of n chunks, and has nothing to ask for, may wait for some milliseconds until
there are more. So those who fetch a state at the same time know what they can give each other.

Instead of any answer there may be `{error: [code, sentence]}`, and the stream goes on. States
without the optimiser's are given to members with either scope, since whoever trains a run's
weights may also take them home. The complete ones are for those who may host: the applied calls
are nobody else's business.
"""

from dataclasses import dataclass
from typing import Any, Final

from p2pnode.config.experts import Codec
from p2pnode.errors import (
    CallError,
    InvalidKeyError,
    InvalidUidError,
    P2PNodeError,
    ProtocolError,
)
from p2pnode.rpc.codecs.names import read_codec
from p2pnode.security.tokens import MAX_TOKEN_BYTES, SCOPES, Operation
from p2pnode.swarm.weights.manifest import HASH_BYTES, MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES
from p2pnode.wire.packing import framed, pack_error, read_error, unpack_map
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import MAX_UID_CHARS, Uid, check_run

PROTOCOL: Final = "/p2pnode/weights/1.0.0"
VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 16 * 1024  # bits for 16 GiB in chunks of 1 MiB take 2 KiB of it
MAX_CHUNKS: Final = MAX_MANIFEST_BYTES // HASH_BYTES
MAX_PEERS: Final = 64  # replicas of one expert that are told of
MAX_FOLLOW: Final = 86_400_000  # milliseconds
MAX_WITHIN: Final = 10_000  # milliseconds
_WHAT: Final = "a message about weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who asks, and as what."""

    run_id: str
    scope: Operation
    token: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRequest:
    """Which version is the newest?"""

    uid: Uid
    complete: bool
    codec: Codec = "none"
    follow: float | None = None  # seconds until the asker, a replica, asks again


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRequest:
    """What is a state made of?"""

    name: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HaveRequest:
    """Which of its chunks do you have? Or tell me within so many seconds, when there are more."""

    name: bytes
    beyond: int = 0  # how many the asker knows of
    within: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Give me one of them."""

    name: bytes
    index: int


WeightsRequest = HeadRequest | ManifestRequest | HaveRequest | ChunkRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest version of an expert, and who its replicas are."""

    name: bytes
    steps: int
    size: int  # of the state, in bytes
    followers: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """So many bytes follow: a manifest or a chunk; and what else there is, if that is news."""

    size: int
    have: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Have:
    """A set of chunks: bit i stands for chunk i."""

    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there is no answer."""

    error: P2PNodeError


WeightsReply = Head | Payload | Have | Refusal


def encode_hello(hello: Hello) -> bytes:
    """Return the message that a stream begins with."""
    message: dict[str, Any] = {"v": VERSION, "run": hello.run_id, "as": hello.scope}
    if hello.token is not None:
        message["token"] = hello.token
    return framed(message)


def decode_hello(data: bytes) -> Hello:
    """Read the message that a stream begins with, without its length.

    Raises:
        ProtocolError: it is malformed, or of another version.
    """
    message = unpack_map(data, _WHAT)
    if message.get("v") != VERSION:
        raise ProtocolError(f"another version than {VERSION}; update the older of the two nodes")
    run_id, scope, token = message.get("run"), message.get("as"), message.get("token")
    if not isinstance(run_id, str) or scope not in SCOPES:
        raise ProtocolError("a greeting must name a run and a scope")
    if token is not None and not (isinstance(token, bytes) and len(token) <= MAX_TOKEN_BYTES):
        raise ProtocolError("the token of a greeting is malformed")
    try:
        return Hello(run_id=check_run(run_id), scope=scope, token=token)
    except InvalidUidError as error:
        raise ProtocolError(str(error)) from error


def encode_request(request: WeightsRequest) -> bytes:
    """Return a request behind its length."""
    match request:
        case HeadRequest():
            message: dict[str, Any] = {
                "op": "head",
                "name": request.uid.name,
                "all": request.complete,
                "codec": request.codec,
            }
            if request.follow is not None:
                message["follow"] = min(max(1, round(request.follow * 1000)), MAX_FOLLOW)
        case ManifestRequest():
            message = {"op": "manifest", "of": request.name}
        case HaveRequest():
            message = {"op": "have", "of": request.name}
            if request.within:
                message["beyond"] = request.beyond
                message["within"] = min(max(1, round(request.within * 1000)), MAX_WITHIN)
        case ChunkRequest():
            message = {"op": "chunk", "of": request.name, "index": request.index}
    return framed(message)


def decode_request(data: bytes, run_id: str) -> WeightsRequest:
    """Read a request, without its length.

    Args:
        data: the message.
        run_id: of the stream, as its greeting said.

    Raises:
        ProtocolError: it is malformed.
    """
    message = unpack_map(data, _WHAT)
    match message.get("op"):
        case "head":
            return _read_head_request(message, run_id)
        case "manifest":
            return ManifestRequest(name=_name(message.get("of")))
        case "have":
            return HaveRequest(
                name=_name(message.get("of")),
                beyond=_count(message.get("beyond", 0), MAX_CHUNKS),
                within=_count(message.get("within", 0), MAX_WITHIN) / 1000,
            )
        case "chunk":
            index = _count(message.get("index"), MAX_CHUNKS - 1)
            return ChunkRequest(name=_name(message.get("of")), index=index)
    raise ProtocolError("a request asks for nothing known here")


def encode_reply(reply: WeightsReply) -> bytes:
    """Return a reply behind its length."""
    match reply:
        case Head():
            message: dict[str, Any] = {
                "head": [reply.name, reply.steps, reply.size],
                "peers": [bytes(each) for each in reply.followers[:MAX_PEERS]],
            }
        case Payload():
            message = {"bytes": reply.size}
            if reply.have is not None:
                message["have"] = _bits(reply.have)
        case Have():
            message = {"have": _bits(reply.chunks)}
        case Refusal():
            message = {"error": pack_error(reply.error)}
    return framed(message)


def decode_reply(data: bytes) -> WeightsReply:
    """Read a reply, without its length.

    Raises:
        ProtocolError: it is malformed.
    """
    message = unpack_map(data, _WHAT)
    if "error" in message:
        return Refusal(error=read_call_error(message["error"]))
    if "bytes" in message:
        return Payload(
            size=_count(message["bytes"], max(MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES)),
            have=_read_bits(message["have"]) if "have" in message else None,
        )
    if "have" in message:
        return Have(chunks=_read_bits(message["have"]))
    head, peers = message.get("head"), message.get("peers")
    if not isinstance(head, list) or len(head) != 3:
        raise ProtocolError("a reply answers nothing")
    if not isinstance(peers, list) or len(peers) > MAX_PEERS:
        raise ProtocolError(f"replicas must be a list of at most {MAX_PEERS} peers")
    return Head(
        name=_name(head[0]),
        steps=_count(head[1]),
        size=_count(head[2]),
        followers=tuple(map(_read_peer, peers)),
    )


def read_call_error(data: Any) -> CallError:
    """Read an error in a reply; one that is none of a call becomes a plain `CallError`.

    Raises:
        ProtocolError: it is malformed.
    """
    found = read_error(data)
    return found if isinstance(found, CallError) else CallError(str(found))


def _read_head_request(message: dict[Any, Any], run_id: str) -> HeadRequest:
    name, complete, follow = message.get("name"), message.get("all"), message.get("follow")
    if not isinstance(name, str) or len(name) > MAX_UID_CHARS or type(complete) is not bool:
        raise ProtocolError("a question for the newest version must name an expert")
    try:
        uid = Uid(run_id, name)
    except InvalidUidError as error:
        raise ProtocolError(str(error)) from error
    return HeadRequest(
        uid=uid,
        complete=complete,
        codec=read_codec(message.get("codec")),
        follow=None if follow is None else _count(follow, MAX_FOLLOW) / 1000,
    )


def _read_peer(data: Any) -> PeerId:
    try:
        return PeerId(data if isinstance(data, bytes) else b"")
    except InvalidKeyError as error:
        raise ProtocolError("a replica's peer id is malformed") from error


def _bits(chunks: int) -> bytes:
    return chunks.to_bytes(-(-chunks.bit_length() // 8), "little")


def _read_bits(value: Any) -> int:
    if not isinstance(value, bytes) or len(value) > MAX_CHUNKS // 8:
        raise ProtocolError("a set of chunks is malformed")
    return int.from_bytes(value, "little")


def _name(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != HASH_BYTES:
        raise ProtocolError(f"a state's name has {HASH_BYTES} bytes")
    return value


def _count(value: Any, most: int = 2**53) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError("a number is out of range")
    return value
