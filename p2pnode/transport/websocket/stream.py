"""One WebSocket connection as a trio stream.

trio-websocket reads, answers pings and closes; a task of the transport carries its reader. Memory
is bounded by one read of the network, one message in the queue and one in the stream's hand.
"""

import functools
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto import ConnectionType
from wsproto.frame_protocol import CloseReason as CloseCode
from wsproto.utilities import LocalProtocolError

from p2pnode.config import NetworkSettings
from p2pnode.errors import HandshakeError, P2PNodeError
from p2pnode.transport.websocket.core import ByteStreamWebSocket
from p2pnode.transport.websocket.tls import TlsStream

_PATH: Final = "/"
_CLEAN: Final = frozenset(
    {CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD}
)


class WebSocketStream(trio.abc.Stream):
    """A byte stream in binary messages.

    `aclose` sends a goodbye and waits for the answer, `close_timeout` at most, unless another
    task is sending: then the connection is cut. There is no half-close, since a WebSocket that
    says goodbye may not speak again. Broken rules raise `ProtocolError`; a peer that vanishes
    without a goodbye raises `trio.BrokenResourceError`.

    Args:
        raw: the connection beneath; it belongs to this stream from now on.
        connection_type: whether it was dialled or accepted.
        settings: limits and timeouts.
        host: what a client asks for.
    """

    def __init__(
        self,
        raw: trio.abc.Stream,
        connection_type: ConnectionType,
        settings: NetworkSettings,
        *,
        host: str | None = None,
    ) -> None:
        self._settings = settings
        self._raw = raw
        self._noted = trio.Event()
        self._core = ByteStreamWebSocket(
            connection_type,
            max_empty_frames=settings.websocket_max_empty_frames,
            draw_mask=functools.partial(os.urandom, 4),
            notify=self._note,
        )
        self._connection = WebSocketConnection(
            self._raw,
            self._core,
            host=host,
            path=_PATH,
            receive_buffer_size=settings.websocket_receive_buffer,
            max_message_size=settings.websocket_receive_buffer,
        )
        self._reader = trio.CancelScope()
        self._goodbye = trio.CancelScope()  # nobody answers once the reader has ended
        self._received = b""
        self._offset = 0
        self._sending = False
        self._receiving = False
        self._closed = False
        self._torn = False  # part of a message may have been sent

    # --- life -----------------------------------------------------------------------------------

    async def carry(self) -> None:
        """Read from the network until the connection ends, then close it."""
        try:
            with self._reader:
                # The one private name: trio-websocket starts its reader by itself only in
                # functions that would not let us bound what it reads.
                await self._connection._reader_task()  # noqa: SLF001  # see above
        except LocalProtocolError:
            pass  # trio-websocket would answer, in a state that has changed meanwhile
        finally:
            self._reader.cancel()
            self._goodbye.cancel()
            self._noted.set()
            await trio.aclose_forcefully(self._raw)

    async def open(self) -> None:
        """Complete the HTTP upgrade; `carry` must run.

        Raises:
            HandshakeError: the other end sent something else, refused, or hung up.
        """
        await self._noted.wait()
        if self._core.is_open:
            return
        if self._core.request is not None and self._core.failure is None:
            with suppress(ConnectionClosed):
                await WebSocketRequest(self._connection, self._core.request).accept()
                return
        raise self._failure() or HandshakeError("the other end hung up during the upgrade")

    def _note(self) -> None:
        self._noted.set()
        if self._core.failure is not None:  # what is still to be said must be said soon
            self._reader.deadline = trio.current_time() + self._settings.close_timeout

    def _failure(self) -> P2PNodeError | None:
        failure = self._core.failure
        if failure is None and isinstance(self._raw, TlsStream):
            failure = self._raw.failure
        return None if failure is None else type(failure)(str(failure))

    # --- the stream -----------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        with self._alone_sending():
            view = memoryview(data).cast("B")
            if not view:
                await trio.lowlevel.checkpoint()
            step = self._settings.websocket_max_message
            self._torn = True
            for start in range(0, len(view), step):
                try:
                    await self._connection.send_message(bytes(view[start : start + step]))
                except ConnectionClosed as closed:
                    raise self._ended(closed.reason) from None
                except LocalProtocolError:  # the goodbye is under way
                    raise self._ended(None) from None
            self._torn = False

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once, as `trio.abc.SendStream` allows: a pong may be under way beneath."""
        with self._alone_sending():
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        limit = None if max_bytes is None else operator.index(max_bytes)
        if limit is not None and limit < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            if self._closed:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError("this side of the stream is closed")
            if not self._received:
                try:
                    message = await self._connection.get_message()
                except ConnectionClosed as closed:
                    await trio.lowlevel.checkpoint()
                    if self._is_end(closed):
                        return b""
                    raise self._ended(closed.reason) from None
                assert isinstance(message, bytes)
                self._received, self._offset = message, 0
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._receiving = False
        return self._take(limit)

    def _take(self, limit: int | None) -> bytes:
        left = len(self._received) - self._offset
        taken = left if limit is None else min(limit, left)
        data = self._received
        if taken < len(data):
            data = data[self._offset : self._offset + taken]
        self._offset += taken
        if self._offset == len(self._received):
            self._received, self._offset = b"", 0
        return data

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not self._sending and not self._torn:
                self._goodbye.deadline = trio.current_time() + self._settings.close_timeout
                with self._goodbye:
                    await self._connection.aclose()
        finally:
            self._reader.cancel()
            await trio.aclose_forcefully(self._raw)

    @contextmanager
    def _alone_sending(self) -> Iterator[None]:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._closed:
            raise trio.ClosedResourceError("this side of the stream is closed")
        if self._torn:
            raise trio.BrokenResourceError("an earlier send did not finish")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def _is_end(self, closed: ConnectionClosed) -> bool:
        """Whether the other end has said goodbye, and nothing was wrong."""
        clean = closed.reason is not None and closed.reason.code in _CLEAN
        return clean and not self._closed and self._core.failure is None

    def _ended(self, reason: CloseReason | None) -> Exception:
        """Say why nothing more can be sent or received."""
        if self._closed:
            return trio.ClosedResourceError("this side of the stream is closed")
        if (failure := self._failure()) is not None:
            return failure
        if reason is None or reason.code == CloseCode.ABNORMAL_CLOSURE:
            return trio.BrokenResourceError("the other end is gone")
        return trio.BrokenResourceError(f"the other end closed the WebSocket (code {reason.code})")
