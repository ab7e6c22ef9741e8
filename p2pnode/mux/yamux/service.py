"""A Yamux session over a channel: one task reads, one writes, and streams wait for both.

The writer packs many small pieces into one write. But when nothing was written for a moment,
whoever has something to send writes it at once: waking the writer for a single message would cost
more than the message.
"""

import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError, P2PNodeError, ProtocolError
from p2pnode.mux.yamux.channel import Channel
from p2pnode.mux.yamux.core import YamuxCore
from p2pnode.mux.yamux.frames import INITIAL_WINDOW, GoAwayCode
from p2pnode.mux.yamux.state import EventKind, StreamEvent, StreamState
from p2pnode.mux.yamux.stream import YamuxStream
from p2pnode.transport.session import Account, MuxedSession
from p2pnode.transport.wakeup import Signal

QUIET_TIME: Final = 50e-6  # seconds; a write that follows another one sooner waits for company
WRITE_AIM: Final = 384 * 1024  # bytes; a write of so much costs hardly more than the encryption
WORK_A_TURN: Final = 128  # frames: about a quarter of a millisecond, or what sealing 256 KiB takes
BUSY_ROUND: Final = 0.2e-3  # seconds that other tasks take between two turns of ours
STAND_BACK: Final = 3  # rounds left out where rounds are so long
PESTERED_PAUSE: Final = 0.005  # seconds between turns of a peer that sends many nuisances
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class YamuxConnection(MuxedSession):
    """A session; `run` does its work until it ends or is cancelled.

    Args:
        channel: the secured connection.
        is_client: whether we dialled; decides who has the odd stream ids.
        settings: windows, limits and timeouts.
    """

    early_bytes = INITIAL_WINDOW

    def __init__(
        self, channel: Channel, *, is_client: bool, settings: NetworkSettings | None = None
    ) -> None:
        self._settings = settings or NetworkSettings()
        self._channel = channel
        self.core = YamuxCore(is_client=is_client, settings=self._settings, now=trio.current_time())
        self.send_buffer = self._settings.yamux_send_buffer
        self._streams: dict[StreamState, YamuxStream] = {}
        self._to_accept: dict[StreamState, YamuxStream] = {}
        self._acceptable = Signal()
        self._output = Signal()
        self._pongs = Signal()
        self._written = Signal()
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
        return self.core.outbox.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes of stream data came in."""
        return self.core.bytes_received

    @property
    def rtt(self) -> float | None:
        """The shortest recent round trip in seconds, once known."""
        return self.core.liveness.round_trip

    @property
    def holdings(self) -> dict[str, int]:
        """See `MuxedSession`."""
        objects = len(self._streams) + len(self._to_accept)
        return {"stream objects": objects, **self.core.holdings}

    def kick(self) -> None:
        """See to it that what there is to write gets written: at once, or by the writer."""
        if not self.core.outbox.has_output:
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
        return self.core.outbox.has_output or not self._channel.is_flushed

    def _fill_channel(self) -> None:
        """Let the channel take what goes next; its senders get their buffers back."""
        output = self.core.outbox.next_frames(self._settings.yamux_write_budget)
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
                if event.kind is EventKind.READABLE:
                    waiting.wake_reader()
                else:
                    waiting.wake_writer()

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
            while self._running and (
                self.core.outbox.is_taking_leave or not self._channel.is_flushed
            ):
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
        outbox = self.core.outbox
        while seen < outbox.queued < WRITE_AIM:
            seen = outbox.queued
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
                    if not self.core.liveness.is_waiting_for(number):
                        return trio.current_time() - sent_at
                    await self._pongs.wait()
        finally:
            self.core.liveness.forget(number)
        if self.core.failure is not None:
            raise ConnectionClosedError(str(self.core.failure))
        raise ConnectionClosedError("the peer did not answer a ping")

    async def refuse(self, code: int) -> None:
        """End a session that has not begun, and tell the peer why, in bounded time."""
        self.core.go_away(code)
        self._channel.write(self.core.outbox.next_frames(self._settings.yamux_write_budget).buffers)
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
