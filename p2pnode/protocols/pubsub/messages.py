"""Pubsub's RPCs: what they hold, and their protobuf both ways.

Source: libp2p/specs, pubsub and gossipsub 1.0 to 1.2. An RPC is a bag of independent *pieces*:
subscriptions, messages, and control messages. Pieces are encoded one by one, each once for all the
peers it goes to, and an RPC is put together from them by concatenation, which is how protobuf
merges repeated fields.

Decoding is bounded before it costs anything: `_check_counts` walks the few levels that can nest
and refuses an RPC with too many elements, which would cost fifty times their bytes in memory,
before the protobuf library sees it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire import varint
from p2pnode.wire.pb import pubsub_pb2
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.protobuf import walk_fields

MAX_ID_BYTES: Final = 128  # of a message: an author's id and a sequence number are 46 bytes
MAX_RECORD_BYTES: Final = 8 * 1024  # of a signed peer record, as identify takes them
MAX_PX_PEERS: Final = 256  # read from one PRUNE; far fewer are ever dialled

_PUBLISH_TAG: Final = b"\x12"
_CONTROL_TAG: Final = b"\x1a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A published message, as it travels unchanged from peer to peer.

    Attributes:
        topic: where it is published.
        data: the application's bytes.
        author: who made it, or None if it is anonymous (StrictNoSign).
        seqno: 8 bytes that rise with each message of the author, or empty.
        signature: the author's, or empty.
        key: the author's PublicKey protobuf where its id does not hold it, or empty.
    """

    topic: str
    data: bytes
    author: PeerId | None = None
    seqno: bytes = b""
    signature: bytes = b""
    key: bytes = b""

    def signed_bytes(self) -> bytes:
        """Return the protobuf without signature and key, over which an author signs."""
        return self._protobuf().SerializeToString(deterministic=True)

    def encode(self) -> bytes:
        """Return the message as a piece of an RPC."""
        raw = self._protobuf()
        if self.signature:
            raw.signature = self.signature
        if self.key:
            raw.key = self.key
        return _PUBLISH_TAG + varint.prefixed(raw.SerializeToString(deterministic=True))

    def _protobuf(self) -> pubsub_pb2.Message:
        raw = pubsub_pb2.Message(data=self.data, topic=self.topic)
        if self.author is not None:
            raw.author = bytes(self.author)
        if self.seqno:
            raw.seqno = self.seqno
        return raw


@dataclass(frozen=True, slots=True)
class Interest:
    """The sender wants the topic's messages from now on, or no longer."""

    topic: str
    wanted: bool

    def encode(self) -> bytes:
        """Return it as a piece of an RPC."""
        option = pubsub_pb2.SubOpts(subscribe=self.wanted, topicid=self.topic)
        return pubsub_pb2.RPC(subscriptions=[option]).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Graft:
    """The sender has taken the receiver into its mesh of the topic."""

    topic: str

    def encode(self) -> bytes:
        """Return it as a piece of an RPC's control message."""
        graft = pubsub_pb2.ControlGraft(topicID=self.topic)
        return pubsub_pb2.ControlMessage(graft=[graft]).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class PeerHint:
    """Another peer of a topic, with its signed addresses if they are known (peer exchange)."""

    peer_id: PeerId
    record: bytes = b""


@dataclass(frozen=True, slots=True)
class Prune:
    """The sender has put the receiver out of its mesh of the topic.

    Attributes:
        topic: whose mesh.
        peers: others whom the receiver may try instead.
        backoff: seconds before the receiver may GRAFT again; None from a peer that speaks 1.0.
    """

    topic: str
    peers: tuple[PeerHint, ...] = ()
    backoff: int | None = None

    def encode(self) -> bytes:
        """Return it as a piece of an RPC's control message."""
        prune = pubsub_pb2.ControlPrune(topicID=self.topic)
        for each in self.peers:
            info = prune.peers.add(peerID=bytes(each.peer_id))
            if each.record:
                info.signedPeerRecord = each.record
        if self.backoff is not None:
            prune.backoff = self.backoff
        return pubsub_pb2.ControlMessage(prune=[prune]).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class IHave:
    """The sender has these messages of the topic."""

    topic: str
    ids: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return it as a piece of an RPC's control message."""
        ihave = pubsub_pb2.ControlIHave(topicID=self.topic, messageIDs=self.ids)
        return pubsub_pb2.ControlMessage(ihave=[ihave]).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class IWant:
    """The sender wants these messages."""

    ids: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return it as a piece of an RPC's control message."""
        iwant = pubsub_pb2.ControlIWant(messageIDs=self.ids)
        return pubsub_pb2.ControlMessage(iwant=[iwant]).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class IDontWant:
    """The sender has these messages already, and need not be sent them (1.2)."""

    ids: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return it as a piece of an RPC's control message."""
        unwanted = pubsub_pb2.ControlIDontWant(messageIDs=self.ids)
        return pubsub_pb2.ControlMessage(idontwant=[unwanted]).SerializeToString(deterministic=True)


class _WithIds(Protocol):
    """A control message that names messages."""

    @property
    def messageIDs(self) -> Sequence[bytes]: ...  # noqa: N802  # as the specification has it


_Named = TypeVar("_Named", bound=_WithIds)

Control = Graft | Prune | IHave | IWant | IDontWant
Piece = Interest | Message | Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """Everything one RPC says, in the order in which it is to be taken in."""

    subscriptions: tuple[Interest, ...] = ()
    messages: tuple[Message, ...] = ()
    control: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """What one RPC may hold.

    Attributes:
        messages: how many messages.
        controls: how many subscriptions, control messages and peers of them, all told.
        ids: how many message ids are read of all its control messages of one kind.
    """

    messages: int
    controls: int
    ids: int


def join(pieces: Iterable[bytes], control: Iterable[bytes]) -> bytes:
    """Put an RPC together from encoded subscriptions and messages, and from encoded controls.

    There is one control message at most: some decoders heed the last one only.
    """
    body = b"".join(control)
    return b"".join(pieces) + (_CONTROL_TAG + varint.prefixed(body) if body else b"")


def encode(rpc: Rpc) -> bytes:
    """Return the protobuf of `rpc`."""
    plain: Sequence[Interest | Message] = (*rpc.subscriptions, *rpc.messages)
    return join((each.encode() for each in plain), (each.encode() for each in rpc.control))


def decode(data: bytes, limits: RpcLimits) -> Rpc:
    """Read an RPC. What it says twice about one topic counts once, as it says it last.

    Raises:
        ProtocolError: it is malformed, or holds more elements than `limits` allows.
    """
    _check_counts(memoryview(data), limits)
    try:
        raw = pubsub_pb2.RPC.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a pubsub RPC is not the protobuf it should be") from error
    try:
        return Rpc(
            subscriptions=tuple(
                Interest(topic, wanted=wanted)
                for topic, wanted in {
                    each.topicid: each.subscribe for each in raw.subscriptions
                }.items()
            ),
            messages=tuple(_decode_message(each) for each in raw.publish),
            control=_decode_control(raw.control, limits) if raw.HasField("control") else (),
        )
    except InvalidKeyError as error:
        raise ProtocolError("a pubsub RPC names a peer by a malformed id") from error


def _decode_message(raw: pubsub_pb2.Message) -> Message:
    return Message(
        topic=raw.topic,
        data=raw.data,
        author=PeerId(raw.author) if raw.author else None,
        seqno=raw.seqno,
        signature=raw.signature,
        key=raw.key,
    )


def _decode_control(raw: pubsub_pb2.ControlMessage, limits: RpcLimits) -> tuple[Control, ...]:
    """Read control messages: what ends a delivery comes before what starts one."""
    control: list[Control] = []
    control.extend(IDontWant(ids) for _, ids in _read_ids(raw.idontwant, limits.ids))
    control.extend(IHave(each.topicID, ids) for each, ids in _read_ids(raw.ihave, limits.ids))
    control.extend(IWant(ids) for _, ids in _read_ids(raw.iwant, limits.ids))
    control.extend(Graft(topic) for topic in dict.fromkeys(each.topicID for each in raw.graft))
    for prune in {each.topicID: each for each in raw.prune}.values():
        hints = tuple(
            PeerHint(PeerId(each.peerID), each.signedPeerRecord)
            for each in prune.peers[:MAX_PX_PEERS]
            if len(each.signedPeerRecord) <= MAX_RECORD_BYTES
        )
        backoff = prune.backoff if prune.HasField("backoff") else None
        control.append(Prune(prune.topicID, hints, backoff))
    return tuple(control)


def _read_ids(raw: Iterable[_Named], limit: int) -> Iterator[tuple[_Named, tuple[bytes, ...]]]:
    """Read the ids of each control message, as far as there are any.

    Those beyond the limit are left out, as other implementations do.
    """
    for each in raw:
        some = each.messageIDs[:limit]
        limit -= len(some)
        if ids := tuple(one for one in some if 0 < len(one) <= MAX_ID_BYTES):
            yield each, ids


# --- counting before decoding -------------------------------------------------------------------

_PUBLISH: Final = 2  # field of an RPC
_CONTROL: Final = 3  # field of an RPC
_PRUNE: Final = 4  # field of a control message
_WITH_IDS: Final = frozenset({1, 2, 5})  # fields of a control message: IHAVE, IWANT, IDONTWANT
_LENGTH_DELIMITED: Final = 2  # a kind of fields
_TOO_MANY: Final = "a pubsub RPC holds too many elements"


def _check_counts(data: memoryview, limits: RpcLimits) -> None:
    messages = controls = 0
    for is_message in _elements(data, len(_WITH_IDS) * limits.ids):
        messages += is_message
        controls += not is_message
        if messages > limits.messages or controls > limits.controls:
            raise ProtocolError(_TOO_MANY)


def _elements(data: memoryview, max_ids: int) -> Iterator[bool]:
    """Yield for each element that costs memory of its own whether it is a message.

    Ids cost less, and there may be more of them; they are counted here.
    """
    for field, value in walk_fields(data):
        yield field == _PUBLISH
        if field == _CONTROL:
            for kind, body in walk_fields(value):
                yield False
                if kind in _WITH_IDS:
                    max_ids -= _count_ids(body, max_ids)
                if kind == _PRUNE:
                    for _ in walk_fields(body):
                        yield False


def _count_ids(body: memoryview, most: int) -> int:
    """Count the ids in a control message, and its few other fields.

    There can be thousands of honest ones, so those in the usual form, with a tag and a length of
    a byte each, are passed over quickly.
    """
    count = offset = 0
    data = bytes(body)
    end = len(data) - 1
    while offset < end and data[offset] & 0x87 == _LENGTH_DELIMITED and data[offset + 1] < 0x80:
        offset += 2 + data[offset + 1]
        count += 1
        if count > most:
            raise ProtocolError(_TOO_MANY)
    for _ in walk_fields(body[offset:]):
        count += 1
        if count > most:
            raise ProtocolError(_TOO_MANY)
    return count
