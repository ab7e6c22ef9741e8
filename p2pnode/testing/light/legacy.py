"""Light fidelity: hosts whose streams are memory pipes, without Noise or Yamux.

`LightNetwork` joins `LightHost`s by peer id. They implement `p2pnode.host.Host`, so every protocol
service runs on them unchanged; a link's delay passes on trio's clock, virtual or real.
"""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.errors import (
    ConnectionClosedError,
    DialError,
    P2PNodeError,
    ProtocolNotSupportedError,
    StreamResetError,
)
from p2pnode.events import EventBus
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    PeerIdentified,
    Stream,
    StreamHandler,
)
from p2pnode.host.manager import ProtectedPeers
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

PIPE_BYTES = 256 * 1024  # in flight per direction, as Yamux's initial window


class _Pipe:
    """One direction of a stream: a bounded byte queue whose chunks arrive after a delay."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self._delay = delay
        self._chunks: list[tuple[float, bytes]] = []
        self._size = 0
        self._eof_at = math.inf
        self._reset: P2PNodeError | None = None
        self._changed = trio.Event()
        self._reader_gone = False

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def reset(self, error: P2PNodeError) -> None:
        self._reset = self._reset or error
        self._notify()

    def discard(self) -> None:
        """The reader is gone: take and drop everything."""
        self._reader_gone = True
        self._chunks.clear()
        self._size = 0
        self._notify()

    def finish(self) -> None:
        self._eof_at = min(self._eof_at, trio.current_time() + self._delay())
        self._notify()

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while True:
            if self._reset is not None:
                raise self._reset
            if self._eof_at < math.inf:
                raise trio.ClosedResourceError("the stream's sending side is closed")
            room = PIPE_BYTES - self._size
            if room > 0 or not view:
                chunk = bytes(view[:room])
                view = view[room:]
                if chunk and not self._reader_gone:
                    due = trio.current_time() + self._delay()
                    due = max(due, self._chunks[-1][0]) if self._chunks else due
                    self._chunks.append((due, chunk))
                    self._size += len(chunk)
                    self._notify()
                if not view:
                    await trio.lowlevel.checkpoint()
                    return
            await self._changed.wait()

    async def receive(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._reset is not None:
                raise self._reset
            now = trio.current_time()
            if self._chunks and self._chunks[0][0] <= now:
                due, chunk = self._chunks.pop(0)
                if len(chunk) > max_bytes:
                    self._chunks.insert(0, (due, chunk[max_bytes:]))
                    chunk = chunk[:max_bytes]
                self._size -= len(chunk)
                self._notify()
                return chunk
            if not self._chunks and self._eof_at <= now:
                return b""
            due = self._chunks[0][0] if self._chunks else self._eof_at
            with trio.move_on_at(due):
                await self._changed.wait()


class LightStream(Stream):
    """A stream made of two pipes."""

    connection: "LightConnection"

    def __init__(
        self, connection: "LightConnection", protocol: str, outgoing: _Pipe, incoming: _Pipe
    ) -> None:
        self.connection = connection
        self.protocol = protocol
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Stream`."""
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        try:
            await self._outgoing.send(bytes(data))
        except trio.Cancelled:
            self.reset()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `Stream`."""
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        return await self._incoming.receive(max_bytes or PIPE_BYTES)

    async def send_eof(self) -> None:
        """See `Stream`."""
        self._outgoing.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See `Stream`."""
        if not self._closed:
            self._closed = True
            self._outgoing.finish()
            self._incoming.discard()
            self.connection.forget(self)
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """See `Stream`."""
        self.fail(StreamResetError(f"the stream was reset (code {code})"))

    def fail(self, error: P2PNodeError) -> None:
        """End both directions with `error`."""
        self._outgoing.reset(error)
        self._incoming.reset(error)
        self.connection.forget(self)


class LightConnection(Connection):
    """One end of a connection; `other` is the far end."""

    other: "LightConnection"

    def __init__(self, host: "LightHost", remote: "LightHost", outbound: bool) -> None:
        self.host = host
        self.peer_id = remote.peer_id
        self.public_key = remote.key.public_key
        self.direction = "outbound" if outbound else "inbound"
        self.local_address = host.addresses[0]
        self.remote_address = remote.addresses[0]
        self.opened_at = trio.current_time()
        self._remote = remote
        self._streams: dict[
            LightStream, None
        ] = {}  # a set would end them in another order each run
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """See `Connection`."""
        return self._closed

    async def open_stream(self, protocols: Sequence[str]) -> LightStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise ConnectionClosedError(f"the connection to {self.peer_id} is closed")
        name = next((each for each in protocols if each in self._remote.handlers), None)
        if name is None and len(protocols) > 1:
            raise ProtocolNotSupportedError(f"{self.peer_id} speaks none of {list(protocols)}")
        delay = self.host.network.delay_between(self.host, self._remote)
        there, back = _Pipe(delay), _Pipe(delay)
        ours = LightStream(self, name or protocols[0], there, back)
        if name is None:
            ours.fail(ProtocolNotSupportedError(f"{self.peer_id} does not speak {protocols[0]}"))
            return ours
        theirs = LightStream(self.other, name, back, there)
        self._streams[ours] = None
        self.other.adopt(theirs)
        self.host.network.count["streams"] += 1
        self._remote.serve(theirs)
        return ours

    def adopt(self, stream: LightStream) -> None:
        """Take in the far end's stream."""
        self._streams[stream] = None

    def forget(self, stream: LightStream) -> None:
        """Drop a finished stream."""
        self._streams.pop(stream, None)

    def end(self, reason: str) -> None:
        """Close both ends at once."""
        for side in (self, self.other):
            side.end_side(reason)

    def end_side(self, reason: str) -> None:
        """Close this end."""
        if self._closed:
            return
        self._closed = True
        for stream in tuple(self._streams):
            stream.fail(ConnectionClosedError(f"the connection to {self.peer_id} ended: {reason}"))
        self.host.drop(self)
        self.host.events.emit(ConnectionEnded(connection=self, reason=reason))

    async def aclose(self) -> None:
        """See `Connection`."""
        self.end("closed")
        await trio.lowlevel.checkpoint()


class LightHost(Host):
    """A host on a `LightNetwork`."""

    def __init__(self, network: "LightNetwork", key: PrivateKey, address: Multiaddr) -> None:
        self.network = network
        self.key = key
        self.peer_id = key.peer_id
        self.events = EventBus()
        self.handlers: dict[str, StreamHandler] = {}
        self._address = address
        self._known: dict[PeerId, tuple[tuple[Multiaddr, ...], float]] = {}
        self._connections: dict[PeerId, LightConnection] = {}
        self._protected = ProtectedPeers()

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Host`."""
        return [self._address]

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """See `Host`."""
        self.handlers[protocol] = handler

    def remove_handler(self, protocol: str) -> None:
        """See `Host`."""
        self.handlers.pop(protocol, None)

    def add_addresses(self, peer_id: PeerId, addresses: Sequence[Multiaddr], ttl: float) -> None:
        """See `Host`."""
        if addresses:
            self._known[peer_id] = (tuple(addresses), trio.current_time() + ttl)

    def addresses_of(self, peer_id: PeerId, *, hearsay: bool = True) -> list[Multiaddr]:  # noqa: ARG002  # see below
        """See `Host`; whoever says it, the addresses of this network were true once."""
        addresses, until = self._known.get(peer_id, ((), 0.0))
        return list(addresses) if until > trio.current_time() else []

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """See `Host`: what is served now, as if an identify push had just arrived."""
        remote = self.network.hosts.get(peer_id)
        return (
            frozenset(remote.handlers) if remote and peer_id in self._connections else frozenset()
        )

    def connection_to(self, peer_id: PeerId) -> LightConnection | None:
        """See `Host`."""
        return self._connections.get(peer_id)

    def connections(self) -> list[Connection]:
        """See `Host`."""
        return list(self._connections.values())

    def protect(self, peer_id: PeerId, tag: str) -> None:
        """See `Host`; nothing is ever trimmed here."""
        self._protected.protect(peer_id, tag)

    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """See `Host`."""
        return self._protected.unprotect(peer_id, tag)

    def is_protected(self, peer_id: PeerId) -> bool:
        """See `Host`."""
        return peer_id in self._protected

    async def connect(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr] = (),
        *,
        timeout: float | None = None,
        insist: bool = False,  # noqa: ARG002  # nothing is backed off here
    ) -> LightConnection:
        """See `Host`."""
        await trio.lowlevel.checkpoint()
        if (existing := self._connections.get(peer_id)) is not None:
            return existing
        candidates = [*addresses, *self.addresses_of(peer_id)]
        if not candidates:
            raise DialError(f"no address of {peer_id} is known")
        remote = self.network.hosts.get(peer_id)
        if remote is None or not any(each in remote.addresses for each in candidates):
            raise DialError(f"{peer_id} does not answer at {candidates[0]}")
        with trio.move_on_after(math.inf if timeout is None else timeout) as scope:
            await trio.sleep(3 * self.network.delay_between(self, remote)())
        if scope.cancelled_caught:
            raise DialError(f"{peer_id} did not answer within {timeout} s")
        if (existing := self._connections.get(peer_id)) is not None:
            return existing
        if not remote.up or not self.up:
            raise DialError(f"{peer_id} does not answer at {candidates[0]}")
        ours = LightConnection(self, remote, outbound=True)
        ours.other = LightConnection(remote, self, outbound=False)
        ours.other.other = ours
        for side in (ours, ours.other):
            side.host.admit(side)
        for side in (ours, ours.other):
            side.host.announce(side)
        return ours

    @property
    def up(self) -> bool:
        """Whether the host is on the network."""
        return self.network.hosts.get(self.peer_id) is self

    def admit(self, connection: LightConnection) -> None:
        """Register one end of a new connection."""
        self._connections[connection.peer_id] = connection

    def announce(self, connection: LightConnection) -> None:
        """Emit what a real host would after its handshakes and identify."""
        remote = connection.other.host
        self.add_addresses(remote.peer_id, remote.addresses, math.inf)
        self.events.emit(ConnectionOpened(connection=connection))
        self.events.emit(
            PeerIdentified(
                peer_id=remote.peer_id,
                protocols=frozenset(remote.handlers),
                addresses=tuple(remote.addresses),
                agent="p2pnode/light",
                observed_address=None,
            )
        )

    def drop(self, connection: LightConnection) -> None:
        """Forget an ended connection."""
        if self._connections.get(connection.peer_id) is connection:
            del self._connections[connection.peer_id]

    def serve(self, stream: LightStream) -> None:
        """Run the handler of an inbound stream."""
        self.network.nursery.start_soon(self._handle, stream, self.handlers[stream.protocol])

    async def _handle(self, stream: LightStream, handler: StreamHandler) -> None:
        try:
            await handler(stream)
        except (P2PNodeError, trio.ClosedResourceError):
            stream.reset()
        else:
            await stream.aclose()

    def crash(self) -> None:
        """Leave the network without a word."""
        self.network.hosts.pop(self.peer_id, None)
        for connection in tuple(self._connections.values()):
            connection.end("the peer crashed")


class LightNetwork:
    """Hosts that reach each other by memory; `delay` gives each link's one-way seconds."""

    def __init__(
        self, nursery: trio.Nursery, delay: Callable[[LightHost, LightHost], float] | None = None
    ) -> None:
        self.nursery = nursery
        self.hosts: dict[PeerId, LightHost] = {}
        self.count: Counter[str] = Counter()
        self._delay = delay or (lambda _from, _to: 0.0)
        self._numbers = itertools.count(1)

    def add_host(self, key: PrivateKey | None = None) -> LightHost:
        """Create a host with an address of its own; the key is made from its number by default."""
        number = next(self._numbers)
        key = key or PrivateKey.from_seed(number.to_bytes(32, "big"))
        address = Multiaddr(
            f"/ip4/127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/1"
        )
        host = LightHost(self, key, address)
        self.hosts[host.peer_id] = host
        return host

    def delay_between(self, source: LightHost, target: LightHost) -> Callable[[], float]:
        """Return a function that draws one one-way delay of the link."""
        return lambda: self._delay(source, target)


@contextlib.asynccontextmanager
async def light_network(
    delay: Callable[[LightHost, LightHost], float] | None = None,
) -> AsyncIterator[LightNetwork]:
    """Run a `LightNetwork` whose handlers end with the block."""
    async with trio.open_nursery() as nursery:
        yield LightNetwork(nursery, delay)
        nursery.cancel_scope.cancel()
