"""Byte streams in memory, at addresses that look like TCP's, with delays on trio's clock.

Tests and simulations run the whole node over it. A `MemoryNetwork` is one world; each
`MemoryTransport` is one machine in it, with an IP address of its own.
"""

import contextlib
import itertools
import math
import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import tcp_address

PIPE_BYTES: Final = 256 * 1024  # in flight per direction, like a socket's buffers on a LAN
MAX_PENDING_ACCEPTS: Final = 1024  # connections a slow listener may leave waiting
_EPHEMERAL_PORTS: Final = 32768  # where Linux begins, too

Delay = Callable[[str, str], float]


class _Pipe:
    """One direction of a stream: bounded bytes, each readable one delay after it was sent."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self._delay = delay
        self._chunks: deque[tuple[float, memoryview]] = deque()
        self._size = 0
        self._eof_at = math.inf
        self._finished = False  # the sender will send no more
        self._sender_closed = False
        self._receiver_closed = False
        self._sending = False
        self._receiving = False
        self._changed = trio.Event()

    def finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._eof_at = trio.current_time() + self._delay()
            if self._chunks:
                self._eof_at = max(self._eof_at, self._chunks[-1][0])
            self._notify()

    def close_sender(self) -> None:
        self._sender_closed = True
        self.finish()
        self._notify()

    def close_receiver(self) -> None:
        self._receiver_closed = True
        self._chunks.clear()
        self._size = 0
        self._notify()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        with self._alone_sending():
            self._check_sender()
            await trio.lowlevel.checkpoint()
            view = memoryview(bytes(data))  # a copy: the caller may reuse its buffer
            while view:
                await self._wait_for_room()
                room = PIPE_BYTES - self._size
                chunk, view = view[:room], view[room:]
                due = trio.current_time() + self._delay()
                if self._chunks:
                    due = max(due, self._chunks[-1][0])  # bytes do not overtake each other
                self._chunks.append((due, chunk))
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
                if self._chunks and self._chunks[0][0] <= now:
                    return self._take(max_bytes)
                if not self._chunks and self._eof_at <= now:
                    return b""
                with trio.move_on_at(self._chunks[0][0] if self._chunks else self._eof_at):
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
            await self._changed.wait()
            self._check_sender()

    def _check_sender(self) -> None:
        if self._sender_closed:
            raise trio.ClosedResourceError("this side of the stream is closed")
        if self._finished:
            raise trio.ClosedResourceError("the end of the stream was already sent")
        if self._receiver_closed:
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


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

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
        self._incoming.close_receiver()
        await trio.lowlevel.checkpoint()


class MemoryNetwork:
    """A world of machines; `delay` gives the one-way seconds between two IP addresses."""

    def __init__(self, *, delay: Delay | None = None) -> None:
        self._delay = delay or (lambda _source, _target: 0.0)
        self.listeners: dict[Multiaddr, MemoryListener] = {}
        self._ports = itertools.count(_EPHEMERAL_PORTS)
        self._machines = itertools.count(1)

    def add_machine(self) -> "MemoryTransport":
        """Return the transport of a new machine, with an IP address in 10.0.0.0/8."""
        number = next(self._machines)
        return MemoryTransport(self, f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")

    def free_address(self, ip: str) -> Multiaddr:
        """Return an address on a port nobody has used."""
        return tcp_address(ip, next(self._ports))

    def one_way(self, source: str, target: str) -> Callable[[], float]:
        """Return a function that draws the delay of one transmission."""
        return lambda: self._delay(source, target)


class MemoryTransport(Transport):
    """One machine's transport."""

    def __init__(self, network: MemoryNetwork, ip: str) -> None:
        self.network = network
        self.ip = ip

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return [protocol.name for protocol in address.protocols()] == ["ip4", "tcp"]

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> RawConnection:  # noqa: ARG002  # every dial has a port of its own
        """See `Transport`; takes one round trip."""
        if not self.can_dial(address):
            raise DialError(f"{address} is not an address of the memory network")
        target = str(address.value_for_protocol("ip4"))
        there = self.network.one_way(self.ip, target)
        back = self.network.one_way(target, self.ip)
        await trio.sleep(there())
        listener = self.network.listeners.get(address)
        local = self.network.free_address(self.ip)
        outgoing, incoming = _Pipe(there), _Pipe(back)
        remote = RawConnection(
            stream=MemoryStream(incoming, outgoing), local_address=address, remote_address=local
        )
        if listener is None or not listener.offer(remote):
            raise DialError(f"{address} cannot be reached: connection refused")
        ours = MemoryStream(outgoing, incoming)
        try:
            await trio.sleep(back())
        except trio.Cancelled:
            await ours.aclose()
            raise
        return RawConnection(stream=ours, local_address=local, remote_address=address)

    async def listen(self, address: Multiaddr) -> Listener:
        """See `Transport`."""
        await trio.lowlevel.checkpoint()
        if not self.can_dial(address) or address.value_for_protocol("ip4") != self.ip:
            raise InvalidAddressError(f"{address} is not an address of this machine ({self.ip})")
        if address.value_for_protocol("tcp") == "0":
            address = self.network.free_address(self.ip)
        if address in self.network.listeners:
            raise AddressInUseError(f"{address} is taken; listen on another port")
        listener = MemoryListener(self.network, address)
        self.network.listeners[address] = listener
        return listener


class MemoryListener(Listener):
    """A listener of the memory network."""

    def __init__(self, network: MemoryNetwork, address: Multiaddr) -> None:
        self._network = network
        self._address = address
        self._send, self._receive = trio.open_memory_channel[RawConnection](MAX_PENDING_ACCEPTS)

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        return [self._address]

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
        if self._network.listeners.get(self._address) is self:
            del self._network.listeners[self._address]
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError):
            while True:
                await self._receive.receive_nowait().stream.aclose()
        self._receive.close()
        self._send.close()
        await trio.lowlevel.checkpoint()
