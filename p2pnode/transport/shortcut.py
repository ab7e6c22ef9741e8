"""A short way to the bytes of a socket, around what trio's streams do for each call.

trio's `SocketStream` serves every platform and every state of a socket: each call tries the
operation first, and yields once more when that worked. A connection's reader and writer, which
move many small messages, know more: that a socket they have just drained has to be waited for,
and that a small write nearly always fits. docs/performance.md says what their turns of the loop
cost.

Reading into the same few buffers again and again also spares the system from finding room for
each read, which costs as much as a quarter of the read itself, or more.
"""

import errno
import os
import sys
from typing import Final, Self

import trio

READ_BYTES: Final = 256 * 1024  # asked of a socket at once
COPY_BELOW: Final = 64 * 1024  # so little is copied out, and the buffer is free for others
MAX_SPARE_BUFFERS: Final = 4  # idle sockets hold none; a read takes one of these
_GONE = frozenset({errno.EBADF, errno.ENOTSOCK})
_spare_buffers: list[bytearray] = []


class SocketShortcut:
    """Reads and writes the socket of a `trio.SocketStream`; the stream still owns it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._is_drained = False
        self._lent: bytearray | None = None  # what the last view looks at

    @classmethod
    def of(cls, stream: trio.abc.Stream) -> Self | None:
        """Return the shortcut, or None where there is none: other streams, and Windows."""
        if sys.platform != "win32" and isinstance(stream, trio.SocketStream):
            return cls(stream)
        return None

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the system takes at once; returns how many bytes that is, 0 on any trouble."""
        try:
            return os.write(self._socket.fileno(), data)
        except OSError:  # full, or broken: whoever waits for it next is told
            return 0

    async def receive(self) -> bytes | memoryview:
        """Return bytes that have come; a view is valid until the next call, or `release`.

        Raises as `trio.abc.ReceiveStream.receive_some` does; b"" is the end, too.
        """
        self.release()
        if self._is_drained:
            await self._wait_readable()
        else:
            await trio.lowlevel.checkpoint()
        while True:
            self._lent = buffer = _spare_buffers.pop() if _spare_buffers else bytearray(READ_BYTES)
            try:
                size = os.readv(self._socket.fileno(), [buffer])
                break
            except BlockingIOError:
                self.release()
                await self._wait_readable()
            except OSError as error:
                self.release()
                if error.errno in _GONE:
                    raise trio.ClosedResourceError("this socket was already closed") from None
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        self._is_drained = size < READ_BYTES
        if size >= COPY_BELOW:
            return memoryview(buffer)[:size]
        data = bytes(memoryview(buffer)[:size])
        self.release()
        return data

    def release(self) -> None:
        """Give back the buffer that the last view looks at: nobody looks any more."""
        if self._lent is not None and len(_spare_buffers) < MAX_SPARE_BUFFERS:
            _spare_buffers.append(self._lent)
        self._lent = None

    async def _wait_readable(self) -> None:
        if self._socket.fileno() < 0:  # trio would raise ValueError
            raise trio.ClosedResourceError("this socket was already closed")
        await trio.lowlevel.wait_readable(self._socket)
