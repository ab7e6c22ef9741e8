"""The headers of tensor calls, protocol `/p2pnode/tensor/1.0.0`: bytes to values and back, pure.

A call is one stream. Each side sends one message:

    u32 big-endian length of the header | header: a msgpack map | the tensors' raw elements

Request:  {v: 1, op: "info" | "forward" | "backward", uid: "<run id>/<block.i.j>", ms: deadline in
          milliseconds from now, span?: so many consecutive layers from `uid` on are one call (1),
          token?: biscuit, id?: 16 bytes (backward), grads?: how many of the tensors, at the end,
          are gradients of outputs, trace?: 8 bytes by which the logs of both sides can be joined,
          reply?: the codec wanted for the answer (none), since?: of each layer the steps that the
          forward call met (backward), bound?: the most steps that may lie between, back?: false if
          no gradients of inputs are wanted (backward), tensors: [[dtype, shape, codec, bytes on the
          wire]…]}
Reply:    {v: 1, tensors: […], steps?: that each layer had taken} | {v: 1, info: {…}} |
          {v: 1, error: [code, sentence]}

Elements are little-endian in row-major order, tensor after tensor without padding; or what a
tensor's codec makes of them, as `p2pnode.rpc.codecs.names` has it. Keys a reader does not know are
skipped; a change that cannot be skipped raises `v`. The `token` stands in the first call of a
connection for each run, and again when the server answers 401 to a call without one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import msgpack

from p2pnode.config.experts import CODECS, Codec
from p2pnode.errors import (
    BadRequestError,
    InvalidUidError,
    P2PNodeError,
    ProtocolError,
)
from p2pnode.rpc.codecs.names import read_codec, wire_bytes
from p2pnode.rpc.schema import MAX_TENSORS, ExpertInfo, TensorMeta, read_meta, shown
from p2pnode.wire.packing import pack_error, read_error, unpack_map
from p2pnode.wire.uids import Uid

PROTOCOL: Final = "/p2pnode/tensor/1.0.0"
VERSION: Final = 1
PREFIX_BYTES: Final = 4
CALL_ID_BYTES: Final = 16
TRACE_BYTES: Final = 8
MAX_SPAN: Final = 256  # layers of one call: twice those of the deepest language models

_MAX_MILLISECONDS: Final = 2**40
_MAX_STEPS: Final = 2**53  # of an optimiser: more than any will take, and exact in every language

Operation = Literal["info", "forward", "backward"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)


@dataclass(slots=True, kw_only=True)
class Request:
    """One call's header; `uid.run` is the run's id, not its name."""

    operation: Operation
    uid: Uid
    milliseconds: int = 0  # until the caller gives up
    span: int = 1  # the call runs through so many layers, `uid` and those after it
    tensors: tuple[TensorMeta, ...] = ()
    gradients: int = 0  # so many of `tensors`, the last ones, are gradients of outputs
    call_id: bytes = b""
    token: bytes | None = None
    trace: bytes = b""  # of TRACE_BYTES, or nothing
    reply: Codec = "none"  # wanted for the answer's tensors
    since: tuple[int, ...] = ()  # steps that a backward call's forward call met, of each layer
    bound: int | None = None  # how many more the weights may have taken
    wants_gradients: bool = True  # of the inputs, in a backward call; a first layer's are of no use


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer's header."""

    tensors: tuple[TensorMeta, ...] = ()
    steps: tuple[int, ...] = ()  # that each layer had taken when the tensors were computed
    info: ExpertInfo | None = None
    error: P2PNodeError | None = None


def encode_request(request: Request) -> bytes:
    """Return the request's header behind its length."""
    header: dict[str, Any] = {
        "v": VERSION,
        "op": request.operation,
        "uid": str(request.uid),
        "ms": request.milliseconds,
    }
    if request.span != 1:
        header["span"] = request.span
    if request.token is not None:
        header["token"] = request.token
    if request.operation == "backward":
        header["id"] = request.call_id
        header["grads"] = request.gradients
        if request.since:
            header["since"] = request.since
        if request.bound is not None:
            header["bound"] = request.bound
        if not request.wants_gradients:
            header["back"] = False
    if request.trace:
        header["trace"] = request.trace
    if request.reply != "none":
        header["reply"] = request.reply
    if request.tensors:
        header["tensors"] = pack_metas(request.tensors)
    return prefixed(header)


def decode_request(data: bytes) -> Request:
    """Read a request's header, without its length.

    Raises:
        BadRequestError: it is malformed, or of another version.
    """
    try:
        header = unpack_header(data)
        operation = header.get("op")
        if operation not in OPERATIONS:
            raise BadRequestError(f"the operation {shown(operation)} is not one of a call")
        tensors = unpack_metas(header.get("tensors", []), CODECS)
        gradients, call_id, wants_gradients = 0, b"", True
        if operation == "backward":
            gradients, call_id, wants_gradients = _read_backward(header, tensors)
        trace = header.get("trace", b"")
        if not isinstance(trace, bytes) or len(trace) not in {0, TRACE_BYTES}:
            raise BadRequestError(f"a trace must have {TRACE_BYTES} bytes")
        milliseconds = header.get("ms")
        if type(milliseconds) is not int or not 0 <= milliseconds <= _MAX_MILLISECONDS:
            raise BadRequestError("the deadline must be in milliseconds")
        first, span = read_span(header)
        since, bound = _read_age(header, span) if operation == "backward" else ((), None)
        return Request(
            operation=operation,
            uid=first,
            milliseconds=milliseconds,
            span=span,
            tensors=tensors,
            gradients=gradients,
            call_id=call_id,
            token=read_token(header),
            trace=trace,
            reply=read_codec(header.get("reply", "none")),
            since=since,
            bound=bound,
            wants_gradients=wants_gradients,
        )
    except (ProtocolError, InvalidUidError) as error:
        raise BadRequestError(str(error)) from error


def _read_backward(
    header: Mapping[Any, Any], tensors: Sequence[TensorMeta]
) -> tuple[int, bytes, bool]:
    gradients, call_id = header.get("grads", 0), header.get("id", b"")
    wants_gradients = header.get("back", True)
    if type(wants_gradients) is not bool:
        raise BadRequestError("whether gradients are wanted back must be true or false")
    if not isinstance(call_id, bytes) or len(call_id) != CALL_ID_BYTES:
        raise BadRequestError(f"a backward call needs an id of {CALL_ID_BYTES} bytes")
    if type(gradients) is not int or not 0 <= gradients <= len(tensors):
        raise BadRequestError("the number of gradients does not fit the tensors")
    return gradients, call_id, wants_gradients


def _read_age(header: Mapping[Any, Any], span: int) -> tuple[tuple[int, ...], int | None]:
    since, bound = _read_steps(header.get("since", [])), header.get("bound")
    if since and len(since) != span:
        raise BadRequestError("the steps met in forward must be those of each layer")
    if bound is not None and (type(bound) is not int or not 0 <= bound <= _MAX_STEPS):
        raise BadRequestError("the bound on steps between forward and backward must be a number")
    return since, bound


def _read_steps(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > MAX_SPAN:
        raise ProtocolError(f"steps must be a list of at most {MAX_SPAN} numbers")
    if not all(type(each) is int and 0 <= each <= _MAX_STEPS for each in data):
        raise ProtocolError("steps must be numbers from 0 on")
    return tuple(data)


def encode_reply(reply: Reply) -> bytes:
    """Return the reply's header behind its length; an error must be one with a code."""
    header: dict[str, Any] = {"v": VERSION}
    if reply.error is not None:
        header["error"] = pack_error(reply.error)
    elif reply.info is not None:
        header["info"] = reply.info.to_wire()
    else:
        header["tensors"] = pack_metas(reply.tensors)
        if reply.steps:
            header["steps"] = reply.steps
    return prefixed(header)


def decode_reply(data: bytes) -> Reply:
    """Read a reply's header, without its length.

    Raises:
        ProtocolError: it is malformed, or of another version.
    """
    header = unpack_header(data)
    if (error := header.get("error")) is not None:
        return Reply(error=read_error(error))
    if (info := header.get("info")) is not None:
        return Reply(info=ExpertInfo.from_wire(info))
    return Reply(
        tensors=unpack_metas(header.get("tensors"), CODECS),
        steps=_read_steps(header.get("steps", [])),
    )


def read_span(header: Mapping[Any, Any]) -> tuple[Uid, int]:
    """Return the first expert that a header names, and through how many the call runs.

    Raises:
        BadRequestError: they are malformed.
        InvalidUidError: one of them would be no uid.
    """
    uid, span = header.get("uid"), header.get("span", 1)
    if not isinstance(uid, str):
        raise BadRequestError("the uid must be a text")
    if type(span) is not int or not 1 <= span <= MAX_SPAN:
        raise BadRequestError(f"a call runs through 1 to {MAX_SPAN} layers")
    first = Uid.parse(uid)
    first.span(span)  # all of them must be uids
    return first, span


def read_token(header: Mapping[Any, Any]) -> bytes | None:
    """Return the token of a header, if it has one.

    Raises:
        BadRequestError: it is malformed.
    """
    token = header.get("token")
    if token is not None and not isinstance(token, bytes):
        raise BadRequestError("the token must be bytes")
    return token


def prefixed(header: Mapping[str, Any]) -> bytes:
    """Return a header behind its length."""
    packed: bytes = msgpack.packb(header)
    return len(packed).to_bytes(PREFIX_BYTES, "big") + packed


def unpack_header(data: bytes) -> dict[Any, Any]:
    """Read a header of our version, without its length.

    Raises:
        ProtocolError: it is malformed, or of another version.
    """
    header = unpack_map(data, "a call's header")
    if header.get("v") != VERSION:
        raise ProtocolError(
            f"the call is of version {shown(header.get('v'))}, this node speaks {VERSION};"
            " update the older of the two"
        )
    return header


def pack_metas(tensors: Sequence[TensorMeta]) -> list[Any]:
    """Describe tensors as they stand in a header."""
    return [[meta.dtype, meta.shape, meta.codec, wire_bytes(meta)] for meta in tensors]


def unpack_metas(
    data: Any, allowed: Collection[Codec] = frozenset({"none"})
) -> tuple[TensorMeta, ...]:
    """Read what `pack_metas` gave.

    Args:
        data: as it came.
        allowed: the codecs that the protocol has.

    Raises:
        ProtocolError: it is malformed, or in another codec.
    """
    if not isinstance(data, list) or len(data) > MAX_TENSORS:
        raise ProtocolError(f"a call's tensors must be a list of at most {MAX_TENSORS}")
    found = []
    for entry in data:
        if not isinstance(entry, list) or len(entry) != 4:
            raise ProtocolError("a tensor is described by dtype, shape, codec and size")
        dtype, shape, codec, size = entry
        meta = read_meta(dtype, shape)
        if codec != "none":
            meta = replace(meta, codec=read_codec(codec, meta.dtype))
        if meta.codec not in allowed:
            raise ProtocolError(f"tensors do not travel as {meta.codec} here; send them as none")
        if type(size) is not int or size != wire_bytes(meta):
            raise ProtocolError(f"a tensor of {meta} cannot have {shown(size)} bytes")
        found.append(meta)
    return tuple(found)
