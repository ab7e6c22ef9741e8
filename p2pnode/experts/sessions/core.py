"""Inference sessions, protocol `/p2pnode/session/1.0.0`: messages, rules and budget, pure.

A session is one stream over consecutive blocks of one host. The caller opens it and then sends
steps, one at a time; each is answered before the next one. Messages look as in tensor calls (see
`p2pnode.rpc.messages`): the length of a header, a msgpack map, and the elements of tensors.

Open:   {v: 1, uid: "<run id>/<block.i>", span?: so many blocks from `uid` on (1), rows: sequences
        side by side, length: of the longest they become, codec?: of all tensors ("none"),
        token?: biscuit}
Opened: {v: 1, info: {…}} | {v: 1, error: [code, sentence]}
Step:   {v: 1, pos: of the first position that comes, order?: [row…], tensors: [hidden states of
        shape (rows, positions, hidden_size)]}
Stepped: {v: 1, tensors: [as large]} | {v: 1, error: [code, sentence]}

A step begins at most where the step before ended. One that begins earlier goes back: what was kept
behind `pos` is forgotten. With `order`, row i goes on from what row `order[i]` has seen, which is
what beam search needs. After an error, or the end of either direction, the session is over, and
what it held is free.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.config import SessionSettings
from p2pnode.config.experts import CODECS, Codec
from p2pnode.errors import (
    BadRequestError,
    InvalidUidError,
    OverloadedError,
    ProtocolError,
    SchemaError,
)
from p2pnode.rpc.codecs.names import codec_for, read_codec
from p2pnode.rpc.messages import (
    VERSION,
    pack_metas,
    prefixed,
    read_span,
    read_token,
    unpack_header,
    unpack_metas,
)
from p2pnode.rpc.schema import ExpertInfo, TensorMeta, UpTo
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

PROTOCOL: Final = "/p2pnode/session/1.0.0"
MAX_ROWS: Final = 4096  # of one session; each may stand in a step's `order`
_MAX_POSITION: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What a session begins with; `uid.run` is the run's id, not its name."""

    uid: Uid
    span: int = 1
    rows: int
    length: int
    codec: Codec = "none"
    token: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The header of one step."""

    position: int
    tensors: tuple[TensorMeta, ...]
    order: tuple[int, ...] | None = None


def encode_open(message: Open) -> bytes:
    """Return the header behind its length."""
    header: dict[str, Any] = {
        "v": VERSION,
        "uid": str(message.uid),
        "rows": message.rows,
        "length": message.length,
    }
    if message.span != 1:
        header["span"] = message.span
    if message.codec != "none":
        header["codec"] = message.codec
    if message.token is not None:
        header["token"] = message.token
    return prefixed(header)


def decode_open(data: bytes) -> Open:
    """Read the header, without its length.

    Raises:
        BadRequestError: it is malformed, or of another version.
    """
    try:
        header = unpack_header(data)
        uid, span = read_span(header)
        return Open(
            uid=uid,
            span=span,
            rows=_count(header.get("rows"), "rows", MAX_ROWS),
            length=_count(header.get("length"), "positions", _MAX_POSITION),
            codec=read_codec(header.get("codec", "none")),
            token=read_token(header),
        )
    except (ProtocolError, InvalidUidError) as error:
        raise BadRequestError(str(error)) from error


def encode_step(message: Step) -> bytes:
    """Return the header behind its length."""
    header: dict[str, Any] = {
        "v": VERSION,
        "pos": message.position,
        "tensors": pack_metas(message.tensors),
    }
    if message.order is not None:
        header["order"] = message.order
    return prefixed(header)


def decode_step(data: bytes) -> Step:
    """Read the header, without its length.

    Raises:
        BadRequestError: it is malformed, or of another version.
    """
    try:
        header = unpack_header(data)
        position, order = header.get("pos"), header.get("order")
        if type(position) is not int or not 0 <= position <= _MAX_POSITION:
            raise BadRequestError("a step must say at which position it begins")
        if order is not None and not (
            isinstance(order, list)
            and len(order) <= MAX_ROWS
            and all(type(row) is int and 0 <= row < MAX_ROWS for row in order)
        ):
            raise BadRequestError(f"an order must be a list of at most {MAX_ROWS} rows")
        return Step(
            position=position,
            tensors=unpack_metas(header.get("tensors"), CODECS),
            order=None if order is None else tuple(order),
        )
    except ProtocolError as error:
        raise BadRequestError(str(error)) from error


class SessionState:
    """How far a session has come, and which step may be next.

    Args:
        info: what the blocks take and give.
        rows: sequences side by side.
        length: positions there is room for.
        codec: how tensors travel, there and back.
    """

    def __init__(self, info: ExpertInfo, rows: int, length: int, codec: Codec = "none") -> None:
        self._info = info
        self._rows = rows
        self._length = length
        self._codec = codec
        self.position = 0  # of the next token; so many are kept

    def check(self, step: Step) -> int:
        """Check a step before its tensors are received; return where it ends.

        Raises:
            SchemaError: its tensors, its position or its order do not fit the session.
            TensorTooLargeError: it is larger than what the host takes at once.
        """
        rows = self._info.check_inputs(step.tensors)
        end = step.position + step.tensors[0].shape[1]
        if step.tensors[0].codec != codec_for(self._codec, step.tensors[0].dtype):
            raise SchemaError(
                f"the session's codec is {self._codec}, the step's {step.tensors[0].codec}"
            )
        if rows != self._rows:
            raise SchemaError(f"the session has {self._rows} rows, the step {rows}")
        if step.position > self.position:
            raise SchemaError(
                f"the step begins at {step.position}, but the session has come to {self.position};"
                " send the positions between first"
            )
        if end > self._length:
            raise SchemaError(
                f"the step ends at {end}, but the session was opened for {self._length} positions;"
                " open a longer one"
            )
        if step.order is not None and (
            len(step.order) != rows or any(row >= rows for row in step.order)
        ):
            raise SchemaError(f"the order must name one of the {rows} rows for each of them")
        return end


class SessionBudget:
    """The sessions of a host and what their caches hold, in all and of each peer."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._sessions: Counter[PeerId] = Counter()
        self._bytes: Counter[PeerId] = Counter()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return self._sessions.total()

    @property
    def cache_bytes(self) -> int:
        """What their caches hold, as charged when they opened."""
        return self._bytes.total()

    @contextlib.contextmanager
    def session(self, peer_id: PeerId, size: int) -> Iterator[None]:
        """Hold a session whose caches take `size` bytes, until the block ends.

        Raises:
            OverloadedError: a budget is used up; nothing is charged.
        """
        self._check(peer_id, size)
        self._sessions[peer_id] += 1
        self._bytes[peer_id] += size
        try:
            yield
        finally:
            for counter, amount in ((self._bytes, size), (self._sessions, 1)):
                counter[peer_id] -= amount
                if not counter[peer_id]:
                    del counter[peer_id]  # a peer without sessions leaves no trace

    def _check(self, peer_id: PeerId, size: int) -> None:
        settings = self._settings
        if self._sessions[peer_id] >= settings.max_sessions_per_peer:
            raise OverloadedError(
                f"{settings.max_sessions_per_peer} sessions of yours are open here; close one"
            )
        if self.sessions >= settings.max_sessions:
            raise OverloadedError("as many sessions are open here as the host takes; go elsewhere")
        if self._bytes[peer_id] + size > settings.max_cache_bytes_per_peer:
            raise OverloadedError(
                f"a session of {size} bytes would give you more than the"
                f" {settings.max_cache_bytes_per_peer} that one peer gets here; open a shorter one,"
                " or close another"
            )
        if self.cache_bytes + size > settings.max_cache_bytes:
            raise OverloadedError(
                f"the host's memory for sessions has no {size} bytes left; open a shorter one, or"
                " go elsewhere"
            )


def check_opening(info: ExpertInfo, length: int, limit: int = _MAX_POSITION) -> None:
    """Return if sessions of such a length are possible over such blocks.

    Args:
        info: what the blocks take and give.
        length: positions.
        limit: the most that the host allows, whatever the blocks could do.

    Raises:
        SchemaError: they are not: it takes one sequence in, and one like it out.
    """
    shape = info.inputs[0].shape
    if len(info.inputs) != 1 or info.inputs != info.outputs or info.inputs[0].free != (1,):
        raise SchemaError(f"a {info.layer} takes no sequences of any length, so has no sessions")
    longest = min(limit, shape[1].limit if isinstance(shape[1], UpTo) else 0)
    if length > longest:
        raise SchemaError(
            f"a session of {length} positions is too long here; open one of at most {longest}"
        )


def _count(value: Any, what: str, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise BadRequestError(f"a session has 1 to {limit} {what}")
    return value
