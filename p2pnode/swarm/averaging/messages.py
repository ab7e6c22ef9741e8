"""The messages of `/p2pnode/averaging/1.0.0`: bytes to values and back, pure.

Each member opens a stream to each member that reduces a part. Messages are msgpack maps behind
their uvarint length:

    {v: 1, run: run id, round, digest, members, weight, wants?, token?}
                                              and the sender's elements of the receiver's part

`members` is the sender's view, as `core` has it: [[peer id, bandwidth]...] in the order of the peer
ids. The sender does not wait for an answer, of which there are these:

    {part: members, weight}   and the reduced part
    {whole: members, weight}  the receiver has the whole result: come again, and say you want it
    {moved: members}          the receiver's view is another one: come again for this one
    {error: [code, sentence]}

Two kinds of the first message come without elements. With `wants: "whole"` the sender gets `whole`
with all elements of the result as they are; with `wants: "nothing"` it tells that it has them.
`part` and `whole` name the members whose contributions are in the result, and the sum of their
weights. Who has this part, and waits for others, says `{done: false}` every now and then, and
`{done: true}` when it has them all. The receiver ends the stream when all have.

Elements of a part are cut in chunks of `parts.CHUNK`, and each chunk travels in the group's codec
as a tensor of one dimension, float32 or float64 as the group's tensors demand.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from p2pnode.errors import (
    BadRequestError,
    InvalidKeyError,
    InvalidUidError,
    P2PNodeError,
    ProtocolError,
)
from p2pnode.security.tokens import MAX_TOKEN_BYTES
from p2pnode.swarm.averaging.group import MAX_MEMBERS, MAX_ROUND_ID_BYTES
from p2pnode.wire.packing import framed, pack_error, read_error, unpack_map
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import check_run

PROTOCOL: Final = "/p2pnode/averaging/1.0.0"
VERSION: Final = 1
DIGEST_BYTES: Final = 32
MAX_MESSAGE_BYTES: Final = 16 * 1024  # a token, and a view of 64 members
_WHAT: Final = "a message about averaging"

Members = Mapping[PeerId, float]  # and their bandwidths, in the order of the ids


# A contribution follows, and its sender wants the reduced part; or it wants the whole result; or it
# has that, and says so.
Wants = Literal["part", "whole", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What a stream begins with."""

    run_id: str
    round_id: bytes
    digest: bytes
    members: Members
    weight: float
    wants: Wants = "part"
    token: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The reduced part follows."""

    members: Members
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """There is a result; all of it follows if the sender has said that it wants it."""

    members: Members
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The receiver's view is another one than the sender's, and a part of it."""

    members: Members


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The receiver does not take the contribution."""

    error: P2PNodeError


Answer = Part | Whole | Moved | Refusal


def encode_join(join: Join) -> bytes:
    """Return the message behind its length."""
    message: dict[str, Any] = {
        "v": VERSION,
        "run": join.run_id,
        "round": join.round_id,
        "digest": join.digest,
        "members": _packed(join.members),
        "weight": join.weight,
    }
    if join.wants != "part":
        message["wants"] = join.wants
    if join.token is not None:
        message["token"] = join.token
    return framed(message)


def decode_join(data: bytes) -> Join:
    """Read the message that a stream begins with, without its length.

    Raises:
        BadRequestError: it is malformed, or of another version.
    """
    try:
        return _read_join(unpack_map(data, _WHAT))
    except (ProtocolError, InvalidUidError) as error:
        raise BadRequestError(str(error)) from error


def _read_join(message: dict[Any, Any]) -> Join:
    if message.get("v") != VERSION:
        raise ProtocolError(f"this node averages by version {VERSION}; update the older one")
    run_id, round_id, token = message.get("run"), message.get("round"), message.get("token")
    if not isinstance(run_id, str):
        raise ProtocolError("a contribution must name its run")
    if not isinstance(round_id, bytes) or not 1 <= len(round_id) <= MAX_ROUND_ID_BYTES:
        raise ProtocolError("a contribution must name its round")
    digest = message.get("digest")
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
        raise ProtocolError(f"a group's digest has {DIGEST_BYTES} bytes")
    if token is not None and not (isinstance(token, bytes) and len(token) <= MAX_TOKEN_BYTES):
        raise ProtocolError("the token of a contribution is malformed")
    wants = message.get("wants", "part")
    if wants not in get_args(Wants):
        raise ProtocolError("a member wants a part, the whole result, or nothing")
    return Join(
        run_id=check_run(run_id),
        round_id=round_id,
        digest=digest,
        members=_members(message.get("members")),
        weight=_weight(message.get("weight")),
        wants=wants,
        token=token,
    )


def encode_answer(answer: Answer) -> bytes:
    """Return the message behind its length."""
    match answer:
        case Part(members=members, weight=weight):
            return framed({"part": _packed(members), "weight": weight})
        case Whole(members=members, weight=weight):
            return framed({"whole": _packed(members), "weight": weight})
        case Moved(members=members):
            return framed({"moved": _packed(members)})
        case Refusal(error=error):
            return framed({"error": pack_error(error)})


def decode_answer(data: bytes) -> Answer:
    """Read an answer, without its length.

    Raises:
        ProtocolError: it is malformed.
    """
    message = unpack_map(data, _WHAT)
    if (error := message.get("error")) is not None:
        return Refusal(error=read_error(error))
    if "moved" in message:
        return Moved(members=_members(message["moved"]))
    weight = _weight(message.get("weight"))
    if "whole" in message:
        return Whole(members=_members(message["whole"]), weight=weight)
    return Part(members=_members(message.get("part")), weight=weight)


def encode_done(*, is_done: bool) -> bytes:
    """Return what a member says that has the whole result, or still waits for some of it."""
    return framed({"done": is_done})


def decode_done(data: bytes) -> bool:
    """Return whether a member says that it has the whole result.

    Raises:
        ProtocolError: it says something else.
    """
    is_done = unpack_map(data, _WHAT).get("done")
    if not isinstance(is_done, bool):
        raise ProtocolError("a member that has a part can only say whether it has them all")
    return is_done


def _packed(members: Members) -> list[list[Any]]:
    return [[bytes(peer_id), bandwidth] for peer_id, bandwidth in members.items()]


def _members(value: Any) -> Members:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MEMBERS:
        raise ProtocolError(f"a view must be a list of 1 to {MAX_MEMBERS} members")
    found = {}
    last = b""
    for entry in value:
        if not isinstance(entry, list) or len(entry) != 2:
            raise ProtocolError("a member of a view is a peer id and a bandwidth")
        peer_id, bandwidth = entry
        if not isinstance(peer_id, bytes) or not last < peer_id:
            raise ProtocolError("the members of a view must be in the order of their peer ids")
        if type(bandwidth) is not float or not 0 <= bandwidth < math.inf:
            raise ProtocolError("a bandwidth must be a finite number of at least 0")
        last = peer_id
        try:
            found[PeerId(peer_id)] = bandwidth
        except InvalidKeyError as error:
            raise ProtocolError("a member of a view is malformed") from error
    return found


def _weight(value: Any) -> float:
    if type(value) is not float or not 0 < value < math.inf:
        raise ProtocolError("a weight must be a finite number above 0")
    return value
