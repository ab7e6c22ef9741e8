"""What protocols see of the network: hosts, connections and streams.

Protocol services are written against these three classes alone. `p2pnode.host.node` implements
them over real transports, Noise and Yamux; `p2pnode.testing.light` implements them directly over
memory, so that the same services run by the thousand in a simulation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import trio
from multiaddr import Multiaddr

from p2pnode.errors import ProtocolError
from p2pnode.events import Event, EventBus
from p2pnode.wire import varint
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId

Direction = Literal["inbound", "outbound"]

PROGRESS_BYTES: Final = 256 * 1024  # what a sender must get through within a reader's patience


class Stream(trio.abc.HalfCloseableStream):
    """One bidirectional stream of a connection.

    `send_all` takes any bytes-like object and returns when its bytes are accepted by the muxer's
    flow control. A cancelled `send_all` resets the stream, since part of it may be on its way.
    `aclose` ends our side gracefully: what was sent is still delivered, what still arrives is
    discarded. All operations raise `StreamResetError` once either side has reset the stream, and
    `ConnectionClosedError` once the connection is gone.
    """

    __slots__ = ()

    protocol: str
    connection: "Connection"

    @property
    def peer_id(self) -> PeerId:
        """The peer at the other end."""
        return self.connection.peer_id

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether neither the peer nor we have ended or reset it, as far as is known here.

        For who used a stream, and wants to use it again: a peer's end may be on its way.
        """

    @property
    @abstractmethod
    def send_window(self) -> int:
        """How many bytes can be sent now that need not wait for the peer to read."""

    @abstractmethod
    def reset(self, code: int = 0) -> None:
        """Abort both directions at once; what has not been read or sent is lost. Never blocks."""

    async def send_last(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` and end our direction, in one packet where it fits one.

        For protocols whose readers do not mind that the end comes before their handler is called.
        """
        await self.send_all(data)
        await self.send_eof()

    @abstractmethod
    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """Cancel `scope` when the peer resets the stream or its connection ends, or if it has.

        So whoever works for the peer stops when that is for nothing, without a task that watches.
        There is one scope at a time; None lets go of it.
        """

    async def receive_pieces(self, most: int) -> list[bytes]:
        """Receive all that has come, up to `most` bytes, as it lies; an empty list at the end.

        For who passes bytes on: many at once cost less, and nothing is copied to join them.
        """
        data = bytes(await self.receive_some(most))
        return [data] if data else []

    async def send_pieces(self, pieces: Sequence[bytes]) -> None:
        """Send `pieces` as if they were joined; no other task may send meanwhile."""
        await self.send_all(b"".join(pieces))

    async def receive_exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes.

        Raises:
            ProtocolError: the stream ended before.
        """
        buffer = bytearray(size)
        await self.receive_into(memoryview(buffer))
        return bytes(buffer)

    async def receive_into(self, buffer: memoryview, *, patience: float = math.inf) -> None:
        """Fill `buffer` with the stream's next bytes.

        The whole buffer at once costs less than parts of it: what has a place is decrypted there.

        Args:
            buffer: is filled.
            patience: seconds within which `PROGRESS_BYTES`, or the rest, must come each time.

        Raises:
            ProtocolError: the stream ended before.
            trio.TooSlowError: fewer bytes came within `patience`.
        """
        filled = 0
        while filled < len(buffer):
            until = trio.current_time() + patience
            size = await self._fill(buffer[filled:], until)
            filled += size
            if filled < len(buffer) and size < PROGRESS_BYTES:
                if trio.current_time() >= until:
                    raise trio.TooSlowError
                raise ProtocolError(f"the stream ended after {filled} of {len(buffer)} bytes")

    async def _fill(self, buffer: memoryview, until: float) -> int:
        """Fill `buffer`; returns how many bytes there were before the stream's end, or `until`."""
        filled = 0
        with trio.move_on_at(until):
            while filled < len(buffer):
                data = await self.receive_some(len(buffer) - filled)
                if not data:
                    break
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        return filled

    async def receive_prefixed(self, limit: int) -> bytes | None:
        """Read one message behind its uvarint length; None at the clean end of the stream.

        Raises:
            ProtocolError: the message is longer than `limit`, or the stream ended inside it.
        """
        head = bytearray()
        while (size := varint.decode(head)) is None:
            byte = await self.receive_some(1)
            if not byte and not head:
                return None
            if not byte:
                raise ProtocolError("the stream ended inside a length prefix")
            head += byte
        if size[0] > limit:
            raise ProtocolError(f"a message of {size[0]} bytes exceeds the limit of {limit}")
        return await self.receive_exactly(size[0])


@asynccontextmanager
async def finishing(stream: Stream) -> AsyncIterator[None]:
    """Close a stream behind what was sent in the block; reset it if the block fails, however."""
    try:
        yield
    except BaseException:
        stream.reset()
        raise
    await stream.aclose()


class Connection(ABC):
    """One authenticated connection to a peer, shared by all streams to it."""

    __slots__ = ()

    peer_id: PeerId
    public_key: PublicKey
    direction: Direction
    local_address: Multiaddr
    remote_address: Multiaddr
    opened_at: float  # trio's clock
    is_relayed: bool  # it leads through a relay
    is_limited: bool  # through one that carries only so many bytes, or for so long

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the connection has ended."""

    @abstractmethod
    async def open_stream(self, protocols: Sequence[str], *, allow_limited: bool = False) -> Stream:
        """Open a stream and propose `protocols`, the most wanted first.

        With a single protocol the negotiation is optimistic: it travels with the first data
        written, and a refusal appears as `ProtocolNotSupportedError` when the answer is read.

        Args:
            protocols: what to propose.
            allow_limited: whether the little that a limited connection carries may be used, as
                few protocols should: those that find out who is there, and a better way.

        Raises:
            LimitedConnectionError: the connection is limited, and `allow_limited` is not given.
            ProtocolNotSupportedError: the peer takes none of several protocols.
            ResourceLimitError: a budget of this side refuses another stream.
            ConnectionClosedError: the connection has ended.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connection and all its streams."""


StreamHandler = Callable[[Stream], Awaitable[None]]


class Host(ABC):
    """A node's network side."""

    peer_id: PeerId
    events: EventBus

    @property
    @abstractmethod
    def addresses(self) -> list[Multiaddr]:
        """The addresses others can dial, without their `/p2p` part."""

    @abstractmethod
    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`: run `handler` for each inbound stream, one task each.

        The host closes the stream when the handler returns, and resets it when the handler raises
        a `P2PNodeError`, which ends that stream alone.
        """

    @abstractmethod
    def remove_handler(self, protocol: str) -> None:
        """Stop serving `protocol`; streams under way go on."""

    @abstractmethod
    def add_addresses(self, peer_id: PeerId, addresses: Sequence[Multiaddr], ttl: float) -> None:
        """Remember `addresses` of a peer for `ttl` seconds."""

    @abstractmethod
    def addresses_of(self, peer_id: PeerId, *, hearsay: bool = True) -> list[Multiaddr]:
        """The addresses known of a peer, without their `/p2p` part.

        Args:
            peer_id: whose.
            hearsay: also those that others tell of, which nobody has tried and it has not
                confirmed; they are for dialling, not for telling on.
        """

    @abstractmethod
    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """The protocols the peer last said it serves, by identify."""

    @abstractmethod
    def connection_to(self, peer_id: PeerId) -> Connection | None:
        """The open connection to a peer, if there is one; a direct one rather than a relayed."""

    @abstractmethod
    def connections(self) -> list[Connection]:
        """All open connections."""

    @abstractmethod
    def protect(self, peer_id: PeerId, tag: str) -> None:
        """Never close the peer's connection to make room for others, or because it is idle.

        Args:
            peer_id: who is to be kept.
            tag: why, so that several parts of a node may each protect and unprotect a peer.
        """

    @abstractmethod
    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """Take back what `protect` said; returns whether another tag still protects the peer."""

    @abstractmethod
    def is_protected(self, peer_id: PeerId) -> bool:
        """Whether any tag protects the peer."""

    @abstractmethod
    async def connect(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr] = (),
        *,
        timeout: float | None = None,
        insist: bool = False,
        direct: bool = False,
    ) -> Connection:
        """Return the connection to a peer, dialling it (once for all callers) when needed.

        Of several, direct ones are preferred to relayed ones.

        Args:
            peer_id: who must answer; anyone else is a `WrongPeerError`.
            addresses: tried in addition to those already known.
            timeout: seconds, or None for the configured dial timeout.
            insist: whether to try also addresses that failed lately, as for a person who asks.
            direct: whether relays are no way: a relayed connection does not count, and relayed
                addresses are not dialled.

        Raises:
            DialError: no address is known, or none could be reached; it lists each attempt.
            ResourceLimitError: a budget of this side refuses another connection.
        """

    @abstractmethod
    def can_dial(self, address: Multiaddr) -> bool:
        """Tell whether a transport of this node understands `address`."""

    @abstractmethod
    def dial_anew(
        self, peer_id: PeerId, address: Multiaddr, *, timeout: float
    ) -> AbstractAsyncContextManager[Connection]:
        """Hold a connection of its own to a peer at one address, as a stranger would open it.

        It comes from a port that this node does not listen on, whatever other connections there
        are; it serves nothing, is not among `connections`, and is closed with the block.

        Args:
            peer_id: who must answer.
            address: where, with an IP address in it.
            timeout: seconds until the handshakes must be over.

        Raises:
            DialError: nobody answers there in time, or no transport understands the address.
            HandshakeError: somebody else does.
            ConnectionClosedError: the peer hung up.
            ResourceLimitError: a budget of this side refuses another connection.
        """

    @property
    @abstractmethod
    def candidate_addresses(self) -> list[Multiaddr]:
        """Where others may be able to dial this node directly, told to them or not."""

    @abstractmethod
    def judge_addresses(
        self, verified: Collection[Multiaddr], refuted: Collection[Multiaddr]
    ) -> None:
        """Take in at which addresses others were found to reach this node, and at which not.

        A host tells no others of what is refuted, nor of what is not verified where, in the same
        family, something is.
        """

    async def open_stream(
        self, peer_id: PeerId, protocols: Sequence[str], addresses: Sequence[Multiaddr] = ()
    ) -> Stream:
        """Connect to a peer if needed, and open a stream on the connection.

        A peer that is connected over a limited connection only is dialled directly.
        """
        connection = await self.connect(peer_id, addresses)
        if connection.is_limited:
            connection = await self.connect(peer_id, addresses, direct=True)
        return await connection.open_stream(protocols)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(Event):
    """A connection passed its handshakes."""

    connection: Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEnded(Event):
    """A connection ended."""

    connection: Connection
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentified(Event):
    """Identify, or an identify push, told about a peer.

    Attributes:
        peer_id: whom it is about.
        protocols: what it serves.
        addresses: where it can be dialled.
        agent: its software.
        observed_address: where it sees this node.
        record: the envelope of the signed record that `addresses` come from, or None.
        seq: the record's sequence number.
    """

    peer_id: PeerId
    protocols: frozenset[str]
    addresses: tuple[Multiaddr, ...]
    agent: str
    observed_address: Multiaddr | None
    record: bytes | None = None
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPeerChanged(Event):
    """This node's addresses or the protocols it serves have changed."""


class Reachability(Enum):
    """Whether others can dial this node."""

    UNKNOWN = "unknown"
    PUBLIC = "public"
    PRIVATE = "private"  # behind a NAT or a firewall


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachabilityChanged(Event):
    """It was found out whether others can dial this node.

    Attributes:
        reachability: of the node: public if one of the families is.
        ip4: over IPv4.
        ip6: over IPv6.
    """

    level = "info"

    reachability: Reachability
    ip4: Reachability = Reachability.UNKNOWN
    ip6: Reachability = Reachability.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMisbehaved(Event):
    """A peer broke a rule: the one canonical line about misbehaviour."""

    level = "info"

    peer_id: PeerId | None
    address: Multiaddr | None
    reason: str
