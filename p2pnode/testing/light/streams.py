"""Streams of light connections: pipes that the virtual network gives their timing.

Nothing runs for a stream that waits: a reader parks until the network delivers, and what arrives
while nobody reads only gets a due time. Unlike trio's streams, these yield only where they wait
or are cancelled: a turn of the loop for each call took a fifth of a simulation's time.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from p2pnode.errors import P2PNodeError, ProtocolNotSupportedError, StreamResetError
from p2pnode.host import Stream
from p2pnode.mux.yamux import INITIAL_WINDOW
from p2pnode.testing.network import Flow
from p2pnode.testing.timers import Timers
from p2pnode.wire import varint

if TYPE_CHECKING:
    from p2pnode.testing.light.connections import LightConnection

MAX_WINDOW: Final = 16 * INITIAL_WINDOW  # the window of a reader that keeps up grows so far
CHUNK_BYTES: Final = 64 * 1024  # that streams of one machine take turns with
OVERHEAD_BYTES: Final = 32  # of a piece of data: the headers of Yamux and Noise, and the tag


class Pipe:
    """One direction of a stream: what was sent, each piece with the time it arrives."""

    __slots__ = (
        "_chunks",
        "_eof_at",
        "_flow",
        "_reader",
        "_reader_failure",
        "_reader_gone",
        "_size",
        "_timers",
        "_window",
        "_writer_failure",
        "_writers",
    )

    def __init__(self, flow: Flow, timers: Timers) -> None:
        self._flow = flow
        self._timers = timers
        self._chunks: list[tuple[float, bytes]] = []
        self._size = 0
        self._window = INITIAL_WINDOW
        self._eof_at: float | None = None  # None until the sender has finished
        self._reader: trio.lowlevel.Task | None = None
        self._reader_failure: P2PNodeError | None = None
        self._reader_gone = False
        self._writers: list[trio.lowlevel.Task] | None = None  # that wait for room
        self._writer_failure: P2PNodeError | None = None

    # --- the sending end ------------------------------------------------------------------------

    def put(self, data: bytes) -> float:
        """Send one piece now; returns when it arrives."""
        due = self._flow.due(len(data) + OVERHEAD_BYTES, trio.current_time())
        if not self._reader_gone and data:
            self._chunks.append((due, data))
            self._size += len(data)
            if self._reader is not None:
                self._timers.at(due, self._wake_reader)
        return due

    async def send(self, data: bytes) -> None:
        """Send `data`, waiting for room."""
        offset = 0
        while offset < len(data):
            self.check_sender()
            if self._reader_gone:
                await trio.lowlevel.checkpoint_if_cancelled()
                return
            if self._size >= self._window:
                await self._wait_for_room()
                continue
            piece = data[offset : offset + CHUNK_BYTES] if len(data) > CHUNK_BYTES else data
            offset += len(piece)
            self.put(piece)

    @property
    def room(self) -> int:
        """How many bytes its sender need not wait with."""
        return max(0, self._window - self._size)

    @property
    def is_ended(self) -> bool:
        """Whether the reader can know by now that nothing more will come."""
        return self._eof_at is not None and self._eof_at <= trio.current_time()

    @property
    def is_finished(self) -> bool:
        """Whether its sender has ended it."""
        return self._eof_at is not None

    def check_sender(self) -> None:
        """Raise what must keep the sender from sending."""
        if self._writer_failure is not None:
            raise _copy(self._writer_failure)
        if self._eof_at is not None:
            raise trio.ClosedResourceError("the stream's sending side is closed")

    def finish(self) -> None:
        """End the sending side: the reader sees the end behind what was sent."""
        if self._eof_at is None and self._writer_failure is None:
            self._eof_at = self._flow.due(OVERHEAD_BYTES, trio.current_time())
            if self._reader is not None:
                self._timers.at(self._eof_at, self._wake_reader)

    def fail_sender(self, failure: P2PNodeError) -> None:
        """Break the sending end; the first failure counts."""
        self._writer_failure = self._writer_failure or failure
        self._wake_writers()

    # --- the receiving end ----------------------------------------------------------------------

    async def wait(self) -> bool:
        """Wait for data, which stands first in line then; False at the end of the stream."""
        while True:
            if self._reader_failure is not None:
                raise _copy(self._reader_failure)
            now = trio.current_time()
            if self._chunks:
                due = self._chunks[0][0]
                if due <= now:
                    return True
            else:
                due = math.inf if self._eof_at is None else self._eof_at
                if due <= now:
                    return False
            if self._reader is not None:
                raise trio.BusyResourceError("another task is receiving on this stream")
            self._reader = trio.lowlevel.current_task()
            self._timers.at(due, self._wake_reader)
            await trio.lowlevel.wait_task_rescheduled(self._abandon_reading)

    def take(self, max_bytes: int) -> bytes:
        """Take from the piece that stands first in line."""
        due, data = self._chunks[0]
        if len(data) > max_bytes:
            self._chunks[0] = due, data[max_bytes:]
            data = data[:max_bytes]
        else:
            del self._chunks[0]
        self._size -= len(data)
        if self._writers:
            self._window = min(2 * self._window, MAX_WINDOW)
            self._wake_writers()
        return data

    def take_prefixed(self, limit: int) -> bytes | None:
        """Take a message behind its length, if the first piece in line is just that."""
        data = self._chunks[0][1]
        head = varint.decode(data)
        if head is None or head[0] > limit or head[0] + head[1] != len(data):
            return None
        return self.take(len(data))[head[1] :]

    def discard(self) -> None:
        """Drop what is there and what still comes."""
        self._reader_gone = True
        self._chunks.clear()
        self._size = 0
        self._wake_writers()

    def fail_reader(self, failure: P2PNodeError) -> None:
        """Break the receiving end; what was not read is lost. The first failure counts."""
        self._reader_failure = self._reader_failure or failure
        self.discard()
        self._wake_reader()

    # --- the way --------------------------------------------------------------------------------

    def hold(self, now: float) -> None:
        """Note that what is under way does not arrive."""
        self._chunks = [(due if due <= now else math.inf, data) for due, data in self._chunks]
        if self._eof_at is not None and self._eof_at > now:
            self._eof_at = math.inf

    def resume(self, now: float) -> None:
        """Send again what did not arrive."""
        for index, (due, data) in enumerate(self._chunks):
            if due == math.inf:
                self._chunks[index] = self._flow.due(len(data) + OVERHEAD_BYTES, now), data
        if self._eof_at == math.inf:
            self._eof_at = self._flow.due(OVERHEAD_BYTES, now)
        self._wake_reader()  # it finds out by itself when to wake next

    async def _wait_for_room(self) -> None:
        task = trio.lowlevel.current_task()
        self._writers = [*(self._writers or ()), task]

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._writers = [each for each in self._writers or () if each is not task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _abandon_reading(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_reader(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)

    def _wake_writers(self) -> None:
        if self._writers:
            writers, self._writers = self._writers, None
            for task in writers:
                trio.lowlevel.reschedule(task)


class LightStream(Stream):
    """One end of a stream; made by `LightConnection`.

    The end that opened it tells the far end with its first data, as a real one does.
    """

    __slots__ = (
        "__weakref__",
        "_dependent",
        "_incoming",
        "_is_closed",
        "_is_lost",
        "_outgoing",
        "connection",
        "far",
        "protocol",
    )

    connection: "LightConnection"

    def __init__(
        self, connection: "LightConnection", protocol: str, outgoing: Pipe, incoming: Pipe
    ) -> None:
        self.connection = connection
        self.protocol = protocol
        self.far: LightStream | None = None  # until the far end is told of it
        self._outgoing = outgoing
        self._incoming = incoming
        self._is_closed = False
        self._dependent: trio.CancelScope | None = None
        self._is_lost = False

    @property
    def is_live(self) -> bool:
        """See `Stream`."""
        ended = self._outgoing.is_finished or self._incoming.is_ended
        return not (self._is_closed or self._is_lost or ended)

    @property
    def send_window(self) -> int:
        """See `Stream`."""
        return self._outgoing.room

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Stream`."""
        if self._is_closed:
            raise trio.ClosedResourceError("the stream is closed")
        data = bytes(data)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self.far is None:
                self._open(data[:CHUNK_BYTES])
                data = data[CHUNK_BYTES:]
            await self._outgoing.send(data)
        except trio.Cancelled:
            self.reset()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        self._outgoing.check_sender()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `Stream`."""
        return self._incoming.take(max_bytes or CHUNK_BYTES) if await self._wait() else b""

    async def receive_prefixed(self, limit: int) -> bytes | None:
        """See `Stream`; a message that came in one piece is taken in one step."""
        if not await self._wait():
            return None
        message = self._incoming.take_prefixed(limit)
        return message if message is not None else await super().receive_prefixed(limit)

    async def send_eof(self) -> None:
        """See `Stream`."""
        if self.far is None:
            self._open(b"")
        self._outgoing.finish()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def aclose(self) -> None:
        """See `Stream`."""
        if not self._is_closed:
            self._is_closed = True
            self._outgoing.finish()
            self._incoming.discard()
            self.connection.forget(self)
        await trio.lowlevel.checkpoint_if_cancelled()

    def reset(self, code: int = 0) -> None:
        """See `Stream`."""
        if self.connection.forget(self) and self.far is not None:
            self.connection.tell(partial(self.far.receive_reset, code))
        self.fail(StreamResetError(f"the stream was reset (code {code})"))

    def receive_reset(self, code: int) -> None:
        """End both directions, as the far end has."""
        self.connection.forget(self)
        self.fail(StreamResetError(f"the stream was reset (code {code})"))

    def receive_refusal(self) -> None:
        """Note that the peer does not speak the protocol; the next read tells."""
        self.connection.forget(self)
        peer_id = self.connection.peer_id
        self.fail(ProtocolNotSupportedError(f"{peer_id} does not speak {self.protocol}"))

    def fail(self, failure: P2PNodeError) -> None:
        """End both directions of this end."""
        self._outgoing.fail_sender(failure)
        self._incoming.fail_reader(failure)
        self._is_lost = True
        if self._dependent is not None:
            self._dependent.cancel()

    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """See `Stream`."""
        self._dependent = scope
        if scope is not None and self._is_lost:
            scope.cancel()

    def hold(self, now: float) -> None:
        """Hold what this end has sent and what is under way; the far end does the same."""
        self._outgoing.hold(now)

    def resume(self, now: float) -> None:
        """Send again what did not arrive."""
        self._outgoing.resume(now)

    async def _wait(self) -> bool:
        if self._is_closed:
            raise trio.ClosedResourceError("the stream is closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.far is None:
            self._open(b"")
        return await self._incoming.wait()

    def _open(self, data: bytes) -> None:
        """Tell the far end of the stream, along with the first data."""
        self._outgoing.check_sender()
        self.far = self.connection.mirror(self, self._incoming, self._outgoing)
        due = self._outgoing.put(data)
        self.connection.announce(self, self.far, due)


def _copy(failure: P2PNodeError) -> P2PNodeError:
    return type(failure)(*failure.args)  # several tasks may raise it, repeatedly
