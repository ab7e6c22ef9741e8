"""A Yamux session over a channel: one task reads, one writes, and streams wait for both.

A large buffer goes to the channel as it is, and `send_all` returns when the channel has taken it.
Small ones are copied, and up to a quarter MiB of them may wait for the writer, so that it packs
many into one write. But when nothing was written for a moment, whoever has something to send
writes it at once: waking the writer for a single message would cost more than the message.

A reader that knows how much it wants gives its buffer, and the channel decrypts straight into it.
"""

import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn, Protocol

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError, P2PNodeError, ProtocolError, StreamResetError
from p2pnode.mux.yamux.accounts import Account, StreamAccount
from p2pnode.mux.yamux.core import YamuxCore
from p2pnode.mux.yamux.frames import GoAwayCode
from p2pnode.mux.yamux.state import Buffer, EventKind, StreamEvent, StreamState

COPY_UP_TO: Final = 64 * 1024  # bytes; copying so much costs less than waiting for the writer
QUIET_TIME: Final = 50e-6  # seconds; a write that follows another one sooner waits for company
WRITE_AIM: Final = 384 * 1024  # bytes; a write of so much costs hardly more than the encryption
WORK_A_TURN: Final = 128  # frames: about a quarter of a millisecond, or what sealing 256 KiB takes
BUSY_ROUND: Final = 0.2e-3  # seconds that other tasks take between two turns of ours
STAND_BACK: Final = 3  # rounds left out where rounds are so long
PESTERED_PAUSE: Final = 0.005  # seconds between turns of a peer that sends many nuisances
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Channel(Protocol):
    """What a session runs over: `p2pnode.security.noise.SecureChannel`, step by step."""

    @property
    def is_flushed(self) -> bool:
        """Whether everything that was written has been sent."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Take buffers, in order, when all earlier ones are flushed; they may change afterwards."""

    def send_now(self) -> bool:
        """Send what can be sent without waiting; returns whether that was everything."""

    async def flush(self) -> None:
        """Send what was written."""

    async def wait_received(self) -> bool:
        """Wait until something can be read; returns False at the end."""

    def next_size(self) -> int:
        """Return how many bytes `read` would give, or -1 if they have to be waited for."""

    def read(self) -> bytes:
        """Return the next piece."""

    def read_into(self, buffer: memoryview) -> None:
        """Write the next piece to `buffer`, of exactly its size."""

    async def aclose(self) -> None:
        """Close the channel."""


class _Signal:
    """Wakes all who wait, again and again; half as dear as a `ParkingLot`, which counts them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[trio.lowlevel.Task] = []

    async def wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def set(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                trio.lowlevel.reschedule(task)


class YamuxStream(trio.abc.HalfCloseableStream):
    """One stream of a session."""

    def __init__(self, connection: "YamuxConnection", state: StreamState) -> None:
        self._connection = connection
        self._core = connection.core
        self._state = state
        self._readable = _Signal()
        self._writable = _Signal()
        self._send_lock = trio.StrictFIFOLock()
        self._receiving = False
        self._closed = False

    @property
    def stream_id(self) -> int:
        """The stream's number within its session."""
        return self._state.stream_id

    @property
    def account(self) -> StreamAccount:
        """What it is charged to."""
        return self._state.account

    def wake(self, kind: EventKind) -> None:
        """Tell those who wait that something changed."""
        (self._readable if kind is EventKind.READABLE else self._writable).set()

    async def send_all(self, data: Buffer) -> None:
        """Send `data`, which may change as soon as this returns.

        A send that is cancelled while it waits resets the stream. Sends of several tasks follow
        one another.

        Raises:
            StreamResetError: the stream was reset.
            ConnectionClosedError: the session ended.
            trio.ClosedResourceError: this side has finished or closed the stream.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._send_lock.locked():
            await self._send_lock.acquire()
        else:
            self._send_lock.acquire_nowait()
        try:
            self._check_open_for_sending()
            view = memoryview(data).cast("B")
            mutable = not isinstance(view.obj, bytes)
            if mutable and len(view) <= COPY_UP_TO:
                view, mutable = memoryview(bytes(view)), False
            if view:
                self._core.send(self._state, view)
                self._connection.kick()
            await self._wait_until_unwritten(0 if mutable else self._connection.send_buffer)
        finally:
            self._send_lock.release()
        # Others get their turn while the bytes travel, not before they leave.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_until_unwritten(self, limit: int) -> None:
        state = self._state
        try:
            while state.failure is None and state.unwritten > limit:
                await self._writable.wait()
        except trio.Cancelled:
            self.reset()
            raise
        if state.failure is not None:
            raise _again(state.failure)

    def _check_open_for_sending(self) -> None:
        if self._closed or (self._state.finish_wanted and self._state.failure is None):
            raise trio.ClosedResourceError("the stream's sending side is closed")
        if self._state.failure is not None:
            raise _again(self._state.failure)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`; raises as `send_all` does."""
        await trio.lowlevel.checkpoint()
        self._check_open_for_sending()
        while self._state.failure is None and self._state.unwritten > self._connection.send_buffer:
            await self._writable.wait()
        self._check_open_for_sending()

    def send_later(self, data: Buffer) -> None:
        """Queue a few bytes to go with what is sent next, or with the stream's acknowledgement.

        Whoever waits to read from the stream sends them, too.
        """
        if data:
            self._core.send_later(self._state, memoryview(data))

    def receive_nowait(self) -> bytes:
        """Return bytes that have come, b"" if none have; not while a task is receiving."""
        if not self._state.received:
            return b""
        piece = self._core.take(self._state, None, trio.current_time())
        self._connection.kick()  # there may be a window to grant
        return piece if isinstance(piece, bytes) else bytes(piece)

    def receive_into_nowait(self, buffer: memoryview) -> int:
        """Copy bytes that have come to the front of `buffer`; returns how many there were.

        Not while a task is receiving.
        """
        filled = 0
        now = trio.current_time()
        while self._state.received and filled < len(buffer):
            piece = self._core.take(self._state, len(buffer) - filled, now)
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._connection.kick()  # there may be a window to grant
        return filled

    def unread(self, data: bytes) -> None:
        """Put back the end of what was received, to be received again."""
        self._core.unread(self._state, data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received bytes; b"" at the end.

        Raises:
            StreamResetError: the stream was reset.
            ConnectionClosedError: the session ended before the stream did.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: this side has closed the stream.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        state = self._state
        self._begin_receiving()
        try:
            if state.received or self._is_at_end():
                await trio.lowlevel.checkpoint()
            while not state.received or self._closed:
                if self._is_at_end():
                    return b""
                await self._wait_readable()
        finally:
            self._receiving = False
        piece = self._core.take(state, max_bytes, trio.current_time())
        self._connection.kick()  # there may be a window to grant
        return piece if isinstance(piece, bytes) else bytes(piece)

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer`; returns how many bytes there were for it before the end.

        What has come when it is cancelled is lost. Raises as `receive_some` does.
        """
        state, core = self._state, self._core
        self._begin_receiving()
        try:
            missing = len(buffer)
            if state.received or self._is_at_end():
                await trio.lowlevel.checkpoint()
                missing -= self.receive_into_nowait(buffer)
            if not missing:
                return len(buffer)
            core.expect(state, buffer[-missing:])
            try:
                while state.destination and not self._is_at_end():
                    await self._wait_readable()
            finally:
                missing = core.stop_expecting(state)
        finally:
            self._receiving = False
        return len(buffer) - missing

    def _begin_receiving(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True

    def _is_at_end(self) -> bool:
        """Whether nothing more will come; raises if that is no clean end."""
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        if self._state.receive_failure is not None:
            raise _again(self._state.receive_failure)
        return self._state.remote_finished

    async def _wait_readable(self) -> None:
        self._core.greet(self._state)  # what is held back for company goes now
        self._connection.kick()
        await self._readable.wait()

    async def send_eof(self) -> None:
        """Finish our direction, behind all that was sent; the peer's stays open.

        Raises as `send_all` does, but finishing twice is allowed.
        """
        async with self._send_lock:
            if self._closed:
                raise trio.ClosedResourceError("the stream is closed")
            if self._state.failure is not None:
                raise _again(self._state.failure)
            self._core.finish(self._state)
            self._connection.kick()

    async def aclose(self) -> None:
        """Finish our direction and drop what still comes; never waits for the peer."""
        if not self._closed:
            self._closed = True
            self._connection.dispatch(self._core.discard(self._state, trio.current_time()))
            self._connection.kick()
            self._connection.rearm()
            self._readable.set()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """Abort both directions at once; `code` tells the peer why."""
        error = StreamResetError(f"this side reset the stream (code {code})")
        self._connection.dispatch(self._core.reset(self._state, error, code))
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
        self.send_buffer = self._settings.yamux_send_buffer
        self._streams: dict[StreamState, YamuxStream] = {}
        self._to_accept: dict[StreamState, YamuxStream] = {}
        self._acceptable = _Signal()
        self._output = _Signal()
        self._pongs = _Signal()
        self._written = _Signal()
        self._writing = False
        self._wrote_at = -math.inf
        self._running = False
        self._serve: Callable[[YamuxStream], object] | None = None
        self._reason: P2PNodeError | None = None
        self._tasks = trio.CancelScope()
        self._alarm = trio.CancelScope()

    def charge_to(self, account: Account) -> None:
        """Charge all streams to `account`, instead of to nobody; call it before `run`."""
        self.core.account = account

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
        """See to it that what there is to write gets written: at once, or by the writer."""
        if not self.core.has_output:
            return
        now = trio.current_time()
        may_write = self._running and not self._writing and self._channel.is_flushed
        if may_write and now - self._wrote_at > QUIET_TIME:
            self._wrote_at = now
            self._fill_channel()
            if self._channel.send_now():
                self._written.set()
        if self._has_work:
            self._output.set()

    @property
    def _has_work(self) -> bool:
        return self.core.has_output or not self._channel.is_flushed

    def _fill_channel(self) -> None:
        """Let the channel take what goes next; its senders get their buffers back."""
        output = self.core.next_frames(self._settings.yamux_write_budget)
        if output.buffers:
            self._channel.write(output.buffers)
            self.dispatch(self.core.wrote(output))

    def rearm(self) -> None:
        """Note that something may have to happen earlier than was known."""
        deadline = self.core.next_deadline()
        if deadline < self._alarm.deadline:  # noqa: PLR1730  # setting it costs 5 us, even if equal
            self._alarm.deadline = deadline

    def dispatch(self, events: Sequence[StreamEvent]) -> None:
        """Pass events on to those who wait for them."""
        for event in events:
            if event.kind is EventKind.OPENED:
                stream = YamuxStream(self, event.stream)
                self._streams[event.stream] = self._to_accept[event.stream] = stream
                if self._serve is not None:
                    self._serve(self._accept())
                else:
                    self._acceptable.set()
            elif event.kind is EventKind.FORGOTTEN:
                self._streams.pop(event.stream, None)
                if self.core.failure is None:  # what came before the end can still be accepted
                    self._to_accept.pop(event.stream, None)
            elif (waiting := self._streams.get(event.stream)) is not None:
                waiting.wake(event.kind)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the session until either side closes it; then every stream has failed.

        Raises:
            ProtocolError: the peer broke a rule of Yamux or of the channel beneath; it was told.
            ConnectionClosedError: the channel broke, or the peer gave up or stopped answering.
        """
        self._running = True
        try:
            with self._tasks:
                async with trio.open_nursery() as nursery:
                    for work in (self._write, self._read, self._keep_time):
                        nursery.start_soon(self._supervise, work)
                    task_status.started()
        finally:
            self._running = False  # nothing more will be written, so nobody may wait for it
            self._end(self._reason or ConnectionClosedError("this side closed the connection"))
            with trio.CancelScope(shield=True, deadline=self._close_deadline()):
                await self._channel.aclose()
        if self._reason is not None:
            raise self._reason

    async def _supervise(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let the first task that fails, or that finishes, end the session."""
        try:
            await work()
        except ProtocolError as error:
            self._reason = self._reason or error
            self._end(error)
            self.core.go_away(GoAwayCode.PROTOCOL_ERROR)
            await self._flush()
        except P2PNodeError as error:
            self._reason = self._reason or error
        except _BROKEN as error:
            broken = ConnectionClosedError("the connection broke")
            broken.__cause__ = error
            self._reason = self._reason or broken
        self._tasks.cancel()

    def _end(self, error: P2PNodeError) -> None:
        """Fail every stream: to those who use one, the connection is gone, whoever erred."""
        self.dispatch(self.core.close(ConnectionClosedError(str(error))))
        for signal in (self._acceptable, self._pongs, self._written):
            signal.set()

    def _close_deadline(self) -> float:
        return trio.current_time() + self._settings.close_timeout

    async def _flush(self) -> None:
        """Wait until the writer has written all it can, for a bounded time."""
        self.kick()
        with trio.move_on_at(self._close_deadline()):
            while self._running and (self.core.is_taking_leave or not self._channel.is_flushed):
                await self._written.wait()

    async def _read(self) -> None:
        core, channel = self.core, self._channel
        work = 0
        while not core.remote_closed and await channel.wait_received():
            now = trio.current_time()
            while (size := channel.next_size()) >= 0:
                destination = core.destination(size)
                if destination is None:
                    self.dispatch(core.receive_data(channel.read(), now, WORK_A_TURN))
                    work += core.work
                else:
                    channel.read_into(destination)
                    self.dispatch(core.receive_placed(size, now))
                work += 1
                if work >= WORK_A_TURN:
                    work = 0
                    await self._take_turns()
                    now = trio.current_time()
            self._pongs.set()
            self.kick()
        self._end(ConnectionClosedError("the peer closed the connection"))

    async def _take_turns(self) -> None:
        """Let other connections have theirs, however many small frames this one is sent.

        Where many tasks want the loop, small frames stand back further: a turn of them does less
        for anybody than a turn of those who move much data.
        """
        while True:
            self.kick()
            began = trio.current_time()
            await trio.lowlevel.checkpoint()
            others_took = trio.current_time() - began
            pause = PESTERED_PAUSE if self.core.is_pestered else 0.0
            if others_took > BUSY_ROUND:
                pause = max(pause, STAND_BACK * others_took)
            if pause:
                await trio.sleep(pause)
            if not self.core.left_over or self.core.remote_closed:
                return
            self.dispatch(
                self.core.receive_data(self.core.left_over, trio.current_time(), WORK_A_TURN)
            )

    async def _write(self) -> None:
        try:
            await self._write_until_broken()
        except _BROKEN:  # a peer that closed may have sent more before: let it be read
            await trio.sleep(self._settings.close_timeout)
            raise

    async def _write_until_broken(self) -> None:
        while True:
            while not self._has_work:
                await self._output.wait()
            self._writing = True
            if self._channel.is_flushed:
                await self._let_senders_add()
                self._fill_channel()
            with trio.move_on_after(self._settings.yamux_write_timeout) as patience:
                await self._channel.flush()
            if patience.cancelled_caught:  # signs of life do not count: what we hold for it does
                raise ConnectionClosedError("the peer does not read what it is sent")
            self._writing = False
            self._wrote_at = trio.current_time()
            self._written.set()

    async def _let_senders_add(self) -> None:
        """Wait as long as senders go on at once: a larger write costs less a byte."""
        seen = -1
        while seen < self.core.queued < WRITE_AIM:
            seen = self.core.queued
            await trio.lowlevel.checkpoint()

    async def _keep_time(self) -> None:
        while True:
            self.dispatch(self.core.handle_timeout(trio.current_time()))
            self.kick()
            with trio.CancelScope(deadline=self.core.next_deadline()) as self._alarm:
                await trio.sleep_forever()

    async def open_stream(self) -> YamuxStream:
        """Open a stream; nothing is sent before its first data, or before it is first read.

        Raises:
            ConnectionClosedError: the session has ended or is ending.
            ResourceLimitError: the account has no room for another stream.
        """
        await trio.lowlevel.checkpoint()
        state = self.core.open_stream(trio.current_time())
        stream = YamuxStream(self, state)
        self._streams[state] = stream
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Wait for the peer to open a stream.

        Raises:
            ConnectionClosedError: the session ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._to_accept:
            if self.core.failure is not None:
                raise ConnectionClosedError(str(self.core.failure))
            await self._acceptable.wait()
        return self._accept()

    async def serve(self, start: Callable[[YamuxStream], object]) -> NoReturn:
        """Pass each stream that the peer opens to `start`, which must not wait, at once.

        Raises:
            ConnectionClosedError: the session ended.
        """
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

    def _accept(self) -> YamuxStream:
        stream = self._to_accept.pop(next(iter(self._to_accept)))
        self.core.accept(stream._state, trio.current_time())  # noqa: SLF001  # the session's own
        self.rearm()
        return stream

    async def ping(self) -> float:
        """Measure one round trip, in seconds.

        Raises:
            ConnectionClosedError: the session ended, or no answer came in time.
        """
        sent_at = trio.current_time()
        if self.core.failure is not None:
            raise ConnectionClosedError(str(self.core.failure))
        number = self.core.ping(sent_at)
        self.kick()
        self.rearm()
        try:
            with trio.move_on_at(sent_at + self._settings.keepalive_timeout):
                while self.core.failure is None:
                    if not self.core.is_waiting_for(number):
                        return trio.current_time() - sent_at
                    await self._pongs.wait()
        finally:
            self.core.forget_ping(number)
        if self.core.failure is not None:
            raise ConnectionClosedError(str(self.core.failure))
        raise ConnectionClosedError("the peer did not answer a ping")

    async def refuse(self, code: int) -> None:
        """End a session that has not begun, and tell the peer why, in bounded time."""
        self.core.go_away(code)
        self._channel.write(self.core.next_frames(self._settings.yamux_write_budget).buffers)
        with trio.move_on_at(self._close_deadline()), contextlib.suppress(*_BROKEN):
            await self._channel.flush()
        await self.aclose()

    def abort(self, error: ProtocolError) -> None:
        """End the session at once because of `error`, which `run` raises; never blocks."""
        if self._running and self.core.failure is None:
            self._reason = self._reason or error
            self._end(error)
            self.core.go_away(GoAwayCode.PROTOCOL_ERROR)
            self.kick()
            self._tasks.cancel()

    async def aclose(self) -> None:
        """Write what can be written, say goodbye and end the session, all in bounded time.

        The streams fail with `ConnectionClosedError`; what they have received can still be read.
        """
        try:
            if self._running and self.core.failure is None:
                self.core.go_away(GoAwayCode.NORMAL)
                await self._flush()
        finally:
            self._end(ConnectionClosedError("this side closed the connection"))
            self._tasks.cancel()
            if not self._running:
                await self._channel.aclose()
        await trio.lowlevel.checkpoint()


def _again(error: P2PNodeError) -> P2PNodeError:
    """Return a copy of `error` to raise: many tasks may each raise it, more than once."""
    return type(error)(*error.args)
