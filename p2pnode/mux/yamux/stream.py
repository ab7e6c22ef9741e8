"""One stream of a Yamux session, as its users meet it.

A large buffer goes to the channel as it is, and `send_all` returns when the channel has taken it.
Small ones are copied, and up to a quarter MiB of them may wait for the session's writer.

A reader that knows how much it wants gives its buffer, and the channel decrypts straight into it.
"""

import contextlib
import math
from typing import TYPE_CHECKING, Final

import trio

from p2pnode.errors import StreamResetError
from p2pnode.mux.yamux.state import Buffer, StreamState
from p2pnode.transport.stateful import StatefulStream

if TYPE_CHECKING:
    from p2pnode.mux.yamux.service import YamuxConnection

_FOR_EVER: Final = contextlib.nullcontext()
COPY_UP_TO: Final = 64 * 1024  # bytes; copying so much costs less than waiting for the writer


class YamuxStream(StatefulStream[StreamState]):
    """One stream of a session."""

    def __init__(self, connection: "YamuxConnection", state: StreamState) -> None:
        super().__init__(state)
        self._connection = connection
        self._core = connection.core

    @property
    def send_window(self) -> int:
        """See `MuxedStream`."""
        return max(0, self._state.send_window - self._state.outgoing_bytes)

    async def send_all(self, data: Buffer) -> None:
        """Send `data`, which may change as soon as this returns.

        A send that is cancelled while it waits resets the stream. Sends of several tasks follow
        one another.

        Raises:
            StreamResetError: the stream was reset.
            ConnectionClosedError: the session ended.
            trio.ClosedResourceError: this side has finished or closed the stream.
        """
        await self._send(data)

    async def send_last(self, data: Buffer) -> None:
        """Send as `send_all` does, with the end of our direction right behind."""
        await self._send(data, is_last=True)

    async def _send(self, data: Buffer, *, is_last: bool = False) -> None:
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
            if is_last:
                self._core.finish(self._state)
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
        self._check_not_failed()

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

    def receive_pieces_nowait(self, most: int) -> list[bytes]:
        """See `MuxedStream`."""
        pieces = []
        now = trio.current_time()
        while most and self._state.received:
            piece = self._core.take(self._state, most, now)
            pieces.append(piece if isinstance(piece, bytes) else bytes(piece))
            most -= len(piece)
        self._connection.kick()  # there may be a window to grant
        return pieces

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

    async def receive_into(self, buffer: memoryview, until: float = math.inf) -> int:
        """See `MuxedStream`."""
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
                # A scope costs 15 us, cold: as much as a tenth of a small call's round trip.
                with trio.move_on_at(until) if until < math.inf else _FOR_EVER:
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
            self._check_not_failed()
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
