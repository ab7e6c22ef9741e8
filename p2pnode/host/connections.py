"""Connections that are up, and which one of a peer's to use.

Two nodes that dial each other at the same time get two connections. Both sides prefer the same
one for new streams, by a rule that needs no message; the other one serves the streams it already
carries and is closed when it has been idle for a while. So neither side ever sees a stream break.
"""

import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    LimitedConnectionError,
    NegotiationError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    first_leaf,
)
from p2pnode.events import Event, EventBus
from p2pnode.host.budgets import ConnectionAccount, StreamAccount
from p2pnode.host.budgets.rates import Rates
from p2pnode.host.interfaces import Connection, Direction, PeerMisbehaved, StreamHandler
from p2pnode.host.manager import Candidate
from p2pnode.host.ranking import is_relayed
from p2pnode.host.streams import NetworkStream, accept_protocol
from p2pnode.host.upgrader import Upgraded
from p2pnode.mux.multistream import Dialer, select_outbound
from p2pnode.transport.session import MuxedStream
from p2pnode.wire.error_codes import StreamCode, stream_code
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundStreamFailed(Event):
    """A stream that a peer opened did not come to its proper end; the connection goes on.

    Attributes:
        peer_id: who opened it.
        address: where the peer is.
        protocol: what was agreed on, or None if it did not come to that.
        kind: the class of the error.
        reason: its text.
    """

    peer_id: PeerId
    address: Multiaddr
    protocol: str | None
    kind: type[Exception]
    reason: str


class Way(StrEnum):
    """Which way a connection goes."""

    DIRECT = "direct"
    PUNCHED = "punched"  # both sides dialled it, through their NATs
    RELAYED = "relayed"
    LIMITED = "relayed, limited"  # by a relay that carries only so many bytes, or for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """What `node status` and `node peers` tell of a connection.

    Attributes:
        peer_id: who is at the other end.
        direction: who dialled.
        local_address: this end.
        remote_address: the other end.
        way: which way it goes.
        note: why it is as it is, in words, or nothing.
        age: seconds since the handshakes.
        streams: open now, both directions.
        bytes_sent: stream data, since the beginning.
        bytes_received: stream data, since the beginning.
        rtt: the shortest recent round trip in seconds, or None before one is measured.
    """

    peer_id: PeerId
    direction: Direction
    local_address: Multiaddr
    remote_address: Multiaddr
    way: Way
    note: str
    age: float
    streams: int
    bytes_sent: int
    bytes_received: int
    rtt: float | None


class NetworkConnection(Connection):
    """An upgraded connection, whose streams this class opens and serves."""

    def __init__(
        self,
        upgraded: Upgraded,
        *,
        settings: NetworkSettings,
        account: ConnectionAccount,
        events: EventBus,
    ) -> None:
        self.peer_id = upgraded.peer_id
        self.public_key = upgraded.public_key
        self.direction = account.direction
        self.is_punched = upgraded.is_punched
        if upgraded.is_punched:  # the roles were agreed on, so that both sides see them alike
            self.direction = "outbound" if upgraded.is_client else "inbound"
        self.note = ""  # why it is as it is, for status pages; set by who knows
        self.local_address = upgraded.raw.local_address
        self.remote_address = upgraded.raw.remote_address
        self.is_relayed = is_relayed(self.remote_address)
        self.is_limited = upgraded.raw.is_limited
        self.opened_at = trio.current_time()
        self.last_used = self.opened_at  # a stream was open then
        self.ended = trio.Event()  # its place in the budgets is free again
        self.leaving: str | None = None  # why this side closes it, once it does
        self.account = account
        self._muxer = upgraded.muxer
        self._muxer.charge_to(account)
        self._settings = settings
        self._events = events
        self._misbehaviours = Rates(
            settings.misbehaviours_per_second, settings.misbehaviour_burst, max_kept=1
        )

    @property
    def is_closed(self) -> bool:
        """See `Connection`."""
        return self._muxer.is_closed

    @property
    def streams(self) -> int:
        """How many streams are open, in both directions."""
        return self._muxer.streams

    async def open_stream(
        self, protocols: Sequence[str], *, allow_limited: bool = False
    ) -> NetworkStream:
        """See `Connection`."""
        if self.is_limited and not allow_limited:
            raise LimitedConnectionError(
                f"{self.peer_id} is connected only through a relay that limits what it carries; "
                "it needs an address that can be dialled, or a relay without limits"
            )
        unsettled = Dialer(protocols)
        muxed = await self._muxer.open_stream()
        self.last_used = trio.current_time()
        if len(protocols) == 1:
            self._charge(muxed, protocols[0])
            return NetworkStream(
                muxed,
                self,
                protocols[0],
                unsettled=unsettled,
                optimistic_bytes=self._muxer.early_bytes,
            )
        protocol = None
        try:
            with trio.move_on_after(self._settings.negotiation_timeout):
                protocol = await select_outbound(muxed, protocols)
        finally:
            if protocol is None:
                muxed.reset()
        if protocol is None:
            raise NegotiationError(
                f"{self.peer_id} agreed on none of {', '.join(protocols)} within "
                f"{self._settings.negotiation_timeout:g} s"
            )
        self._charge(muxed, protocol)
        return NetworkStream(muxed, self, protocol)

    def _charge(self, muxed: MuxedStream, protocol: str) -> None:
        """Charge a stream we opened to its protocol, or reset it."""
        try:
            _account_of(muxed).speak(protocol, trio.current_time())
        except ResourceLimitError as error:
            muxed.reset(stream_code(error))
            raise

    async def aclose(self) -> None:
        """See `Connection`."""
        self.leaving = self.leaving or "this side closed the connection"
        await self._muxer.aclose()

    async def carry(self) -> None:
        """Move the streams' bytes until the connection ends, however it does."""
        try:
            await self._muxer.run()
        except ProtocolError as error:
            self._report(str(error))
        except ConnectionClosedError:
            pass  # `serve` tells the reason

    async def serve(self, nursery: trio.Nursery, handlers: Mapping[str, StreamHandler]) -> str:
        """Serve each inbound stream in a task of its own in `nursery`.

        Returns:
            Why the connection ended.
        """
        try:
            await self._muxer.serve(lambda muxed: nursery.start_soon(self._serve, muxed, handlers))
        except ConnectionClosedError as error:
            return str(error)

    async def _serve(self, muxed: MuxedStream, handlers: Mapping[str, StreamHandler]) -> None:
        """Negotiate and handle one inbound stream: the supervisor boundary of its handler."""
        account = _account_of(muxed)
        try:
            with account.serving():
                protocol = await self._negotiate(muxed, handlers)
                if protocol is None:
                    return
                handler = handlers.get(protocol)
                if handler is None:  # it was removed while we agreed on it
                    muxed.reset(StreamCode.NEGOTIATION_FAILED)
                    return
                account.speak(protocol, trio.current_time())
                await self._handle(NetworkStream(muxed, self, protocol), handler)
        except ResourceLimitError as error:  # of `speak`, where it was counted and told of
            muxed.reset(stream_code(error))
        finally:
            self.last_used = trio.current_time()

    async def _negotiate(
        self, muxed: MuxedStream, handlers: Mapping[str, StreamHandler]
    ) -> str | None:
        try:
            return await accept_protocol(
                muxed, handlers.__contains__, timeout=self._settings.negotiation_timeout
            )
        except NegotiationError as error:
            # Often data that was sent in the hope of a protocol we do not speak. Closing, unlike
            # a reset, lets our refusal arrive.
            await muxed.aclose()
            self._note_failure(None, error)
        except (P2PNodeError, trio.ClosedResourceError) as error:
            muxed.reset()
            self._note_failure(None, error)
        return None

    async def _handle(self, stream: NetworkStream, handler: StreamHandler) -> None:
        """Run the handler: an error of the network ends its stream, a bug ends the node."""
        try:
            try:
                await handler(stream)
                await stream.aclose()
            except* ProtocolError as group:
                stream.reset(StreamCode.PROTOCOL_VIOLATION)
                self._report_stream(f"{stream.protocol}: {first_leaf(group)}")
            except* ResourceLimitError as group:
                refusal = first_leaf(group)
                stream.reset(stream_code(refusal))
                self._note_failure(stream.protocol, refusal)
            except* (P2PNodeError, trio.ClosedResourceError) as group:
                stream.reset()
                self._note_failure(stream.protocol, first_leaf(group))
        except BaseException:  # cancelled, or a bug: the peer must not wait for its end
            stream.reset()
            raise

    def _note_failure(self, protocol: str | None, error: Exception) -> None:
        if not self.is_closed:
            self._events.emit(
                InboundStreamFailed(
                    peer_id=self.peer_id,
                    address=self.remote_address,
                    protocol=protocol,
                    kind=type(error),
                    reason=str(error),
                )
            )

    def _report_stream(self, reason: str) -> None:
        """Tell of a rule broken on a stream; who breaks one after the other loses everything."""
        self._report(reason)
        now = trio.current_time()
        if self._misbehaviours.has(None, now):
            self._misbehaviours.take(None, now)
        else:
            self._muxer.abort(ProtocolError(f"the peer breaks one rule after the other: {reason}"))

    def _report(self, reason: str) -> None:
        self._events.emit(
            PeerMisbehaved(peer_id=self.peer_id, address=self.remote_address, reason=reason)
        )

    def candidate(self) -> Candidate["NetworkConnection"]:
        """Describe it to whoever decides which connections must go."""
        return Candidate(
            connection=self,
            peer_id=self.peer_id,
            direction=self.account.direction,
            crowd=self.account.crowd,
            last_used=self.last_used,
            opened_at=self.opened_at,
            streams=self.streams,
            calls=self.account.calls,
        )

    def _way(self) -> Way:
        if self.is_relayed:
            return Way.LIMITED if self.is_limited else Way.RELAYED
        return Way.PUNCHED if self.is_punched else Way.DIRECT

    def info(self) -> ConnectionInfo:
        """Describe the connection as it is now."""
        return ConnectionInfo(
            peer_id=self.peer_id,
            direction=self.direction,
            local_address=self.local_address,
            remote_address=self.remote_address,
            way=self._way(),
            note=self.note,
            age=trio.current_time() - self.opened_at,
            streams=self.streams,
            bytes_sent=self._muxer.bytes_sent,
            bytes_received=self._muxer.bytes_received,
            rtt=self._muxer.rtt,
        )


def _directness(connection: NetworkConnection) -> tuple[bool, bool]:
    return not connection.is_relayed, not connection.is_limited


def _account_of(muxed: MuxedStream) -> StreamAccount:
    account = muxed.account
    assert isinstance(account, StreamAccount)  # as the connection's own account makes them
    return account


class ConnectionTable:
    """The open connections by peer. Pure: the clock's time is an argument."""

    def __init__(self, own_id: PeerId, settings: NetworkSettings) -> None:
        self._own_id = own_id
        self._settings = settings
        self._by_peer: dict[PeerId, list[NetworkConnection]] = {}

    def __iter__(self) -> Iterator[NetworkConnection]:
        for connections in tuple(self._by_peer.values()):
            yield from connections

    def __contains__(self, peer_id: PeerId) -> bool:
        return peer_id in self._by_peer

    def __len__(self) -> int:
        return sum(map(len, self._by_peer.values()))

    def add(self, connection: NetworkConnection) -> None:
        """Take in a connection."""
        self._by_peer.setdefault(connection.peer_id, []).append(connection)

    def remove(self, connection: NetworkConnection) -> None:
        """Drop a connection that has ended."""
        rest = [each for each in self._by_peer[connection.peer_id] if each is not connection]
        if rest:
            self._by_peer[connection.peer_id] = rest
        else:
            del self._by_peer[connection.peer_id]

    def best(self, peer_id: PeerId, *, direct: bool = False) -> NetworkConnection | None:
        """Return the connection to use for new streams with a peer.

        One that this side closes still says goodbye: what began on it now would soon break.

        Args:
            peer_id: whose.
            direct: whether relayed ones do not count.
        """
        usable = [
            each
            for each in self._by_peer.get(peer_id, ())
            if not each.is_closed and each.leaving is None and not (direct and each.is_relayed)
        ]
        return functools.reduce(self._better, usable) if usable else None

    def to_close(self, now: float, kept: Container[PeerId] = ()) -> list[NetworkConnection]:
        """Return the connections that have been idle for too long; call it every few seconds.

        Args:
            now: the clock's time.
            kept: the peers with which one connection stays, however idle.
        """
        found = []
        for connection in self:
            if connection.leaving is not None:
                continue
            if connection.streams:
                connection.last_used = now
                continue
            is_best = self.best(connection.peer_id) is connection
            if is_best and connection.peer_id in kept:
                continue
            patience = self._settings.idle_timeout if is_best else self._settings.duplicate_linger
            if now - connection.last_used >= patience:
                found.append(connection)
        return found

    def candidates(self) -> list[Candidate[NetworkConnection]]:
        """Describe the connections that stay, to whoever decides which of them must go."""
        return [each.candidate() for each in self if each.leaving is None]

    def _better(self, one: NetworkConnection, other: NetworkConnection) -> NetworkConnection:
        """Choose as the peer's side does.

        A direct connection is better than a relayed one, and a limited one is the last choice.
        Who dialled again must have lost the earlier connection, so of two from one dialer the
        newer one counts, and likewise when too much time lies between two for simultaneous dials.
        Otherwise the connection counts that the peer with the smaller id dialled.
        """
        if _directness(one) != _directness(other):
            return max(one, other, key=_directness)
        older, newer = sorted((one, other), key=lambda each: each.opened_at)
        simultaneous = newer.opened_at - older.opened_at < self._settings.dial_timeout
        if one.direction == other.direction or not simultaneous:
            return newer
        wanted = "outbound" if self._own_id < one.peer_id else "inbound"
        return one if one.direction == wanted else other
