"""Light connections: two ends that know of each other only what the virtual network tells."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import ConnectionClosedError, ProtocolNotSupportedError
from p2pnode.host import Connection
from p2pnode.host.interfaces import Direction
from p2pnode.testing.light.streams import OVERHEAD_BYTES, LightStream, Pipe
from p2pnode.testing.network import Endpoint, Flow, Machine, VirtualNetwork, Wire
from p2pnode.wire.addresses import tcp_address

if TYPE_CHECKING:
    from p2pnode.testing.light.host import LightHost

RESET: Final = "the connection was reset"
CLOSED_BY_PEER: Final = "the peer closed the connection"
_SILENT: Final = "the peer stopped answering"


class LightWire(Wire):
    """The wire of one connection, which knows both ends."""

    __slots__ = ("ends",)

    def __init__(
        self,
        network: VirtualNetwork,
        machines: tuple[Machine, Machine],
        endpoints: tuple[Endpoint, Endpoint],
    ) -> None:
        super().__init__(network, machines, endpoints)
        self.ends: tuple[LightConnection, ...] = ()

    def receive_held(self, now: float) -> None:
        """See `Wire`; keep-alives notice it in a while."""
        for end in self.ends:
            end.receive_held(now)

    def receive_resumed(self, now: float) -> None:
        """See `Wire`."""
        for end in self.ends:
            end.receive_resumed(now)

    def receive_reset(self, end: int, at: float) -> None:
        """See `Wire`."""
        connection = self.ends[end]
        connection.host.world.timers.at(at, lambda: connection.finish(RESET))


class LightConnection(Connection):
    """One end of a connection.

    Attributes:
        host: whose end it is.
        remote: the host at the far end.
        last_used: when a stream was last open on it, or it was opened.
        flow: what this end sends.
    """

    is_relayed = is_limited = False  # light connections are always direct

    __slots__ = (
        "__weakref__",
        "_held",
        "_is_closed",
        "_is_known",
        "_streams",
        "_wire",
        "direction",
        "flow",
        "host",
        "last_used",
        "local_address",
        "opened_at",
        "other",
        "peer_id",
        "public_key",
        "remote",
        "remote_address",
    )

    other: "LightConnection"

    def __init__(
        self,
        host: "LightHost",
        remote: "LightHost",
        wire: LightWire,
        direction: Direction,
    ) -> None:
        self.host = host
        self.remote = remote
        self.peer_id = remote.peer_id
        self.public_key = remote.public_key
        self.direction = direction
        dialled = direction == "outbound"
        self.local_address = host.listening
        self.opened_at = self.last_used = trio.current_time()
        self._wire = wire
        self.flow: Flow = wire.flows[0 if dialled else 1]
        self._streams: dict[LightStream, None] | None = None  # most connections have none
        self._held: list[Callable[[], object]] | None = None  # for when the wire resumes
        self._is_closed = False
        self._is_known = False  # to the host; those of strangers never are

    def __getattr__(self, name: str) -> Multiaddr:
        """Make the remote address when it is first asked for: few of a million ever are."""
        if name != "remote_address":
            raise AttributeError(name)
        far = self._wire.endpoints[1 if self.direction == "outbound" else 0]
        self.remote_address = tcp_address(far.ip, far.port)
        return self.remote_address

    @property
    def is_closed(self) -> bool:
        """See `Connection`."""
        return self._is_closed

    @property
    def streams(self) -> Sequence[LightStream]:
        """Those that are open."""
        return tuple(self._streams or ())

    async def open_stream(
        self,
        protocols: Sequence[str],
        *,
        allow_limited: bool = False,  # noqa: ARG002  # none is limited
    ) -> LightStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_closed:
            raise ConnectionClosedError(f"the connection to {self.peer_id} is closed")
        protocol = protocols[0]
        if len(protocols) > 1:
            protocol = await self._negotiate(protocols)
        timers = self.host.world.timers
        there, back = Pipe(self.flow, timers), Pipe(self.other.flow, timers)
        stream = LightStream(self, protocol, there, back)
        self._adopt(stream)
        return stream

    async def _negotiate(self, protocols: Sequence[str]) -> str:
        """Take a round trip to agree."""
        for flow in (self.flow, self.other.flow):
            due = flow.due(OVERHEAD_BYTES, trio.current_time())
            await self.host.world.timers.sleep_until(due)
        if self._is_closed:
            raise ConnectionClosedError(f"the connection to {self.peer_id} is closed")
        for protocol in protocols:
            if protocol in self.remote.handlers:
                return protocol
        raise ProtocolNotSupportedError(f"{self.peer_id} speaks none of {list(protocols)}")

    # --- for streams ----------------------------------------------------------------------------

    def mirror(self, stream: LightStream, outgoing: Pipe, incoming: Pipe) -> LightStream:
        """Make the far end of a stream that was opened here."""
        far = LightStream(self.other, stream.protocol, outgoing, incoming)
        far.far = stream
        return far

    def announce(self, stream: LightStream, far: LightStream, due: float) -> None:
        """Let the far end of a stream be served at `due`."""
        self._tell_at(due, lambda: self.other.receive_stream(stream, far))

    def tell(self, act: Callable[[], object]) -> None:
        """Have the far end do something when a message that says so arrives."""
        self._tell_at(self.flow.due(OVERHEAD_BYTES, trio.current_time()), act)

    def _tell_at(self, due: float, act: Callable[[], object]) -> None:
        if due < math.inf:
            self.host.world.timers.at(due, act)
        else:
            self._held = [*(self._held or ()), act]

    def receive_stream(self, opener: LightStream, stream: LightStream) -> None:
        """Serve a stream that the far end has opened."""
        if self._is_closed:
            return
        handler = self.host.handlers.get(stream.protocol)
        if handler is None:
            self.tell(opener.receive_refusal)
            return
        self._adopt(stream)
        self.host.serve(stream, handler)

    def _adopt(self, stream: LightStream) -> None:
        if not self._streams:
            self._streams = {}
            self.host.note_busy(self)
        self._streams[stream] = None

    def forget(self, stream: LightStream) -> bool:
        """Drop a finished stream; False if that was done before."""
        if not self._streams or stream not in self._streams:
            return False
        del self._streams[stream]
        if not self._streams:
            self._streams = None
            self.last_used = trio.current_time()
            if self._is_known and not self._is_closed:
                self.host.note_idle(self)
        return True

    # --- the wire -------------------------------------------------------------------------------

    def receive_held(self, now: float) -> None:
        """Note that nothing gets through, which the next keep-alive will show."""
        for stream in self.streams:
            stream.hold(now)
        settings = self.host.settings
        rounds = math.floor((now - self.opened_at) / settings.keepalive_interval) + 1
        asks_at = self.opened_at + rounds * settings.keepalive_interval
        at = asks_at + settings.keepalive_timeout
        self.host.world.timers.at(at, lambda: self._check_silence(at))

    def receive_resumed(self, now: float) -> None:
        """Send again what did not arrive, or tell that this side is gone."""
        if self._is_closed:
            self.tell(lambda: self.other.finish(RESET))
        for stream in self.streams:
            stream.resume(now)
        held, self._held = self._held, None
        for act in held or ():
            self.tell(act)

    def _check_silence(self, now: float) -> None:
        if self.flow.is_held or self.flow.restarts_at > now:
            self.finish(_SILENT)

    def open(self) -> None:
        """Let this side know that the connection is there."""
        if self._is_closed:
            return
        if not self.host.is_running:
            self.close("this node is shutting down", told=RESET)
            return
        self.opened_at = self.last_used = trio.current_time()
        self._is_known = True
        self.host.add(self)
        network = self.host.world.network
        machines = self.host.machine, self.remote.machine
        round_trip = network.draw_delay(*machines) + network.draw_delay(*reversed(machines))
        due = network.arrival(self.opened_at + round_trip, self.opened_at)
        self.host.world.timers.at(due, self.receive_identity)

    def receive_identity(self) -> None:
        """Learn what the far end says of itself."""
        if not self._is_closed:
            self.host.receive_identity(self.remote)

    # --- the end --------------------------------------------------------------------------------

    def finish(self, reason: str) -> None:
        """End this side; the far side is not told."""
        if self._is_closed:
            return
        self._is_closed = True
        failure = ConnectionClosedError(f"the connection to {self.peer_id} ended: {reason}")
        for stream in self.streams:
            stream.fail(failure)
        self._streams = self._held = None
        if self._is_known:
            self.host.remove(self, reason)
        if self.other.is_closed:
            self._wire.close(trio.current_time())

    def close(self, reason: str, *, told: str = CLOSED_BY_PEER) -> None:
        """End this side for `reason`, and the far one for what it is told."""
        if not self._is_closed:
            self.tell(lambda: self.other.finish(told))
            self.finish(reason)

    async def aclose(self) -> None:
        """See `Connection`."""
        self.close("closed")
        await trio.lowlevel.checkpoint()
