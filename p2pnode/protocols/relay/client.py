"""Being reached through relays: reservations, and the circuits that come in by them.

Relays are those that are configured, and connected peers that list the hop protocol. What others
must know, the addresses through the relays, the host tells them by identify.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import RelaySettings
from p2pnode.errors import (
    DialError,
    P2PNodeError,
    ProtocolError,
    RemoteError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.events import Event
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    PeerIdentified,
    PeerMisbehaved,
    ReachabilityChanged,
    Stream,
    finishing,
)
from p2pnode.host.interfaces import Reachability
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.relay.addresses import CIRCUIT, ways_through
from p2pnode.protocols.relay.client_core import Relay, Reservations, check_reservation
from p2pnode.protocols.relay.exchanges import CircuitStream, ask_hop, receive, send_stop
from p2pnode.protocols.relay.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopMessage,
    HopType,
    Status,
    StopMessage,
    StopType,
    decode_stop,
)
from p2pnode.protocols.relay.transport import (
    RelayListener,
    RelayTransport,
    check_status,
    raw_connection,
    relay_address,
)
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.peer_id import PeerId

TAG: Final = "relay:reservation-held"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayReserved(Event):
    """A relay takes connections for this node.

    Attributes:
        relay: who it is.
        addresses: where others reach this node through it.
        lifetime: seconds until that ends, unless it is renewed.
        limited: whether its circuits are too small for the main job.
    """

    level = "info"

    relay: PeerId
    addresses: tuple[Multiaddr, ...]
    lifetime: float
    limited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLost(Event):
    """A relay takes no more connections for this node."""

    level = "info"

    relay: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFailed(Event):
    """A relay was asked for a reservation, and there is none; another one will be asked."""

    relay: PeerId
    kind: type[Exception]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReservation:
    """A reservation, as `node status` tells of it.

    Attributes:
        relay: who gave it.
        addresses: where others reach this node through it.
        seconds_left: until it ends, unless it is renewed.
        limited: whether what it carries is too little for the main job.
    """

    relay: PeerId
    addresses: tuple[Multiaddr, ...]
    seconds_left: float
    limited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayClientInfo:
    """What `node status` tells of being reached through relays.

    Attributes:
        wanted: how many reservations this node wants now.
        known_relays: how many relays it knows.
        held: its reservations.
    """

    wanted: int
    known_relays: int
    held: tuple[HeldReservation, ...]


class RelayClient:
    """Keeps reservations, and takes circuits, while `run` runs.

    Args:
        host: this node's; it must have `transport`.
        transport: where inbound circuits go.
        settings: which relays, how many, and the times.
        rng: chance.

    Raises:
        InvalidAddressError: a configured relay's address is malformed or lacks its `/p2p` part.
    """

    def __init__(
        self,
        host: NetworkHost,
        transport: RelayTransport,
        settings: RelaySettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings or RelaySettings()
        self.core = Reservations(self.settings, rng or random.Random())
        self._host = host
        self._transport = transport
        self._wanted = 0
        self._changed = trio.Event()
        for text in self.settings.relays:
            peer, address = peer_address(text)
            self.core.receive_configured(peer, [address])

    async def run(
        self,
        reachability: Callable[[], Reachability] = lambda: Reachability.UNKNOWN,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep reservations until cancelled.

        Args:
            reachability: what is known of it at the start; later, events tell.
            task_status: told when others can be asked.
        """
        await self._host.listen(CIRCUIT)
        listener = self._transport.listener
        assert listener is not None  # the host listens by the transport
        listener.reached_at = self._reached_at
        undo = [
            self._host.events.on(PeerIdentified, self._receive_identified),
            self._host.events.on(ConnectionEnded, self._receive_ended),
            self._host.events.on(ReachabilityChanged, self._receive_reachability),
        ]
        self._host.set_handler(STOP_PROTOCOL, self._receive_circuit)
        try:
            for connection in self._host.connections():
                self._consider(connection.peer_id, self._host.protocols_of(connection.peer_id))
            self._switch(reachability())
            async with trio.open_nursery() as nursery:
                task_status.started()
                await self._keep_up(nursery)
        finally:
            for each in undo:
                each()
            self._host.remove_handler(STOP_PROTOCOL)
            self._want(0)
            with trio.CancelScope(shield=True):
                await listener.aclose()

    def info(self) -> RelayClientInfo:
        """Describe what is held now."""
        now = trio.current_time()
        return RelayClientInfo(
            wanted=self._wanted,
            known_relays=self.core.known,
            held=tuple(
                HeldReservation(
                    relay=each.peer_id,
                    addresses=each.reached_at,
                    seconds_left=each.expires_at - now,
                    limited=each.is_limited,
                )
                for each in self.core.held()
            ),
        )

    # --- inputs ---------------------------------------------------------------------------------

    def _receive_identified(self, event: PeerIdentified) -> None:
        self._consider(event.peer_id, event.protocols)

    def _consider(self, peer: PeerId, protocols: frozenset[str]) -> None:
        connection = self._host.connection_to(peer)
        if connection is None or connection.is_relayed:
            return
        if HOP_PROTOCOL in protocols:
            self.core.receive_candidate(peer)
        else:
            self.core.receive_no_candidate(peer)
        self._changed.set()

    def _receive_ended(self, event: ConnectionEnded) -> None:
        peer = event.connection.peer_id
        connection = self._host.connection_to(peer)
        is_gone = connection is None or connection.is_relayed
        if is_gone and self.core.receive_lost(peer, trio.current_time()):
            self._note_lost(peer, f"the connection to it ended: {event.reason}")

    def _receive_reachability(self, event: ReachabilityChanged) -> None:
        self._switch(event.reachability)

    def _switch(self, reachability: Reachability) -> None:
        """Want reservations, or none.

        Who named relays wants to be reached by them unless it is known that they are not needed;
        others wait until it is known that they are.
        """
        mode = self.settings.client
        is_needed = reachability is Reachability.PRIVATE or (
            reachability is Reachability.UNKNOWN and bool(self.settings.relays)
        )
        wanted = mode == "always" or (mode == "auto" and is_needed)
        self._want(self.settings.reservations if wanted else 0)

    def _want(self, count: int) -> None:
        self._wanted = count
        for peer in self.core.want(count):
            self._note_lost(peer, "this node needs it no longer")
        self._changed.set()

    # --- reservations ---------------------------------------------------------------------------

    async def _keep_up(self, nursery: trio.Nursery) -> None:
        while True:
            now = trio.current_time()
            for peer in self.core.expire(now):
                self._note_lost(peer, "it was not renewed in time")
            for relay in self.core.begin(now):
                nursery.start_soon(self._reserve, relay)
            self._changed = trio.Event()
            with trio.move_on_at(self.core.next_due()):
                await self._changed.wait()

    async def _reserve(self, relay: Relay) -> None:
        """Ask one relay for a reservation: the boundary at which its failures end."""
        peer = relay.peer_id
        try:
            with trio.move_on_after(self.settings.reserve_timeout) as scope:
                await self._ask(relay)
            if scope.cancelled_caught:
                raise DialError(f"no answer within {self.settings.reserve_timeout:g} s")
        except P2PNodeError as error:
            self.core.receive_failure(peer, trio.current_time())
            kind = type(error)
            self._host.events.emit(RelayFailed(relay=peer, kind=kind, reason=str(error)))
            if isinstance(error, ProtocolError):
                self._host.events.emit(
                    PeerMisbehaved(peer_id=peer, address=None, reason=f"{HOP_PROTOCOL}: {error}")
                )
        self._changed.set()

    async def _ask(self, relay: Relay) -> None:
        peer = relay.peer_id
        connection = await self._host.connect(peer, relay.addresses, direct=True)
        stream = await connection.open_stream([HOP_PROTOCOL])
        async with finishing(stream):
            answer = await ask_hop(stream, HopMessage(type=HopType.RESERVE))
        check_status(answer, peer, "take connections for this node")
        lifetime = check_reservation(
            answer, relay=peer, own_id=self._host.peer_id, now=wall_time(), settings=self.settings
        )
        if connection.is_closed:
            raise RemoteError("the relay hung up behind its answer, which ends what it promised")
        is_new = not relay.is_held
        ways = self._ways(connection, answer)
        now, limited = trio.current_time(), bool(answer.limit)
        if not self.core.receive_granted(peer, lifetime, ways, now, limited=limited):
            return
        self._host.protect(peer, TAG)
        self._host.update_addresses()
        if is_new:
            self._host.events.emit(
                RelayReserved(
                    relay=peer,
                    addresses=relay.reached_at,
                    lifetime=lifetime,
                    limited=limited,
                )
            )

    def _ways(self, connection: Connection, answer: HopMessage) -> list[Multiaddr]:
        peer = connection.peer_id
        told = answer.reservation.addresses if answer.reservation is not None else ()
        dialled = [connection.remote_address] if connection.direction == "outbound" else []
        most = self.settings.max_addresses_per_relay
        known = self._host.addresses_of(peer)
        return ways_through(peer, dialled, told, limit=most) or ways_through(
            peer, known, (), limit=most
        )

    def _note_lost(self, peer: PeerId, reason: str) -> None:
        self._host.unprotect(peer, TAG)
        self._host.update_addresses()
        self._host.events.emit(RelayLost(relay=peer, reason=reason))
        self._changed.set()

    def _reached_at(self) -> Iterator[Multiaddr]:
        for relay in self.core.held():
            yield from relay.reached_at

    # --- circuits -------------------------------------------------------------------------------

    async def _receive_circuit(self, stream: Stream) -> None:
        """Take a circuit that a relay brings, and keep its stream until the circuit has ended."""
        raw = None
        with trio.move_on_after(self.settings.connect_timeout) as scope:
            raw = await self._take_circuit(stream)
        if scope.cancelled_caught:
            raise StreamResetError("the relay did not bring its circuit in time")
        if raw is not None:
            await raw.closed.wait()

    async def _take_circuit(self, stream: Stream) -> CircuitStream | None:
        request = decode_stop(await receive(stream))
        if request.type is not StopType.CONNECT or request.peer is None:
            raise ProtocolError("a relay brought an answer instead of a circuit")
        listener = self._transport.listener
        refusal = self._why_not(stream, request.peer, listener)
        await send_stop(stream, StopMessage(type=StopType.STATUS, status=refusal or Status.OK))
        if refusal is not None or listener is None:
            return None
        circuit = CircuitStream(stream)
        raw = raw_connection(
            circuit, relay_address(stream.connection), limit=request.limit, peer_id=request.peer
        )
        if not listener.take(raw):  # others have come while the answer went out
            raise ResourceLimitError("too many circuits wait for their handshakes")
        return circuit

    def _why_not(
        self, stream: Stream, source: PeerId, listener: RelayListener | None
    ) -> Status | None:
        relay = self.core.get(stream.peer_id)
        if relay is None or not (relay.is_held or relay.is_asked):
            return Status.NO_RESERVATION
        if stream.connection.is_relayed or source in {self._host.peer_id, stream.peer_id}:
            return Status.PERMISSION_DENIED
        if listener is None or not listener.has_room:
            return Status.RESOURCE_LIMIT_EXCEEDED
        return None
