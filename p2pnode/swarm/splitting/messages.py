"""The messages of `/p2pnode/splitting/1.0.0`: bytes to values and back, pure.

A call is one stream. Each side sends one message, as in tensor calls:

    u32 big-endian length of the header | header: a msgpack map | the tensors' raw elements

Who trains says, as a member with the scope `train`:

    {op: "forward", after?, tensors, reply?}      -> {version, tensors}
    {op: "join", id, now?, plan?}                 -> {version}
    {op: "backward", id, now?, plan?, part, grads, tensors, reply?} -> {version, tensors}
    {op: "prepare", id, plan}                     -> {version, digest}
    {op: "commit", id}                            -> {version}
    {op: "abort", id}                             -> {}
    {op: "behind"}                                -> {}

and peers of the swarm among themselves, with the scope `host`:

    {op: "outcome", id}           -> {outcome: "committed" | "undecided" | "none", digest?}
    {op: "version"}               -> {version}
    {op: "state"}                 -> {version, state: name}
    {op: "pause", id}             -> {version}    no step begins until
    {op: "resume", id}            -> {}           or the deadline of `pause` is over

A step is joined before all else, and again from time to time while others are waited for, or it is
given up. With {now: true} a call joins it if nobody else has his turn, and is refused otherwise. A
plan is {try, parts, rows, group, codec}: how many parts the peer has, and with whom it adds up all
rows' gradients as soon as they are there; `prepare` waits for that. A forward call may come before
the step of the id `after` is over, and waits for its end. Requests also have
{v: 1, uid: "<run id>/<expert>", ms: deadline in milliseconds from now, token?}.

An `id` has 16 bytes and names one step of its caller; that of `outcome` is the key that peers make
of caller and id. `part` numbers the parts of a step. A group is a list of peer ids, in the order
that all of it share. A version is [steps, lineage]. Each answer may have {us}: so many microseconds
it waited at the peer, or did what is not the rows' own work. Instead of any answer there may be
`{error: [code, sentence]}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, get_args

from p2pnode.config.experts import CODECS, Codec
from p2pnode.errors import (
    BadRequestError,
    InvalidKeyError,
    InvalidUidError,
    P2PNodeError,
    ProtocolError,
)
from p2pnode.rpc.codecs.names import read_codec
from p2pnode.rpc.messages import (
    CALL_ID_BYTES,
    VERSION,
    decode_reply,
    pack_metas,
    prefixed,
    read_token,
    unpack_header,
    unpack_metas,
)
from p2pnode.rpc.schema import TensorMeta, shown
from p2pnode.swarm.splitting.core import Plan
from p2pnode.swarm.splitting.versions import LINEAGE_BYTES, MAX_STEPS, Version
from p2pnode.swarm.weights.manifest import HASH_BYTES
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

PROTOCOL: Final = "/p2pnode/splitting/1.0.0"
DIGEST_BYTES: Final = 32
MAX_GROUP: Final = 64
MAX_PARTS: Final = 2**20  # of one step
MAX_TRIES: Final = 64
_MAX_ROWS: Final = 2**40
_MAX_MILLISECONDS: Final = 2**40
_MAX_MICROSECONDS: Final = 2**50

Operation = Literal[
    "forward",
    "join",
    "backward",
    "prepare",
    "commit",
    "abort",
    "behind",
    "outcome",
    "version",
    "state",
    "pause",
    "resume",
]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
AMONG_PEERS: Final = frozenset({"outcome", "version", "state", "pause", "resume"})
_OF_A_STEP: Final = frozenset(
    {"join", "backward", "prepare", "commit", "abort", "outcome", "pause", "resume"}
)
_WITH_TENSORS: Final = frozenset({"forward", "backward"})
_JOINING: Final = frozenset({"join", "backward"})
_WITH_PLAN: Final = _JOINING | {"prepare"}


class Outcome(StrEnum):
    """What a peer knows of a step."""

    COMMITTED = "committed"
    UNDECIDED = "undecided"  # it has the sum, and waits for the word as well
    NONE = "none"  # it has not taken the step, and will not


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRequest:
    """One request's header; `uid.run` is the run's id, not its name."""

    operation: Operation
    uid: Uid
    milliseconds: int = 0  # until the caller gives up
    step_id: bytes = b""
    after: bytes = b""  # a step of the caller's whose end is waited for
    now: bool = False  # the step is joined if it can be at once
    plan: Plan | None = None
    part: int = 0
    tensors: tuple[TensorMeta, ...] = ()
    gradients: int = 0  # so many of `tensors`, the last ones, are gradients of outputs
    reply: Codec = "none"
    token: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReply:
    """One answer's header; what it has depends on the request."""

    version: Version | None = None
    digest: bytes = b""  # of the sum of the group's gradients
    outcome: Outcome | None = None
    state: bytes = b""  # the name under which the weights can be fetched
    microseconds: int = 0  # that it took at the peer beside the work on the call's rows
    tensors: tuple[TensorMeta, ...] = ()
    error: P2PNodeError | None = None


def encode_request(request: SplitRequest) -> bytes:
    """Return a request's header behind its length."""
    operation = request.operation
    header: dict[str, Any] = {
        "v": VERSION,
        "op": operation,
        "uid": str(request.uid),
        "ms": request.milliseconds,
    }
    if request.token is not None:
        header["token"] = request.token
    if operation in _OF_A_STEP:
        header["id"] = request.step_id
    if operation == "backward":
        header |= {"part": request.part, "grads": request.gradients}
    if request.after:
        header["after"] = request.after
    if request.now:
        header["now"] = True
    if request.plan is not None:
        header["plan"] = _pack_plan(request.plan)
    if operation in _WITH_TENSORS:
        header |= {"tensors": pack_metas(request.tensors), "reply": request.reply}
    return prefixed(header)


def decode_request(data: bytes) -> SplitRequest:
    """Read a request's header, without its length.

    Raises:
        BadRequestError: it is malformed, or of another version.
    """
    try:
        header = unpack_header(data)
        operation = header.get("op")
        if operation not in OPERATIONS:
            raise BadRequestError(f"the operation {shown(operation)} is not one of a split call")
        uid = header.get("uid")
        if not isinstance(uid, str):
            raise BadRequestError("the uid must be a text")
        tensors, gradients, reply = _read_tensors(operation, header)
        plan = _read_plan(header.get("plan")) if operation in _WITH_PLAN else None
        if operation == "prepare" and plan is None:
            raise BadRequestError("a plan is missing from a call that prepares a step")
        after = header.get("after") if operation == "forward" else None
        now = header.get("now", False) if operation in _JOINING else False
        if not isinstance(now, bool):
            raise BadRequestError("`now` is true or false")
        return SplitRequest(
            operation=operation,
            uid=Uid.parse(uid),
            milliseconds=_count(header.get("ms"), _MAX_MILLISECONDS),
            step_id=_bytes(header.get("id"), CALL_ID_BYTES) if operation in _OF_A_STEP else b"",
            after=b"" if after is None else _bytes(after, CALL_ID_BYTES),
            now=now,
            plan=plan,
            part=_count(header.get("part"), MAX_PARTS) if operation == "backward" else 0,
            tensors=tensors,
            gradients=gradients,
            reply=reply,
            token=read_token(header),
        )
    except (ProtocolError, InvalidUidError) as error:
        raise BadRequestError(str(error)) from error


def encode_reply(reply: SplitReply, tensors: Sequence[TensorMeta] = ()) -> bytes:
    """Return a reply's header, with these tensors, behind its length.

    A refusal is encoded as in tensor calls.
    """
    header: dict[str, Any] = {"v": VERSION, "tensors": pack_metas(tensors)}
    if reply.version is not None:
        header["version"] = [reply.version.steps, reply.version.lineage]
    if reply.digest:
        header["digest"] = reply.digest
    if reply.outcome is not None:
        header["outcome"] = str(reply.outcome)
    if reply.state:
        header["state"] = reply.state
    if reply.microseconds:
        header["us"] = reply.microseconds
    return prefixed(header)


def decode_split_reply(data: bytes) -> SplitReply:
    """Read a reply's header, without its length.

    Raises:
        ProtocolError: it is malformed, or of another version.
    """
    header = unpack_header(data)
    if "error" in header:
        return SplitReply(error=decode_reply(data).error)
    version, digest = header.get("version"), header.get("digest")
    outcome, state = header.get("outcome"), header.get("state")
    if outcome is not None and (not isinstance(outcome, str) or outcome not in set(Outcome)):
        raise ProtocolError("a step has no such outcome")
    return SplitReply(
        version=None if version is None else _read_version(version),
        digest=b"" if digest is None else _bytes(digest, DIGEST_BYTES),
        outcome=None if outcome is None else Outcome(outcome),
        state=b"" if state is None else _bytes(state, HASH_BYTES),
        microseconds=_count(header.get("us", 0), _MAX_MICROSECONDS),
        tensors=unpack_metas(header.get("tensors"), CODECS),
    )


def _read_tensors(
    operation: Operation, header: Mapping[Any, Any]
) -> tuple[tuple[TensorMeta, ...], int, Codec]:
    if operation not in _WITH_TENSORS:
        return (), 0, "none"
    tensors = unpack_metas(header.get("tensors"), CODECS)
    gradients = _count(header.get("grads"), len(tensors)) if operation == "backward" else 0
    return tensors, gradients, read_codec(header.get("reply", "none"))


def _read_version(data: Any) -> Version:
    if not isinstance(data, list) or len(data) != 2:
        raise ProtocolError("a version is a number of steps and a lineage")
    return Version(_count(data[0], MAX_STEPS), _bytes(data[1], LINEAGE_BYTES))


def _pack_plan(plan: Plan) -> dict[str, Any]:
    return {
        "try": plan.attempt,
        "parts": plan.parts,
        "rows": plan.rows,
        "group": [bytes(each) for each in plan.group],
        "codec": plan.codec,
    }


def _read_plan(data: Any) -> Plan | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ProtocolError("a plan is a map")
    return Plan(
        attempt=_count(data.get("try"), MAX_TRIES),
        parts=_count(data.get("parts"), MAX_PARTS),
        rows=_count(data.get("rows"), _MAX_ROWS),
        group=_read_group(data.get("group")),
        codec=read_codec(data.get("codec")),
    )


def _read_group(data: Any) -> tuple[PeerId, ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_GROUP:
        raise ProtocolError(f"a group has 1 to {MAX_GROUP} peers")
    group = tuple(map(_read_peer, data))
    if len(set(group)) != len(group):
        raise ProtocolError("a peer is in a group twice")
    return group


def _read_peer(data: Any) -> PeerId:
    try:
        return PeerId(data if isinstance(data, bytes) else b"")
    except InvalidKeyError as error:
        raise ProtocolError("a peer id is malformed") from error


def _bytes(value: Any, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ProtocolError(f"{size} bytes are missing from a split call's header")
    return value


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError("a number in a split call's header is out of range")
    return value
