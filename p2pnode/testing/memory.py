"""A transport over the virtual network: byte streams at addresses that look like TCP's.

Each `MemoryTransport` belongs to one machine. The network says when each byte arrives, who can be
dialled, and what becomes of a connection whose way is cut.
"""

import contextlib
import math
import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError
from p2pnode.testing.network import Endpoint, Flow, Knock, Machine, VirtualNetwork, Wire
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import tcp_address

PIPE_BYTES: Final = 256 * 1024  # in flight per direction, like a socket's buffers on a LAN
CHUNK_BYTES: Final = 64 * 1024  # that connections of one machine take turns with
MAX_PENDING_ACCEPTS: Final = 1024  # connections a slow listener may leave waiting


class _Pipe:
    """One direction of a stream: bounded bytes, each readable when the network delivers it."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._chunks: deque[tuple[float, memoryview]] = deque()
        self._size = 0
        self._eof_at = math.inf
        self._finished = False  # the sender will send no more
        self._sender_closed = False
        self._receiver_closed = False
        self._refused_at = math.inf  # when the sender learns that nobody reads any more
        self._receiver_reset_at = math.inf
        self._sending = False
        self._receiving = False
        self._changed = trio.Event()

    # --- ends -----------------------------------------------------------------------------------

    def finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._eof_at = self._flow.due(0, trio.current_time())
            self._notify()

    def close_sender(self) -> None:
        self._sender_closed = True
        self.finish()
        self._notify()

    def close_receiver(self, known_at: float) -> None:
        """Read no more; the sender learns it at `known_at`."""
        self._receiver_closed = True
        self._chunks.clear()
        self._size = 0
        self._refused_at = min(self._refused_at, known_at)
        self._notify()

    @property
    def is_over(self) -> bool:
        return self._sender_closed and self._receiver_closed

    @property
    def eof_at(self) -> float:
        return self._eof_at

    def reset_sender(self, at: float) -> None:
        self._refused_at = min(self._refused_at, at)
        self._notify()

    def reset_receiver(self, at: float) -> None:
        self._receiver_reset_at = min(self._receiver_reset_at, at)
        self._notify()

    # --- the way --------------------------------------------------------------------------------

    def hold(self, now: float) -> None:
        """Note that what is under way does not arrive."""
        self._chunks = deque((due if due <= now else math.inf, each) for due, each in self._chunks)
        if self._eof_at > now:
            self._eof_at = math.inf
        self._notify()

    def resume(self, now: float) -> None:
        """Send again what did not arrive."""
        for index, (due, chunk) in enumerate(self._chunks):
            if due == math.inf:
                self._chunks[index] = self._flow.due(len(chunk), now), chunk
        if self._finished and self._eof_at == math.inf:
            self._eof_at = self._flow.due(0, now)
        self._notify()

    # --- operations -----------------------------------------------------------------------------

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        with self._alone_sending():
            self._check_sender()
            await trio.lowlevel.checkpoint()
            view = memoryview(bytes(data))  # a copy: the caller may reuse its buffer
            while view:
                await self._wait_for_room()
                room = min(PIPE_BYTES - self._size, CHUNK_BYTES)
                chunk, view = view[:room], view[room:]
                if self._receiver_closed:
                    continue  # it is dropped there, as the sender will learn
                self._chunks.append((self._flow.due(len(chunk), trio.current_time()), chunk))
                self._size += len(chunk)
                self._notify()

    async def send_eof(self) -> None:
        with self._alone_sending():
            if self._sender_closed:
                raise trio.ClosedResourceError("this side of the stream is closed")
            self.finish()
            await trio.lowlevel.checkpoint()

    async def wait_for_room(self) -> None:
        with self._alone_sending():
            self._check_sender()
            await trio.lowlevel.checkpoint()
            await self._wait_for_room()

    async def receive(self, max_bytes: int) -> bytes:
        with self._alone_receiving():
            self._check_receiver()
            await trio.lowlevel.checkpoint()
            while True:
                self._check_receiver()
                now = trio.current_time()
                if self._receiver_reset_at <= now:
                    raise trio.BrokenResourceError("the connection was reset")
                if self._chunks and self._chunks[0][0] <= now:
                    return self._take(max_bytes)
                if not self._chunks and self._eof_at <= now:
                    return b""
                due = self._chunks[0][0] if self._chunks else self._eof_at
                with trio.move_on_at(min(due, self._receiver_reset_at)):
                    await self._changed.wait()

    def _take(self, max_bytes: int) -> bytes:
        due, chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft((due, chunk[max_bytes:]))
            chunk = chunk[:max_bytes]
        self._size -= len(chunk)
        self._notify()
        return bytes(chunk)

    async def _wait_for_room(self) -> None:
        self._check_sender()
        while self._size >= PIPE_BYTES:
            with trio.move_on_at(self._refused_at):
                await self._changed.wait()
            self._check_sender()

    def _check_sender(self) -> None:
        if self._sender_closed:
            raise trio.ClosedResourceError("this side of the stream is closed")
        if self._finished:
            raise trio.ClosedResourceError("the end of the stream was already sent")
        if self._refused_at <= trio.current_time():
            raise trio.BrokenResourceError("the other side of the stream is closed")

    def _check_receiver(self) -> None:
        if self._receiver_closed:
            raise trio.ClosedResourceError("this side of the stream is closed")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @contextlib.contextmanager
    def _alone_sending(self) -> Iterator[None]:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    @contextlib.contextmanager
    def _alone_receiving(self) -> Iterator[None]:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            yield
        finally:
            self._receiving = False


class MemoryWire(Wire):
    """The wire of one connection, with a stream at each end."""

    __slots__ = ("_pipes", "streams")

    def __init__(
        self,
        network: VirtualNetwork,
        machines: tuple[Machine, Machine],
        endpoints: tuple[Endpoint, Endpoint],
    ) -> None:
        super().__init__(network, machines, endpoints)
        there, back = self._pipes = _Pipe(self.flows[0]), _Pipe(self.flows[1])
        self.streams = MemoryStream(self, there, back), MemoryStream(self, back, there)

    def receive_held(self, now: float) -> None:
        """See `Wire`."""
        for pipe in self._pipes:
            pipe.hold(now)

    def receive_resumed(self, now: float) -> None:
        """See `Wire`."""
        for pipe in self._pipes:
            pipe.resume(now)

    def receive_reset(self, end: int, at: float) -> None:
        """See `Wire`."""
        self._pipes[end].reset_sender(at)
        self._pipes[1 - end].reset_receiver(at)

    def note_closed(self) -> None:
        """Forget the wire once both ends are closed."""
        if all(pipe.is_over for pipe in self._pipes):
            self.close(trio.current_time())


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory."""

    def __init__(self, wire: MemoryWire, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._wire = wire
        self._outgoing = outgoing
        self._incoming = incoming
        self._on_close: Callable[[MemoryStream], object] | None = None

    def on_close(self, act: "Callable[[MemoryStream], object]") -> None:
        """Call `act` when this end is closed."""
        self._on_close = act

    def abort(self) -> None:
        """Break both ends, as the system does for a process that was killed."""
        end = self._wire.streams.index(self)
        now = trio.current_time()
        self._wire.receive_reset(1 - end, self._wire.flows[end].due(0, now))
        self._wire.receive_reset(end, now)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self._outgoing.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._outgoing.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        limit = PIPE_BYTES if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        return await self._incoming.receive(limit)

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._outgoing.send_eof()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        self._outgoing.close_sender()
        self._incoming.close_receiver(self._outgoing.eof_at)
        self._wire.note_closed()
        if self._on_close is not None:
            self._on_close(self)
            self._on_close = None
        await trio.lowlevel.checkpoint()


class MemoryTransport(Transport):
    """One machine's transport.

    Args:
        network: the world it is in.
        machine: where on it; a new machine without NAT by default.
    """

    def __init__(self, network: VirtualNetwork, machine: Machine | None = None) -> None:
        self.network = network
        self.machine = machine or network.add_machine()
        self._streams: dict[MemoryStream, None] = {}

    @property
    def ip(self) -> str:
        """The machine's own address."""
        return self.machine.ip

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return [protocol.name for protocol in address.protocols()] == ["ip4", "tcp"]

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> RawConnection:
        """See `Transport`; takes one round trip, unless packets are lost.

        Behind a router it matters from which port one dials; there the one listened on is reused.
        """
        if not self.can_dial(address):
            raise DialError(f"{address} is not an address of the memory network")
        target = _endpoint_of(address)
        reuse = reuse_port and self.machine.router is not None
        port = self._listening_port if reuse else self.machine.free_port()
        if (port, target) in self.machine.knocks:
            port = self.machine.free_port()
        return await self._dial(port, target, address)

    def can_punch(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return self.can_dial(address)

    async def punch(self, address: Multiaddr, *, is_client: bool) -> RawConnection:  # noqa: ARG002  # both sides dial
        """See `Transport`; a pair of endpoints carries one connection at a time, as in TCP."""
        target = _endpoint_of(address)
        port = self._listening_port
        if (port, target) in self.machine.knocks or any(
            target in wire.endpoints for wire in self.machine.wires
        ):
            await trio.lowlevel.checkpoint()
            raise DialError(f"{address} cannot be reached: address already in use")
        return await self._dial(port, target, address)

    @property
    def _listening_port(self) -> int:
        listening = next(iter(self.machine.listeners), None)
        return self.machine.free_port() if listening is None else listening

    async def _dial(self, port: int, target: Endpoint, address: Multiaddr) -> RawConnection:
        knock = self.network.dial(self.machine, port, target)
        try:
            while knock.answer is None:
                await trio.sleep_until(knock.next_at)
                if knock.advance(trio.current_time()):
                    self._connect(knock)
        finally:
            knock.end()
            if knock.answer is None and isinstance(knock.carrier, MemoryStream):
                await trio.aclose_forcefully(knock.carrier)  # the other end has it already
        if not isinstance(knock.carrier, MemoryStream):
            raise DialError(f"{address} cannot be reached: connection refused")
        self.hold(knock.carrier)
        return RawConnection(
            stream=knock.carrier,
            local_address=tcp_address(self.ip, port),
            remote_address=address,
        )

    def _connect(self, knock: Knock) -> None:
        """Take in a connection at the end that was dialled, or that dialled just as we did."""
        arrival = knock.arrival
        assert arrival is not None  # or there was nothing to take in
        machines = self.machine, arrival.machine
        wire = MemoryWire(self.network, machines, (arrival.remote, knock.target))
        ours, theirs = wire.streams
        if knock.met is not None:
            knock.carrier, knock.met.carrier = ours, theirs
            return
        listener = arrival.machine.listeners[arrival.port]
        remote = RawConnection(
            stream=theirs,
            local_address=tcp_address(arrival.machine.ip, arrival.port),
            remote_address=tcp_address(*arrival.remote),
        )
        if isinstance(listener, MemoryListener) and listener.offer(remote):
            listener.transport.hold(theirs)
            knock.carrier = ours
        else:
            wire.close(trio.current_time())

    def hold(self, stream: MemoryStream) -> None:
        """Take in an end of a connection that is on this machine."""
        self._streams[stream] = None
        stream.on_close(lambda each: self._streams.pop(each, None))

    def abort(self) -> None:
        """Break all connections, as the system does for a process that was killed."""
        for stream in tuple(self._streams):
            stream.abort()

    async def listen(self, address: Multiaddr) -> Listener:
        """See `Transport`."""
        await trio.lowlevel.checkpoint()
        if not self.can_dial(address) or address.value_for_protocol("ip4") != self.ip:
            raise InvalidAddressError(f"{address} is not an address of this machine ({self.ip})")
        port = _endpoint_of(address).port or self.machine.free_port()
        if port in self.machine.listeners:
            raise AddressInUseError(f"{address} is taken; listen on another port")
        listener = MemoryListener(self, port)
        self.machine.listeners[port] = listener
        return listener


class MemoryListener(Listener):
    """A listener on one port of a machine."""

    def __init__(self, transport: MemoryTransport, port: int) -> None:
        self.transport = transport
        self._machine = transport.machine
        self._port = port
        self._send, self._receive = trio.open_memory_channel[RawConnection](MAX_PENDING_ACCEPTS)

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        return [tcp_address(self._machine.ip, self._port)]

    def offer(self, connection: RawConnection) -> bool:
        """Hand over the far end of a dialled connection; False when it is refused."""
        try:
            self._send.send_nowait(connection)
        except trio.WouldBlock:
            return False
        return True

    async def accept(self) -> RawConnection:
        """See `Listener`."""
        return await self._receive.receive()

    async def aclose(self) -> None:
        """See `Listener`."""
        if self._machine.listeners.get(self._port) is self:
            del self._machine.listeners[self._port]
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError):
            while True:
                await self._receive.receive_nowait().stream.aclose()
        self._receive.close()
        self._send.close()
        await trio.lowlevel.checkpoint()


def _endpoint_of(address: Multiaddr) -> Endpoint:
    return Endpoint(
        str(address.value_for_protocol("ip4")), int(str(address.value_for_protocol("tcp")))
    )
