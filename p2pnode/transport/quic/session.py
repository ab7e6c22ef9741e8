"""A QUIC session as its users meet it. The endpoint's tasks move its datagrams.

Whatever changes a session calls `kick`, and the endpoint sends what there is to send at once.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError, P2PNodeError, ProtocolError
from p2pnode.transport.quic.core import INITIAL_WINDOW, QuicCore
from p2pnode.transport.quic.state import EventKind, StreamEvent, StreamState
from p2pnode.transport.quic.stream import QuicStream
from p2pnode.transport.session import Account, MuxedSession, MuxedStream
from p2pnode.transport.wakeup import Signal
from p2pnode.wire.error_codes import ConnectionCode


class Carrier(Protocol):
    """What moves a session's datagrams: `p2pnode.transport.quic.carrier`."""

    def transmit(self, session: "QuicSession", /) -> None:
        """Send what the session has to send within a turn, and set its timer."""

    def transmit_now(self, session: "QuicSession", /) -> None:
        """Send what the session has to send at once, and set its timer."""

    def rearm(self, session: "QuicSession", /) -> None:
        """Set its timer."""


class QuicSession(MuxedSession):
    """A session of one connection.

    Args:
        core: its state.
        carrier: moves its datagrams.
        settings: limits and timeouts.

    Attributes:
        core: its state.
        established: set when the peer has proven who it is, or never will.
    """

    early_bytes = INITIAL_WINDOW

    def __init__(self, core: QuicCore, carrier: Carrier, settings: NetworkSettings) -> None:
        self.core = core
        self.established = trio.Event()
        self.send_buffer = settings.quic_send_buffer
        self._settings = settings
        self._carrier = carrier
        self._streams: dict[StreamState, QuicStream] = {}
        self._to_accept: dict[StreamState, QuicStream] = {}
        self._acceptable = Signal()
        self._progress = Signal()
        self._ended = trio.Event()
        self._serve: Callable[[MuxedStream], object] | None = None
        self._closes = False
        self._reason: P2PNodeError | None = None  # why, when this side did not want the end

    # --- for the endpoint -----------------------------------------------------------------------

    def kick(self) -> None:
        """Send what there is to send."""
        self._carrier.transmit(self)

    def rearm(self) -> None:
        """Note that something may have to happen earlier than was known."""
        self._carrier.rearm(self)

    def dispatch(self, events: Sequence[StreamEvent]) -> None:
        """Pass events on to those who wait for them."""
        for event in events:
            if event.kind is EventKind.OPENED:
                stream = QuicStream(self, event.stream)
                self._streams[event.stream] = self._to_accept[event.stream] = stream
                if self._serve is not None:
                    self._serve(self._accept())
                else:
                    self._acceptable.set()
            elif event.kind is EventKind.FORGOTTEN:
                self._streams.pop(event.stream, None)
            elif (waiting := self._streams.get(event.stream)) is not None:
                if event.kind is EventKind.READABLE:
                    waiting.wake_reader()
                else:
                    waiting.wake_writer()
        self._progress.set()
        core = self.core
        if core.identity is not None and not self.established.is_set():
            self.early_bytes = min(core.engine.early_bytes, self.send_buffer)
            self.established.set()
        if core.failure is not None and not self._ended.is_set():
            if not self._closes:
                self._reason = self._reason or core.failure
            self._ended.set()
            self.established.set()
            self._acceptable.set()

    # --- for its users --------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """See `MuxedSession`."""
        return self.core.failure is not None

    @property
    def streams(self) -> int:
        """See `MuxedSession`."""
        return len(self.core.streams)

    @property
    def bytes_sent(self) -> int:
        """See `MuxedSession`."""
        return self.core.bytes_sent

    @property
    def bytes_received(self) -> int:
        """See `MuxedSession`."""
        return self.core.bytes_received

    @property
    def rtt(self) -> float | None:
        """See `MuxedSession`."""
        return self.core.engine.round_trip

    @property
    def holdings(self) -> dict[str, int]:
        """See `MuxedSession`."""
        objects = len(self._streams) + len(self._to_accept)
        return {"stream objects": objects, **self.core.holdings}

    def charge_to(self, account: Account) -> None:
        """See `MuxedSession`."""
        self.dispatch(self.core.charge_to(account, trio.current_time()))
        self.kick()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `MuxedSession`; the endpoint does the work, and this waits for the end."""
        task_status.started()
        try:
            await self._ended.wait()
        finally:
            self._close(ConnectionClosedError("this side closed the connection"))
        if self._reason is not None:
            raise self._reason

    async def open_stream(self) -> QuicStream:
        """See `MuxedSession`; waits a while when the peer takes no more streams now."""
        await trio.lowlevel.checkpoint()
        core = self.core
        with trio.move_on_after(self._settings.negotiation_timeout):
            while core.failure is None and not core.may_open_stream:
                await self._progress.wait()
        state = core.open_stream(trio.current_time())
        stream = self._streams[state] = QuicStream(self, state)
        return stream

    async def serve(self, start: Callable[[MuxedStream], object]) -> NoReturn:
        """See `MuxedSession`."""
        await trio.lowlevel.checkpoint()
        self._serve = start
        try:
            while self._to_accept:
                start(self._accept())
            while self.core.failure is None:
                await self._acceptable.wait()
        finally:
            self._serve = None
        raise ConnectionClosedError(str(self.core.failure))

    def _accept(self) -> QuicStream:
        return self._to_accept.pop(next(iter(self._to_accept)))

    async def refuse(self, code: int) -> None:
        """See `MuxedSession`."""
        self._close(ConnectionClosedError("this side refused the connection"), code)
        await trio.lowlevel.checkpoint()

    def abort(self, error: ProtocolError) -> None:
        """See `MuxedSession`."""
        if self.core.failure is None:
            self._reason = error
            self._close(error, ConnectionCode.PROTOCOL_VIOLATION)

    async def aclose(self) -> None:
        """See `MuxedSession`; what was sent is confirmed, unless that takes too long."""
        self._carrier.transmit_now(self)
        try:
            with trio.move_on_after(self._settings.close_timeout):
                while self.core.failure is None and not self.core.is_flushed:
                    await self._progress.wait()
        finally:
            self._close(ConnectionClosedError("this side closed the connection"))
        await trio.lowlevel.checkpoint()

    def _close(self, error: P2PNodeError, code: int = ConnectionCode.NONE) -> None:
        if self.core.failure is None:
            self._closes = True
            self._carrier.transmit_now(self)  # what a reset, or an end, has left
            self.dispatch(self.core.close(error, code))
            self._carrier.transmit_now(self)
