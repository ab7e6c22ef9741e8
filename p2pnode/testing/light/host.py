"""A light host: what protocols see of a node's network side, without Noise and Yamux."""

import contextlib
import ipaddress
import itertools
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import LimitSettings, NetworkSettings
from p2pnode.errors import DialError, P2PNodeError, ProtocolError, first_leaf
from p2pnode.events import EventBus
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    LocalPeerChanged,
    PeerIdentified,
    PeerMisbehaved,
    StreamHandler,
)
from p2pnode.host.backoff import DialBackoff
from p2pnode.host.manager import Candidate, ConnectionManager, ProtectedPeers
from p2pnode.host.ranking import rank
from p2pnode.testing.light.address_book import AddressBook
from p2pnode.testing.light.connections import LightConnection, LightWire
from p2pnode.testing.light.dials import LightDial, StrangerDial
from p2pnode.testing.light.streams import LightStream
from p2pnode.testing.network import Arrival, Endpoint, Knock, Machine, Nat
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.testing.light.world import LightWorld

_STOPS: Final = "this node is shutting down"


class LightHost(Host):
    """A host of a `LightWorld`, which makes it."""

    def __init__(
        self,
        world: "LightWorld",
        key: PrivateKey,
        machine: Machine,
        *,
        port: int,
        settings: NetworkSettings,
        limits: LimitSettings,
    ) -> None:
        self.world = world
        self.key = key
        self.public_key = key.public_key
        self.peer_id = key.peer_id
        self.machine = machine
        self.port = port
        self.settings = settings
        self.limits = limits
        self.events = EventBus()
        self.handlers: dict[str, StreamHandler] = {}
        self.listening = world.address_of(Endpoint(machine.ip, port))
        self.backoff = DialBackoff(settings, world.network.rng)
        self._listens = False
        self._nursery: trio.Nursery | None = None
        self._connections: dict[PeerId, LightConnection] = {}
        self._address_book = AddressBook(settings, self._connections)
        self._seconds: dict[PeerId, list[LightConnection]] = {}  # besides those to be used
        self._idle: dict[LightConnection, None] = {}  # the one idle for longest first
        self._is_idle_check_due = False
        self._is_push_due = False
        self._protected = ProtectedPeers()
        self._manager = ConnectionManager(limits, self._protected)
        self._dials: dict[PeerId, LightDial] = {}
        self._identity: PeerIdentified | None = None  # what others are told, until it changes

    # --- life -----------------------------------------------------------------------------------

    async def run(
        self,
        *,
        listen: bool = True,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be on the network until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.backoff.be_alone()
            if listen:
                self._listens = True
                self.machine.listeners[self.port] = self
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._fall_silent()

    def stop(self, told: str | None) -> None:
        """Leave the network; the peers are `told` why, or nothing."""
        for connection in self._all_connections():
            if told is None:
                connection.finish(_STOPS)
            else:
                connection.close(_STOPS, told=told)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None
            self._fall_silent()

    def _fall_silent(self) -> None:
        for dial in tuple(self._dials.values()):
            dial.end()
        if self.machine.listeners.get(self.port) is self:
            del self.machine.listeners[self.port]

    @property
    def is_running(self) -> bool:
        """Whether it is on the network."""
        return self._nursery is not None

    # --- addresses and handlers -----------------------------------------------------------------

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Host`: where it listens, and where its router lets others in."""
        if not self._listens:
            return []
        found = [self.listening]
        if self.machine.nat is not Nat.NONE:
            public = self.world.network.public_endpoint(self.machine, self.port)
            if public is not None:
                found.append(self.world.address_of(public))
        return found

    @property
    def candidate_addresses(self) -> list[Multiaddr]:
        """See `Host`."""
        return self.addresses

    def judge_addresses(
        self, verified: Collection[Multiaddr], refuted: Collection[Multiaddr]
    ) -> None:
        """See `Host`; a light host tells others of all its addresses, as it always did."""

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """See `Host`."""
        fresh = protocol not in self.handlers
        self.handlers[protocol] = handler
        if fresh:
            self.note_change()

    def remove_handler(self, protocol: str) -> None:
        """See `Host`."""
        if self.handlers.pop(protocol, None) is not None:
            self.note_change()

    def note_change(self) -> None:
        """Tell this node, and a moment later its peers, that it serves or is found differently."""
        self._identity = None
        self.events.emit(LocalPeerChanged())
        if self._connections and not self._is_push_due:
            self._is_push_due = True
            at = trio.current_time() + self.settings.identify_push_delay
            self.world.timers.at(at, self._push)

    def _push(self) -> None:
        self._is_push_due = False
        for connection in tuple(self._connections.values()):
            connection.tell(connection.other.receive_identity)

    def identity(self) -> PeerIdentified:
        """What this host tells others of itself."""
        if self._identity is None:
            self._identity = PeerIdentified(
                peer_id=self.peer_id,
                protocols=frozenset(self.handlers),
                addresses=tuple(self.addresses),
                agent="p2pnode/light",
                observed_address=None,
            )
        return self._identity

    def receive_identity(self, remote: "LightHost") -> None:
        """Learn what a peer says of itself now."""
        identity = remote.identity()
        self._address_book.receive_identity(remote.peer_id, identity.addresses, identity.protocols)
        self.events.emit(identity)

    # --- peers ----------------------------------------------------------------------------------

    def add_addresses(self, peer_id: PeerId, addresses: Sequence[Multiaddr], ttl: float) -> None:
        """See `Host`."""
        if addresses and peer_id != self.peer_id:
            self._address_book.add(peer_id, addresses, ttl)

    def addresses_of(self, peer_id: PeerId, *, hearsay: bool = True) -> list[Multiaddr]:
        """See `Host`."""
        return self._address_book.addresses_of(peer_id, hearsay=hearsay)

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """See `Host`."""
        return self._address_book.protocols_of(peer_id)

    def connection_to(self, peer_id: PeerId) -> LightConnection | None:
        """See `Host`."""
        return self._connections.get(peer_id)

    def connections(self) -> list[Connection]:
        """See `Host`."""
        return list(self._all_connections())

    def _all_connections(self) -> list[LightConnection]:
        seconds = itertools.chain.from_iterable(self._seconds.values())
        return [*self._connections.values(), *seconds]

    def protect(self, peer_id: PeerId, tag: str) -> None:
        """See `Host`."""
        self._protected.protect(peer_id, tag)

    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """See `Host`."""
        return self._protected.unprotect(peer_id, tag)

    def is_protected(self, peer_id: PeerId) -> bool:
        """See `Host`."""
        return peer_id in self._protected

    # --- dialling -------------------------------------------------------------------------------

    async def connect(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr] = (),
        *,
        timeout: float | None = None,
        insist: bool = False,
        direct: bool = False,  # noqa: ARG002  # there are no relays
    ) -> LightConnection:
        """See `Host`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        existing = self._connections.get(peer_id)
        if existing is not None:
            return existing
        if peer_id == self.peer_id:
            raise DialError("a node does not dial itself")
        if self._nursery is None:
            raise DialError("this node is not on the network")
        dial = self._dials.get(peer_id)
        if dial is None:
            dial = self._dials[peer_id] = LightDial(self, peer_id)
        dial.offer([*addresses, *self.addresses_of(peer_id)], insist=insist)
        dial.start()
        dial.callers += 1
        try:
            deadline = trio.current_time()
            deadline += self.settings.dial_timeout if timeout is None else timeout
            if trio.current_effective_deadline() <= deadline:  # a scope for nothing is not cheap
                await dial.done.wait()
            else:
                with trio.move_on_at(deadline):
                    await dial.done.wait()
        finally:
            dial.callers -= 1
            if not dial.callers:
                dial.end()
        if (connection := self._connections.get(peer_id)) is not None:
            return connection
        raise dial.failure

    def forget_dial(self, dial: LightDial) -> None:
        """Note that the outcome of a dial is known."""
        if self._dials.get(dial.peer_id) is dial:
            del self._dials[dial.peer_id]

    def rank(self, addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
        """Order addresses, the best to try first."""
        return rank(addresses, own=[ipaddress.ip_address(self.machine.ip)])

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Host`."""
        return self.world.endpoint_of(address) is not None

    @contextlib.asynccontextmanager
    async def dial_anew(
        self, peer_id: PeerId, address: Multiaddr, *, timeout: float
    ) -> AsyncIterator[LightConnection]:
        """See `Host`; the peer sees this host's own id, where it would see a stranger's."""
        dial = StrangerDial(self, peer_id, address)
        dial.start()
        try:
            with trio.move_on_after(timeout):
                await dial.done.wait()
        finally:
            dial.end()
        if (connection := dial.connection) is None:
            raise dial.failure
        try:
            yield connection
        finally:
            connection.close("it was opened to see if it can be")

    def knock(self, address: Multiaddr, *, as_stranger: bool = False) -> Knock | None:
        """Begin to open a connection; None if the address leads nowhere."""
        target = self.world.endpoint_of(address)
        if target is None:
            return None
        # Behind a router it matters that others see the port that this node listens on.
        behind = self.machine.router is not None and self._listens and not as_stranger
        port = self.port if behind else self.machine.free_port()
        return self.world.network.dial(self.machine, port, target)

    def join(self, remote: "LightHost", knock: Knock, arrival: Arrival) -> None:
        """Have both ends hold the connection that was dialled from here."""
        ours = self.pair_up(remote, knock, arrival)
        ours.open()
        ours.tell(ours.other.open)

    def pair_up(self, remote: "LightHost", knock: Knock, arrival: Arrival) -> LightConnection:
        """Make both ends of the connection that was dialled from here; returns this one."""
        network = self.world.network
        machines = self.machine, remote.machine
        wire = LightWire(network, machines, (arrival.remote, knock.target))
        ours = LightConnection(self, remote, wire, "outbound")
        theirs = LightConnection(remote, self, wire, "inbound")
        ours.other, theirs.other = theirs, ours
        wire.ends = ours, theirs
        return ours

    # --- connections ----------------------------------------------------------------------------

    def add(self, connection: LightConnection) -> None:
        """Take in one end of a new connection."""
        peer_id = connection.peer_id
        previous = self._connections.get(peer_id)
        self._connections[peer_id] = connection
        self.backoff.meet(peer_id)
        if previous is not None:
            best = self._better(connection, previous)
            self._connections[peer_id] = best
            other = connection if best is previous else previous
            self._seconds[peer_id] = [*self._seconds.get(peer_id, ()), other]
            if not other.streams:
                self._let_linger(other)
        if (dial := self._dials.get(peer_id)) is not None:
            dial.end()
        self.note_idle(connection)
        now = trio.current_time()
        if self._manager.is_trim_due(len(self._connections), now):
            chosen = self._manager.trim(map(self._candidate, self._connections.values()), now)
            for each in chosen:
                each.close("this side closed it to make room for others")
        self.events.emit(ConnectionOpened(connection=connection))

    def _better(self, newer: LightConnection, older: LightConnection) -> LightConnection:
        """Choose which of two connections to a peer to use, as real hosts do."""
        simultaneous = newer.opened_at - older.opened_at < self.settings.dial_timeout
        if newer.direction == older.direction or not simultaneous:
            return newer
        wanted = "outbound" if self.peer_id < newer.peer_id else "inbound"
        return newer if newer.direction == wanted else older

    def remove(self, connection: LightConnection, reason: str) -> None:
        """Drop an ended connection."""
        peer_id = connection.peer_id
        self._idle.pop(connection, None)
        seconds = [each for each in self._seconds.pop(peer_id, ()) if each is not connection]
        if self._connections.get(peer_id) is connection:
            del self._connections[peer_id]
            if seconds:
                self._connections[peer_id] = seconds.pop()
            else:
                self._address_book.receive_ended(peer_id)
        if seconds:
            self._seconds[peer_id] = seconds
        if not self._connections:
            self.backoff.be_alone()
        self.events.emit(ConnectionEnded(connection=connection, reason=reason))

    def _candidate(self, connection: LightConnection) -> Candidate[LightConnection]:
        background = self.limits.background_protocols
        streams = connection.streams
        return Candidate(
            connection=connection,
            peer_id=connection.peer_id,
            direction=connection.direction,
            crowd=connection.remote.machine.public_ip.rpartition(".")[0],
            last_used=trio.current_time() if streams else connection.last_used,
            opened_at=connection.opened_at,
            streams=len(streams),
            calls=sum(not each.protocol.startswith(background) for each in streams),
        )

    def note_busy(self, connection: LightConnection) -> None:
        """A connection has got its first stream."""
        self._idle.pop(connection, None)

    def note_idle(self, connection: LightConnection) -> None:
        """A connection has lost its last stream, or never had one."""
        if self._seconds and connection in self._seconds.get(connection.peer_id, ()):
            self._let_linger(connection)
            return
        self._idle[connection] = None
        if not self._is_idle_check_due:
            self._is_idle_check_due = True
            at = connection.last_used + self.settings.idle_timeout
            self.world.timers.at(at, self._close_idle)

    def _close_idle(self) -> None:
        self._is_idle_check_due = False
        now = trio.current_time()
        while self._idle:
            connection = next(iter(self._idle))
            at = connection.last_used + self.settings.idle_timeout
            if at > now:
                self._is_idle_check_due = True
                self.world.timers.at(at, self._close_idle)
                return
            connection.close("this side closed it, since it was idle")

    def _let_linger(self, connection: LightConnection) -> None:
        """Close a second connection to a peer once it has not been used for a while."""

        def check() -> None:
            if (
                not connection.is_closed
                and not connection.streams
                and connection.last_used == since
            ):
                connection.close("this side closed it, since there is another one")

        since = connection.last_used
        self._idle.pop(connection, None)
        self.world.timers.at(trio.current_time() + self.settings.duplicate_linger, check)

    # --- streams --------------------------------------------------------------------------------

    def serve(self, stream: LightStream, handler: StreamHandler) -> None:
        """Run the handler of an inbound stream."""
        if self._nursery is not None:
            self.world.streams_served += 1
            self._nursery.start_soon(self._handle, stream, handler)

    async def _handle(self, stream: LightStream, handler: StreamHandler) -> None:
        try:
            await handler(stream)
            await stream.aclose()
        except* ProtocolError as group:
            stream.reset()
            reason = f"{stream.protocol}: {first_leaf(group)}"
            self.events.emit(PeerMisbehaved(peer_id=stream.peer_id, address=None, reason=reason))
        except* (P2PNodeError, trio.ClosedResourceError):
            stream.reset()
