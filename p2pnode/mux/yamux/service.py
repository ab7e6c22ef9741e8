"""A Yamux session over a channel: one task reads, one writes, and streams wait for both.

A sender's buffer goes to the channel as it is; `send_all` returns when the channel has taken it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    StreamResetError,
)
from p2pnode.mux.yamux.core import Buffer, EventKind, StreamEvent, StreamState, YamuxCore
from p2pnode.mux.yamux.frames import GoAwayCode

_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
_ENDS: Final = (P2PNodeError, *_BROKEN)


class Channel(Protocol):
    """What a session runs over: a byte stream that takes several buffers at once."""

    async def send_many(self, buffers: Sequence[Buffer]) -> None:
        """Send the buffers in order."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received bytes, or b"" at the end."""

    async def aclose(self) -> None:
        """Close the channel."""


class _Signal:
    """Wakes all who wait, again and again."""

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    async def wait(self) -> None:
        await self._lot.park()

    def set(self) -> None:
        self._lot.unpark_all()


class YamuxStream(trio.abc.HalfCloseableStream):
    """One stream of a session."""

    def __init__(self, connection: "YamuxConnection", state: StreamState) -> None:
        self._connection = connection
        self._core = connection.core
        self._state = state
        self._readable = _Signal()
        self._writable = _Signal()
        self._send_lock = trio.StrictFIFOLock()
        self._closed = False

    @property
    def stream_id(self) -> int:
        """The stream's number within its session."""
        return self._state.stream_id

    def wake(self, kind: EventKind) -> None:
        """Tell those who wait that something changed."""
        (self._readable if kind is EventKind.READABLE else self._writable).set()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        if self._state.failure is not None:
            raise self._state.failure

    async def send_all(self, data: Buffer) -> None:
        """Send `data`; returns when the channel has taken all of it.

        Raises:
            StreamResetError: the stream was reset.
            ConnectionClosedError: the session ended.
            trio.ClosedResourceError: this side has finished or closed the stream.
        """
        async with self._send_lock:
            self._check()
            if self._state.finish_wanted:
                raise trio.ClosedResourceError("the stream's sending side is closed")
            if not data:
                return
            self._core.send(self._state, data)
            self._connection.kick()
            await self._wait_sent()

    async def _wait_sent(self) -> None:
        try:
            while self._state.failure is None and not self._state.flushed:
                await self._writable.wait()
        except trio.Cancelled:
            self.reset()
            raise
        if self._state.failure is not None:
            raise self._state.failure

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        while self._state.failure is None and self._state.send_window == 0:
            await self._writable.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received bytes; b"" at the end.

        Raises:
            StreamResetError: the stream was reset.
            ConnectionClosedError: the session ended.
            trio.ClosedResourceError: this side has closed the stream.
        """
        return bytes(await self._take(max_bytes))

    async def receive_some_into(self, buffer: memoryview) -> int:
        """Copy received bytes to the front of `buffer`; returns how many, 0 at the end.

        Raises as `receive_some` does.
        """
        piece = await self._take(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    async def _take(self, max_bytes: int | None) -> Buffer:
        state = self._state
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if state.received:
                piece = self._core.take(state, max_bytes, trio.current_time())
                self._connection.kick()  # there may be a window to grant
                return piece
            if state.remote_finished:
                return b""
            self._core.greet(state)
            self._connection.kick()
            await self._readable.wait()

    async def send_eof(self) -> None:
        """Finish our direction; the peer's stays open."""
        async with self._send_lock:
            self._check()
            self._core.finish(self._state)
            self._connection.kick()

    async def aclose(self) -> None:
        """Finish our direction and drop what still comes; never waits for the peer."""
        if not self._closed:
            self._closed = True
            if self._state.failure is None:
                self._core.finish(self._state)
                if not self._state.remote_finished:
                    self._core.discard(self._state, trio.current_time())
                self._connection.kick()
            self._readable.set()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """Abort both directions at once."""
        error = StreamResetError(f"this side reset the stream (code {code})")
        self._connection.dispatch(self._core.reset(self._state, error))
        self._connection.kick()


class YamuxConnection:
    """A session; `run` does its work until it ends or is cancelled.

    Args:
        channel: the secured connection.
        is_client: whether we dialled; decides who has the odd stream ids.
        settings: windows, limits and timeouts.
    """

    def __init__(
        self, channel: Channel, *, is_client: bool, settings: NetworkSettings | None = None
    ) -> None:
        self._settings = settings or NetworkSettings()
        self._channel = channel
        self.core = YamuxCore(is_client=is_client, settings=self._settings, now=trio.current_time())
        self._streams: dict[int, YamuxStream] = {}
        self._accepted: deque[YamuxStream] = deque()
        self._acceptable = _Signal()
        self._output = _Signal()
        self._pongs = _Signal()
        self._writing = False
        self._written = _Signal()
        self._cancel_scope = trio.CancelScope()

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""
        return self.core.failure is not None

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self.core.streams)

    @property
    def bytes_sent(self) -> int:
        """How many bytes of stream data went out."""
        return self.core.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes of stream data came in."""
        return self.core.bytes_received

    @property
    def rtt(self) -> float | None:
        """The shortest recent round trip in seconds, once known."""
        return self.core.round_trip

    def kick(self) -> None:
        """Wake the writer if there is something to write."""
        if self.core.has_output:
            self._output.set()

    def dispatch(self, events: Sequence[StreamEvent]) -> None:
        """Pass events on to those who wait for them."""
        for event in events:
            if event.kind is EventKind.OPENED:
                stream = YamuxStream(self, self.core.streams[event.stream_id])
                self._streams[event.stream_id] = stream
                self._accepted.append(stream)
                self._acceptable.set()
            elif event.kind is EventKind.FORGOTTEN:
                self._streams.pop(event.stream_id, None)
            elif event.stream_id in self._streams:
                self._streams[event.stream_id].wake(event.kind)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the session until it ends; then every stream has failed.

        A rule broken by the peer ends it with a go-away frame and is raised.

        Raises:
            ProtocolError: the peer broke a rule of Yamux or of the channel beneath.
            ConnectionClosedError: the channel broke, or the peer stopped answering.
        """
        reason: P2PNodeError = ConnectionClosedError("the connection was closed")
        try:
            with self._cancel_scope:
                task_status.started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
                    await self._read()
                    nursery.cancel_scope.cancel()
                reason = ConnectionClosedError("the peer closed the connection")
        except BaseExceptionGroup as group:
            expected, others = group.split(_ENDS)
            if expected is None or others is not None:
                raise
            reason = _first(expected)
            if isinstance(reason, ProtocolError):
                await self._say_goodbye(GoAwayCode.PROTOCOL_ERROR)
            raise reason from None
        finally:
            self.dispatch(self.core.close(reason))
            self._acceptable.set()
            self._pongs.set()
            self._written.set()  # whoever waits in `aclose` has nothing left to wait for
            with trio.CancelScope(shield=True, deadline=self._close_deadline()):
                await self._channel.aclose()

    def _close_deadline(self) -> float:
        return trio.current_time() + self._settings.close_timeout

    async def _say_goodbye(self, code: GoAwayCode) -> None:
        self.core.go_away(code)
        with trio.CancelScope(shield=True, deadline=self._close_deadline()):
            try:
                await self._channel.send_many(self.core.next_frames(0).buffers)
            except _BROKEN:
                return  # the peer hears of it by the end of the connection

    async def _read(self) -> None:
        while data := await self._channel.receive_some():
            self.dispatch(self.core.receive_data(data, trio.current_time()))
            self._pongs.set()
            self.kick()

    async def _write(self) -> None:
        while True:
            while not self.core.has_output:
                await self._output.wait()
            output = self.core.next_frames(self._settings.yamux_write_budget)
            if output.buffers:
                self._writing = True
                await self._channel.send_many(output.buffers)
                self._writing = False
                self._written.set()
            for stream in output.drained:
                stream.flushed = True
                if stream.stream_id in self._streams:
                    self._streams[stream.stream_id].wake(EventKind.WRITABLE)
            self.dispatch(output.events)

    async def _keep_time(self) -> None:
        while True:
            now = trio.current_time()
            self.dispatch(self.core.handle_timeout(now))
            self.kick()
            # Deadlines move while we sleep, but only away, or by a stream that closes or a ping
            # that is sent; those are checked at least this often.
            ahead = min(self.core.next_deadline() - now, self._settings.keepalive_timeout)
            await trio.sleep(max(ahead, 0.0))

    async def open_stream(self) -> YamuxStream:
        """Open a stream; nothing is sent before its first data.

        Raises:
            ConnectionClosedError: the session has ended or is ending.
            ResourceLimitError: too many streams are open.
        """
        await trio.lowlevel.checkpoint()
        state = self.core.open_stream(trio.current_time())
        stream = YamuxStream(self, state)
        self._streams[state.stream_id] = stream
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Wait for the peer to open a stream.

        Raises:
            ConnectionClosedError: the session ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._accepted:
            if self.core.failure is not None:
                raise ConnectionClosedError(str(self.core.failure))
            await self._acceptable.wait()
        stream = self._accepted.popleft()
        self.core.accept(stream._state)  # noqa: SLF001  # the session owns its streams' states
        return stream

    async def ping(self) -> float:
        """Measure one round trip, in seconds.

        Raises:
            ConnectionClosedError: the session ended before the answer.
        """
        sent_at = trio.current_time()
        number = self.core.ping(sent_at)
        self.kick()
        while self.core.is_waiting_for(number):
            if self.core.failure is not None:
                raise ConnectionClosedError(str(self.core.failure))
            await self._pongs.wait()
        return trio.current_time() - sent_at

    async def aclose(self) -> None:
        """Say goodbye and end the session; its streams fail with `ConnectionClosedError`."""
        if self.core.failure is None:
            self.core.go_away(GoAwayCode.NORMAL)
            self.kick()
            with trio.move_on_after(self._settings.close_timeout):
                while (self.core.has_output or self._writing) and self.core.failure is None:
                    await self._written.wait()
            self.dispatch(self.core.close(ConnectionClosedError("this side closed it")))
        self._cancel_scope.cancel()
        await trio.lowlevel.checkpoint()


def _first(group: BaseExceptionGroup[BaseException]) -> P2PNodeError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, P2PNodeError):
        return error
    return ConnectionClosedError("the connection broke")
