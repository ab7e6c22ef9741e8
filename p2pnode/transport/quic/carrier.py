"""One UDP socket of QUIC's, and the tasks that move its datagrams.

One takes the datagrams as they come, a batch at a time; others send and keep the time. Sending
waits for nobody: what a full socket does not take is queued, and beyond that lost, as it might be
on any wire.
"""

import ipaddress
import itertools
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError
from p2pnode.transport.quic.core import Address, QuicCore
from p2pnode.transport.quic.datagrams import MAX_JOINED, DatagramSocket
from p2pnode.transport.quic.endpoint import Datagram, QuicEndpoint
from p2pnode.transport.quic.session import QuicSession
from p2pnode.transport.reuse import Endpoint
from p2pnode.transport.wakeup import Signal

_BATCH: Final = 64  # datagrams taken between two turns of other tasks
_TIMER_GRAIN: Final = 0.001  # seconds; what the system's own timers round up to
# Linux, ip(7): never fragment, and leave the path's size to us (RFC 9000, section 14).
_MTU_DISCOVER: Final = {socket.AF_INET: (0, 10), socket.AF_INET6: (41, 23)}
_PMTUDISC_PROBE: Final = 3


class Carrier:
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
        forget: "Callable[[Carrier], object]",
        *,
        is_for_dials: bool,
    ) -> None:
        self.core = core
        self.is_for_dials = is_for_dials
        self.ready = Signal()
        host, port = opened.getsockname()[:2]
        self.endpoint = Endpoint(ip_of(host), port)
        self._socket = opened
        self._datagrams = DatagramSocket(opened)
        self._settings = settings
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
            taken = 0
            while taken < _BATCH:
                try:
                    datagrams, address = self._datagrams.receive()
                except BlockingIOError:
                    break
                except OSError:  # an earlier datagram could not be delivered, Windows tells us
                    taken += 1
                    continue
                taken += len(datagrams)
                for data in datagrams:
                    session = self._receive(data, address, now)
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
            while self._queue:
                first = tuple(itertools.islice(self._queue, MAX_JOINED))
                taken = self._datagrams.send(first)
                for _ in range(taken):
                    self._queue.popleft()
                if taken < len(first):
                    break

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
        core = self.core.connect(address_of(target), trio.current_time())
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
        taken = 0 if self._queue else self._datagrams.send(datagrams)
        if taken < len(datagrams):
            room = max(self._settings.quic_send_queue - len(self._queue), 0)
            self._queue.extend(datagrams[taken : taken + room])
            self._queued.set()

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


def address_of(endpoint: Endpoint) -> Address:
    """Return it as the socket names it when it receives from there."""
    if endpoint.ip.version == 4:
        return endpoint.pair
    return (*endpoint.pair, 0, 0)


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP of an address as sockets name it, without its zone."""
    return ipaddress.ip_address(host.partition("%")[0])


def open_socket(endpoint: Endpoint, settings: NetworkSettings) -> socket.socket:
    """Open a UDP socket there.

    Raises:
        OSError: the system does not let it.
    """
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
