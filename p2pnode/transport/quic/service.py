"""QUIC on UDP sockets: `/ip4/<ip>/udp/<port>/quic-v1`, and its forms with IPv6 and names.

One socket serves a listen address: all connections that come in there, and those dialled from
there, so that every NAT on the way shows a peer the endpoint at which this node can be reached.
Dials that have no such socket share one of their own for each kind of IP. A socket is closed when
nobody listens on it and its last connection has ended.

Each socket has a task that takes the datagrams as they come, a batch at a time, and others that
send and keep the time. Sending waits for nobody: what a full socket does not take is queued, and
beyond that lost, as it might be on any wire.
"""

import ipaddress
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError, DialError, InvalidAddressError, NoRouteError
from p2pnode.transport.base import Listener, SecuredConnection, Transport
from p2pnode.transport.interfaces import own_addresses
from p2pnode.transport.quic.core import ALPN, INITIAL_WINDOW, Address, QuicCore
from p2pnode.transport.quic.endpoint import ID_BYTES, VERSIONS, Datagram, QuicEndpoint
from p2pnode.transport.quic.session import QuicSession
from p2pnode.transport.reuse import Endpoint, choose_source, route_source
from p2pnode.transport.tcp import listen_error
from p2pnode.transport.wakeup import Signal
from p2pnode.wire.addresses import quic_address
from p2pnode.wire.keys import PublicKey

_IPS: Final = frozenset({"ip4", "ip6"})
_HOSTS: Final = _IPS | {"dns", "dns4", "dns6"}
_BATCH: Final = 64  # datagrams taken between two turns of other tasks
_NOISE_BYTES: Final = 64
_NOISE_INTERVAL: Final = 0.1  # seconds; the specification has 10 to 200 ms
_MAX_DATAGRAM: Final = 65_535
_TIMER_GRAIN: Final = 0.001  # seconds; what the system's own timers round up to
# Linux, ip(7): never fragment, and leave the path's size to us (RFC 9000, section 14).
_MTU_DISCOVER: Final = {socket.AF_INET: (0, 10), socket.AF_INET6: (41, 23)}
_PMTUDISC_PROBE: Final = 3


class Identity(Protocol):
    """Who this node is, and how it finds out who others are: `p2pnode.security.tls`."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def verify(self, chain: Sequence[x509.Certificate]) -> PublicKey:
        """Return whose certificates these are.

        Raises:
            HandshakeError: they prove nothing.
        """


class QuicTransport(Transport):
    """Connections over QUIC.

    Args:
        identity: this node's certificate, and the check of others'.
        settings: limits and timeouts.
    """

    def __init__(self, identity: Identity, settings: NetworkSettings | None = None) -> None:
        self._settings = settings or NetworkSettings()
        self._identity = identity
        self._configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            certificate=identity.certificate,
            private_key=identity.private_key,
            connection_id_length=ID_BYTES,
            congestion_control_algorithm="cubic",
            idle_timeout=self._settings.quic_idle_timeout,
            max_data=self._settings.quic_base_window,
            max_datagram_size=self._settings.quic_max_datagram,
            max_stream_data=INITIAL_WINDOW,
            supported_versions=list(VERSIONS),
            verify_mode=0,  # no authorities: `identity` checks
        )
        self._nursery: trio.Nursery | None = None
        self._carriers: list[_Carrier] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry all sockets, and close them in the end."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        names = [protocol.name for protocol in address.protocols()]
        return len(names) == 3 and names[0] in _HOSTS and names[1:] == ["udp", "quic-v1"]

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> SecuredConnection:
        """See `Transport`; the peer has proven who it is, which may be anybody.

        Raises:
            HandshakeError: somebody answers, but no peer that proves who it is.
        """
        target = endpoint_of(address)
        if target is None or target.ip.is_unspecified or not target.port:
            raise DialError(f"{address} is not an address QUIC can dial; it needs an IP and a port")
        source = route_source(target)
        if source is None:
            raise NoRouteError(f"{address} cannot be reached: this machine has no route there")
        carrier = await self._carrier_for(target, reuse_port=reuse_port)
        session = carrier.connect(target)
        try:
            await session.established.wait()
        except BaseException:
            await trio.aclose_forcefully(session)
            raise
        core = session.core
        if core.identity is None:
            assert core.failure is not None
            if core.engine.has_begun:
                raise core.failure
            raise DialError(f"{address} cannot be reached: {core.failure}")
        return SecuredConnection(
            session=session,
            public_key=core.identity,
            local_address=quic_address(str(source), carrier.endpoint.port),
            remote_address=quic_address(str(target.ip), target.port),
        )

    async def listen(self, address: Multiaddr) -> "QuicListener":
        """See `Transport`."""
        await trio.lowlevel.checkpoint()
        endpoint = endpoint_of(address)
        if endpoint is None:
            raise InvalidAddressError(
                f"cannot listen on {address}; give an IP address and a port, "
                "such as /ip4/0.0.0.0/udp/4001/quic-v1"
            )
        for carrier in self._carriers:  # its listener was closed, and its connections live on
            if carrier.endpoint == endpoint and not carrier.core.is_listening:
                return QuicListener(carrier)
        try:
            carrier = await self._open(endpoint)
        except OSError as error:
            raise listen_error(address, error) from error
        return QuicListener(carrier)

    def can_punch(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return endpoint_of(address) is not None

    async def punch(self, address: Multiaddr, *, is_client: bool) -> SecuredConnection:
        """See `Transport`; the client dials, the other side sends datagrams of noise.

        They make its NAT expect the client's. (libp2p/specs, DCUtR.)
        """
        if is_client:
            return await self.dial(address)
        target = endpoint_of(address)
        carrier = None if target is None else self._listening_carrier(target)
        if carrier is None or target is None:
            raise DialError(
                f"no hole can be punched to {address}: this node does not listen on UDP"
            )
        while True:
            carrier.send([(os.urandom(_NOISE_BYTES), _address_of(target))])
            await trio.sleep(_NOISE_INTERVAL)

    def _listening_carrier(self, target: Endpoint) -> "_Carrier | None":
        listening = {each.endpoint: each for each in self._carriers if each.core.is_listening}
        source = choose_source(target, listening)
        return None if source is None else listening[source]

    async def _carrier_for(self, target: Endpoint, *, reuse_port: bool) -> "_Carrier":
        if reuse_port and self._settings.reuse_port:
            carrier = self._listening_carrier(target)
            if carrier is not None:
                return carrier
        anywhere = ipaddress.ip_address("0.0.0.0" if target.ip.version == 4 else "::")  # noqa: S104  # to dial from
        for carrier in self._carriers:
            if carrier.is_for_dials and carrier.endpoint.ip == anywhere:
                return carrier
        try:
            return await self._open(Endpoint(anywhere, 0), is_for_dials=True)
        except OSError as error:
            raise NoRouteError(f"this machine gives no UDP socket: {error.strerror}") from error

    async def _open(self, endpoint: Endpoint, *, is_for_dials: bool = False) -> "_Carrier":
        if self._nursery is None:
            raise RuntimeError("the transport does not run")
        opened = _bind(endpoint, self._settings)
        core = QuicEndpoint(
            self._configuration,
            verify=self._identity.verify,
            settings=self._settings,
            token_bytes=os.urandom,
        )
        carrier = _Carrier(opened, core, self._settings, self._forget, is_for_dials=is_for_dials)
        self._carriers.append(carrier)
        self._nursery.start_soon(carrier.run)
        return carrier

    def _forget(self, carrier: "_Carrier") -> None:
        self._carriers.remove(carrier)


class QuicListener(Listener):
    """Takes the connections that begin at one socket."""

    def __init__(self, carrier: "_Carrier") -> None:
        self._carrier = carrier
        self._is_closed = False
        carrier.core.is_listening = True

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        ip, port = self._carrier.endpoint
        if not ip.is_unspecified:
            return [quic_address(str(ip), port)]
        return [quic_address(str(own), port) for own in own_addresses(ip.version)]

    async def accept(self) -> SecuredConnection:
        """See `Listener`; the peers have proven who they are."""
        await trio.lowlevel.checkpoint()
        while not self._is_closed:
            session = self._carrier.take()
            if session is not None:
                return self._connection(session)
            await self._carrier.ready.wait()
        raise trio.ClosedResourceError("the listener is closed")

    def _connection(self, session: QuicSession) -> SecuredConnection:
        remote = session.core.engine.get_peer_address()
        assert remote is not None
        assert session.core.identity is not None
        local = self._carrier.endpoint
        if local.ip.is_unspecified:
            source = route_source(Endpoint(_ip_of(remote[0]), remote[1]))
            local = Endpoint(source or local.ip, local.port)
        return SecuredConnection(
            session=session,
            public_key=session.core.identity,
            local_address=quic_address(str(local.ip), local.port),
            remote_address=quic_address(remote[0], remote[1]),
        )

    async def aclose(self) -> None:
        """See `Listener`."""
        if not self._is_closed:
            self._is_closed = True
            self._carrier.stop_listening()
        await trio.lowlevel.checkpoint()


class _Carrier:
    """One socket, and what moves its datagrams.

    Attributes:
        core: whose they are.
        endpoint: where the socket is.
        is_for_dials: whether it was opened for dials alone.
        ready: set when `take` has something, or never will.
    """

    def __init__(
        self,
        opened: socket.socket,
        core: QuicEndpoint,
        settings: NetworkSettings,
        forget: "Callable[[_Carrier], object]",
        *,
        is_for_dials: bool,
    ) -> None:
        self.core = core
        self.is_for_dials = is_for_dials
        self.ready = Signal()
        host, port = opened.getsockname()[:2]
        self.endpoint = Endpoint(_ip_of(host), port)
        self._socket = opened
        self._settings = settings
        self._buffer = bytearray(_MAX_DATAGRAM)
        self._sessions: dict[QuicCore, QuicSession] = {}
        self._new: dict[QuicSession, None] = {}  # begun by others, and not yet established
        self._to_take: deque[QuicSession] = deque()
        self._queue: deque[Datagram] = deque()
        self._queued = Signal()
        self._changed: dict[QuicSession, None] = {}  # may have something to send
        self._change = Signal()
        self._alarm = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._forget = forget
        self._is_closed = False

    # --- tasks ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Move datagrams until the socket is of no use any more."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._flush)
                    nursery.start_soon(self._keep_time)
        finally:
            self._close()

    async def _read(self) -> None:
        while not self._is_closed:
            await trio.lowlevel.wait_readable(self._socket)
            touched: dict[QuicSession, None] = {}
            now = trio.current_time()
            for _ in range(_BATCH):
                try:
                    size, address = self._socket.recvfrom_into(self._buffer)
                except BlockingIOError:
                    break
                except OSError:  # an earlier datagram could not be delivered, Windows tells us
                    continue
                session = self._receive(bytes(memoryview(self._buffer)[:size]), address, now)
                if session is not None:
                    touched[session] = None
            for session in touched:
                self.transmit_now(session)
            for core in self.core.given_up():
                self._dispatch(self._sessions[core])
            await trio.lowlevel.checkpoint()

    def _receive(self, data: bytes, address: Address, now: float) -> QuicSession | None:
        received = self.core.receive_datagram(data, address, now)
        self.send(received.replies)
        core = received.core
        if core is None:
            return None
        if received.is_new:
            session = self._sessions[core] = QuicSession(core, self, self._settings)
            self._new[session] = None
        session = self._sessions[core]
        session.dispatch(received.events)
        return session

    async def _write(self) -> None:
        """Send what the socket did not take at once."""
        while not self._is_closed:
            while not self._queue:
                await self._queued.wait()
            await trio.lowlevel.wait_writable(self._socket)
            while self._queue and self._send_now(*self._queue[0]):
                self._queue.popleft()

    async def _keep_time(self) -> None:
        while True:
            now = trio.current_time()
            for core, events in self.core.due(now):
                session = self._sessions[core]
                session.dispatch(events)
                self.transmit_now(session)
            deadline = self.core.next_deadline()
            if self.core.is_pacing and deadline - now < _TIMER_GRAIN:
                await trio.lowlevel.checkpoint()  # while data flows, no timer is fine enough
                continue
            with trio.CancelScope(deadline=deadline) as self._alarm:
                await trio.sleep_forever()

    async def _flush(self) -> None:
        """Send what sessions have to send, once for all that changed them in one turn.

        To look for what could be sent costs as much as a session has streams.
        """
        while not self._is_closed:
            while not self._changed:
                await self._change.wait()
            changed, self._changed = self._changed, {}
            for session in changed:
                self.transmit_now(session)
            await trio.lowlevel.checkpoint()

    # --- for sessions ---------------------------------------------------------------------------

    def transmit(self, session: QuicSession) -> None:
        """See `p2pnode.transport.quic.session.Carrier`; it is done within this turn or the next."""
        if not self._is_closed:
            self._changed[session] = None
            self._change.set()

    def transmit_now(self, session: QuicSession) -> None:
        """See `p2pnode.transport.quic.session.Carrier`."""
        core = session.core
        self._changed.pop(session, None)
        self.send(self.core.datagrams_to_send(core, trio.current_time()))
        if session in self._new and session.established.is_set():
            del self._new[session]
            if core.failure is None:
                self._to_take.append(session)
                self.ready.set()
        if core.is_over:
            self._sessions.pop(core, None)
            self._end_if_unused()
        self._set_alarm()

    def rearm(self, session: QuicSession) -> None:
        """See `p2pnode.transport.quic.session.Carrier`."""
        self.core.set_timer(session.core)
        self._set_alarm()

    def _set_alarm(self) -> None:
        deadline = self.core.next_deadline()
        if deadline < self._alarm.deadline:  # noqa: PLR1730  # setting it costs 5 us, even if equal
            self._alarm.deadline = deadline

    def _dispatch(self, session: QuicSession) -> None:
        session.dispatch(())
        self.transmit_now(session)

    # --- for the transport ----------------------------------------------------------------------

    def connect(self, target: Endpoint) -> QuicSession:
        """Begin a connection; it is established, or fails, in time."""
        core = self.core.connect(_address_of(target), trio.current_time())
        session = self._sessions[core] = QuicSession(core, self, self._settings)
        self.transmit_now(session)
        return session

    def take(self) -> QuicSession | None:
        """Return the next connection that somebody else has begun, if there is one."""
        while self._to_take:
            session = self._to_take.popleft()
            self.core.take(session.core)
            if session.core.failure is None:
                return session
        return None

    def stop_listening(self) -> None:
        """Take no more connections, and end those that nobody has taken."""
        self.core.is_listening = False
        self.ready.set()
        for session in (*self._new, *self._to_take):
            self._refuse(session)
        self._to_take.clear()
        self._end_if_unused()

    def _refuse(self, session: QuicSession) -> None:
        session.core.close(ConnectionClosedError("nobody listens any more"))
        self._dispatch(session)

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams, as far as the socket and the queue take them."""
        for data, address in datagrams:
            if self._queue or not self._send_now(data, address):
                if len(self._queue) < self._settings.quic_send_queue:
                    self._queue.append((data, address))
                self._queued.set()

    def _send_now(self, data: bytes, address: Address) -> bool:
        """Send one datagram; returns False when the socket is full."""
        try:
            self._socket.sendto(data, address)
        except BlockingIOError:
            return False
        except OSError:  # no route, a firewall, or closed: lost, as it might be on any wire
            pass
        return True

    def _end_if_unused(self) -> None:
        if not self._sessions and not self.core.is_listening:
            self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._scope.cancel()
        for session in tuple(self._sessions.values()):
            session.core.close(ConnectionClosedError("this side closed the connection"))
            self._dispatch(session)
        self._sessions.clear()
        self.core.is_listening = False
        self.ready.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._forget(self)


def endpoint_of(address: Multiaddr) -> Endpoint | None:
    """Return where `/ip4/<ip>/udp/<port>/quic-v1`, or its IPv6 form, leads; None for others."""
    parts = list(address.items())
    names = [protocol.name for protocol, _ in parts]
    if len(parts) != 3 or names[0] not in _IPS or names[1:] != ["udp", "quic-v1"]:
        return None
    return Endpoint(ipaddress.ip_address(parts[0][1]), int(parts[1][1]))


def _address_of(endpoint: Endpoint) -> Address:
    """Return it as the socket names it when it receives from there."""
    if endpoint.ip.version == 4:
        return endpoint.pair
    return (*endpoint.pair, 0, 0)


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])


def _bind(endpoint: Endpoint, settings: NetworkSettings) -> socket.socket:
    opened = socket.socket(endpoint.family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        if endpoint.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with suppress(OSError):  # as much as the system gives
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.quic_socket_buffer)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.quic_socket_buffer)
        if sys.platform == "linux":
            opened.setsockopt(*_MTU_DISCOVER[endpoint.family], _PMTUDISC_PROBE)
        opened.bind(endpoint.pair)
    except BaseException:
        opened.close()
        raise
    return opened
