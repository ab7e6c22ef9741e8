"""Relaying for others: the hop protocol over a host.

```
source ── CONNECT ──> relay ── CONNECT ──> target      the target holds a reservation
       <── STATUS ──        <── STATUS ──
       <════════════ bytes, both ways ════════════>    counted, cut off at the limits
```

Source: libp2p/specs, relay/circuit-v2. Whatever goes wrong is answered with a status where the
asker can still be told; nothing is relayed that comes through a relay itself.
"""

import math
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import LimitSettings, RelaySettings
from p2pnode.errors import P2PNodeError, ProtocolError, StreamResetError
from p2pnode.events import Event
from p2pnode.host import ConnectionEnded, PeerMisbehaved, ReachabilityChanged, Stream
from p2pnode.host.budgets.rates import SubnetMap
from p2pnode.host.interfaces import Reachability
from p2pnode.host.node import NetworkHost
from p2pnode.host.pacing import Pace
from p2pnode.host.ranking import is_relayed
from p2pnode.protocols.relay.circuits import Carriage
from p2pnode.protocols.relay.core import Acl, Circuit, RelayCore
from p2pnode.protocols.relay.exchanges import ask_stop, receive, send_hop
from p2pnode.protocols.relay.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopMessage,
    HopType,
    Reservation,
    Status,
    StopMessage,
    StopType,
    decode_hop,
)
from p2pnode.protocols.relay.vouchers import Voucher
from p2pnode.wire.addresses import with_p2p
from p2pnode.wire.peer_id import PeerId

TAG: Final = "relay:reservation-given"
MAX_TOLD_ADDRESSES: Final = 16  # of this node; an answer has 4 KiB at most


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationGiven(Event):
    """This node takes connections for a peer from now on, or goes on doing so."""

    peer_id: PeerId
    lifetime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationEnded(Event):
    """This node takes no more connections for a peer."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOpened(Event):
    """This node carries a connection between two peers."""

    source: PeerId
    target: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitEnded(Event):
    """A connection between two peers that this node carried has ended.

    Attributes:
        source: who asked for it.
        target: whom it led to.
        sent: bytes from the source to the target.
        received: bytes back.
        seconds: how long it lived.
        reason: why it ended.
    """

    source: PeerId
    target: PeerId
    sent: int
    received: int
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayServerInfo:
    """What `node status` tells of relaying for others.

    Attributes:
        serving: whether it relays now.
        limited: whether its circuits are limited.
        reservations: how many peers hold one.
        circuits: how many are open.
        bytes_carried: both ways, of all circuits since the start.
        refused: how many requests were.
    """

    serving: bool
    limited: bool
    reservations: int
    circuits: int
    bytes_carried: int
    refused: int


class RelayServer:
    """Relays for others while `run` runs, whenever its settings and reachability say so.

    Args:
        host: whose connections it uses.
        settings: modes and limits.
        limits: what the subnets are that share places.
        acl: who may use it; everybody by default.
    """

    def __init__(
        self,
        host: NetworkHost,
        settings: RelaySettings | None = None,
        limits: LimitSettings | None = None,
        acl: Acl | None = None,
    ) -> None:
        self.settings = settings or RelaySettings()
        self.core = RelayCore(self.settings, acl, self._note_end)
        self._host = host
        self._subnets = SubnetMap(limits or LimitSettings())
        self._pace = Pace(self.settings.max_rate)
        self._is_serving = False
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled; circuits under way end with their connections."""
        undo = [
            self._host.events.on(ConnectionEnded, self._receive_ended),
            self._host.events.on(ReachabilityChanged, self._receive_reachability),
        ]
        try:
            self._serve(self.settings.server == "always")
            task_status.started()
            while True:
                self._changed = trio.Event()
                with trio.move_on_at(self.core.next_expiry()):
                    await self._changed.wait()
                self.core.expire(trio.current_time())
        finally:
            for each in undo:
                each()
            self._serve(False)

    def info(self) -> RelayServerInfo:
        """Describe what it does now."""
        circuits = self.core.circuits
        return RelayServerInfo(
            serving=self._is_serving,
            limited=self.settings.is_limited,
            reservations=self.core.reservations,
            circuits=len(circuits),
            bytes_carried=self.core.carried + sum(sum(each.carried) for each in circuits),
            refused=self.core.refused.total(),
        )

    # --- inputs ---------------------------------------------------------------------------------

    def _receive_reachability(self, event: ReachabilityChanged) -> None:
        if self.settings.server == "auto" and event.reachability is not Reachability.UNKNOWN:
            self._serve(event.reachability is Reachability.PUBLIC)

    def _receive_ended(self, event: ConnectionEnded) -> None:
        peer = event.connection.peer_id
        if self.core.holds(peer):
            connection = self._host.connection_to(peer)
            if connection is None or connection.is_relayed:
                self.core.receive_gone(peer)

    def _note_end(self, peer: PeerId, reason: str) -> None:
        self._host.unprotect(peer, TAG)
        self._host.events.emit(ReservationEnded(peer_id=peer, reason=reason))

    def _serve(self, wanted: bool) -> None:
        if wanted == self._is_serving:
            return
        self._is_serving = wanted
        if wanted:
            self._host.set_handler(HOP_PROTOCOL, self._answer)
        else:
            self._host.remove_handler(HOP_PROTOCOL)
            self.core.drop_all("this node relays no longer")

    # --- requests -------------------------------------------------------------------------------

    async def _answer(self, stream: Stream) -> None:
        """Serve one request; of CONNECT, the circuit that comes of it."""
        data = None
        with trio.move_on_after(self.settings.request_timeout):
            data = await receive(stream)
        if data is None:
            raise StreamResetError("the peer did not say in time what it wants of this relay")
        try:
            request = decode_hop(data)
        except ProtocolError as error:
            await self._reject(stream, Status.MALFORMED_MESSAGE, str(error))
            return
        if stream.connection.is_relayed:
            await _refuse(stream, Status.PERMISSION_DENIED)
        elif request.type is HopType.RESERVE:
            await self._answer_reserve(stream)
        elif request.type is HopType.CONNECT and request.peer is not None:
            await self._answer_connect(stream, request.peer)
        else:
            await self._reject(
                stream, Status.UNEXPECTED_MESSAGE, "a relay was asked with an answer"
            )

    async def _reject(self, stream: Stream, status: Status, reason: str) -> None:
        """Tell the peer which rule it broke, as a reset of the stream would not."""
        self._host.events.emit(
            PeerMisbehaved(
                peer_id=stream.peer_id,
                address=stream.connection.remote_address,
                reason=f"{HOP_PROTOCOL}: {reason}",
            )
        )
        await _refuse(stream, status)

    async def _answer_reserve(self, stream: Stream) -> None:
        peer, now = stream.peer_id, trio.current_time()
        subnets = self._subnets.find(stream.connection.remote_address)
        place = self.core.receive_reserve(peer, subnets, now)
        if isinstance(place, Status):
            await _refuse(stream, place)
            return
        self._host.protect(peer, TAG)
        self._changed.set()
        lifetime = place.expires_at - now
        self._host.events.emit(ReservationGiven(peer_id=peer, lifetime=lifetime))
        expire = math.floor(wall_time() + lifetime)
        voucher = Voucher(relay=self._host.peer_id, peer=peer, expiration=expire)
        direct = [each for each in self._host.addresses if not is_relayed(each)]
        addresses = [with_p2p(each, self._host.peer_id) for each in direct[:MAX_TOLD_ADDRESSES]]
        await send_hop(
            stream,
            HopMessage(
                type=HopType.STATUS,
                reservation=Reservation(
                    expire=expire,
                    addresses=tuple(addresses),
                    voucher=voucher.seal(self._host.key),
                ),
                limit=self.core.limit,
                status=Status.OK,
            ),
        )

    async def _answer_connect(self, stream: Stream, target: PeerId) -> None:
        circuit = self.core.receive_connect(stream.peer_id, target, trio.current_time())
        if isinstance(circuit, Status):
            await _refuse(stream, circuit)
            return
        try:
            far = await self._open(circuit)
            if far is None:
                await _refuse(stream, Status.CONNECTION_FAILED)
                return
            await self._carry(circuit, stream, far)
        finally:
            self.core.end(circuit)

    async def _open(self, circuit: Circuit) -> Stream | None:
        """Have the target take the circuit; returns the stream to it, or None if it does not."""
        connection = self._host.connection_to(circuit.target)
        if connection is None or connection.is_relayed:
            return None
        far = None
        taken = False
        try:
            with trio.move_on_after(self.settings.answer_timeout):
                far = await connection.open_stream([STOP_PROTOCOL])
                answer = await ask_stop(
                    far,
                    StopMessage(type=StopType.CONNECT, peer=circuit.source, limit=circuit.limit),
                )
                taken = answer.type is StopType.STATUS and answer.status == Status.OK
        except P2PNodeError:
            pass  # whatever it was, the asker is told that the target did not take it
        finally:
            if far is not None and not taken:
                far.reset()
        return far if taken else None

    async def _carry(self, circuit: Circuit, near: Stream, far: Stream) -> None:
        """Tell the asker that the circuit stands, and carry it; both streams end with it."""
        reason = "this node is shutting down"
        began = trio.current_time()
        self._host.events.emit(CircuitOpened(source=circuit.source, target=circuit.target))
        carriage = Carriage(
            circuit,
            (near, far),
            pace=self._pace,
            idle_timeout=self.settings.circuit_idle_timeout,
        )
        try:
            reason = await carriage.run(
                HopMessage(type=HopType.STATUS, limit=circuit.limit, status=Status.OK)
            )
        finally:
            self._host.events.emit(
                CircuitEnded(
                    source=circuit.source,
                    target=circuit.target,
                    sent=circuit.carried[0],
                    received=circuit.carried[1],
                    seconds=trio.current_time() - began,
                    reason=reason,
                )
            )


async def _refuse(stream: Stream, status: Status) -> None:
    await send_hop(stream, HopMessage(type=HopType.STATUS, status=status))
