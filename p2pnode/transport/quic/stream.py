"""One stream of a QUIC session, as its users meet it.

What is sent is copied, and kept until the peer has confirmed it; a sender waits when that is more
than `network.quic_send_buffer`.
"""

import math
from typing import TYPE_CHECKING

import trio

from p2pnode.errors import StreamResetError
from p2pnode.transport.quic.state import StreamState
from p2pnode.transport.session import Buffer
from p2pnode.transport.stateful import StatefulStream

if TYPE_CHECKING:
    from p2pnode.transport.quic.session import QuicSession


class QuicStream(StatefulStream[StreamState]):
    """One stream of a session."""

    def __init__(self, session: "QuicSession", state: StreamState) -> None:
        super().__init__(state)
        self._session = session
        self._core = session.core

    # --- sending --------------------------------------------------------------------------------

    @property
    def send_window(self) -> int:
        """See `MuxedStream`; what the peer's window has no room for is kept here."""
        return max(0, self._session.send_buffer - self._core.unconfirmed(self._state))

    async def send_all(self, data: Buffer) -> None:
        """See `MuxedStream`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._send_lock:
            self._check_open_for_sending()
            view = memoryview(data).cast("B")
            while view:
                await self._wait_for_room()
                room = self._session.send_buffer - self._core.unconfirmed(self._state)
                self._core.send(self._state, view[:room])
                self._session.kick()
                view = view[room:]
        # Others get their turn while the bytes travel, not before they leave.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_for_room(self) -> None:
        """Wait until a good part of the buffer is free; a sender is not woken for each packet."""
        limit = self._session.send_buffer
        if self._core.unconfirmed(self._state) < limit:
            return
        try:
            while self._core.unconfirmed(self._state) > limit * 3 // 4:
                self._core.await_room(self._state)
                await self._writable.wait()
        except trio.Cancelled:
            self.reset()  # part of what was to be sent is on its way
            raise
        self._check_open_for_sending()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`; raises as `send_all` does."""
        await trio.lowlevel.checkpoint()
        self._check_open_for_sending()
        while self._core.unconfirmed(self._state) >= self._session.send_buffer:
            self._core.await_room(self._state)
            await self._writable.wait()
            self._check_open_for_sending()

    def send_later(self, data: Buffer) -> None:
        """See `MuxedStream`."""
        if data and self._state.failure is None:
            self._core.send_later(self._state, data, trio.current_time())
            self._session.rearm()

    async def send_eof(self) -> None:
        """Finish our direction, behind all that was sent; the peer's stays open.

        Raises as `send_all` does, but finishing twice is allowed, and so is it when the peer has
        stopped reading.
        """
        async with self._send_lock:
            if self._closed:
                raise trio.ClosedResourceError("the stream is closed")
            if self._state.unwanted and self._state.receive_failure is None:
                return  # as go-libp2p says goodbye; the peer has all that it wants
            self._check_not_failed()
            self._session.dispatch(self._core.finish(self._state))
            self._session.kick()

    # --- receiving ------------------------------------------------------------------------------

    def receive_nowait(self) -> bytes:
        """See `MuxedStream`."""
        return self._take(None) if self._state.received else b""

    def receive_into_nowait(self, buffer: memoryview) -> int:
        """See `MuxedStream`."""
        if not self._state.received or not buffer:
            return 0
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def unread(self, data: bytes) -> None:
        """See `MuxedStream`."""
        self._core.unread(self._state, data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `MuxedStream`."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await self._wait_for_data()
        return self._take(max_bytes) if self._state.received else b""

    async def receive_into(self, buffer: memoryview, until: float = math.inf) -> int:
        """See `MuxedStream`."""
        filled = 0
        with trio.move_on_at(until):
            while filled < len(buffer):
                await self._wait_for_data()
                if not (size := self.receive_into_nowait(buffer[filled:])):
                    break
                filled += size
        return filled

    def _take(self, max_bytes: int | None) -> bytes:
        data = self._core.take(self._state, max_bytes, trio.current_time())
        self._session.kick()  # there may be a window to grant
        return data

    async def _wait_for_data(self) -> None:
        """Wait for data or the clean end of the stream; raises at any other end."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._state.received and not self._is_at_end():
                self._session.kick()  # what waits for company goes now
                await self._readable.wait()
            if self._closed:
                raise trio.ClosedResourceError("the stream is closed")
        finally:
            self._receiving = False

    # --- ending ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Finish our direction and drop what still comes; never waits for the peer."""
        if not self._closed:
            self._closed = True
            self._session.dispatch(self._core.discard(self._state, trio.current_time()))
            self._session.kick()
            self._readable.set()
            self._writable.set()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """See `MuxedStream`."""
        error = StreamResetError(f"this side reset the stream (code {code})")
        self._session.dispatch(self._core.reset(self._state, error, code))
        self._session.kick()
