"""A short way to the bytes of a socket, around what trio's streams do for each call.

trio's `SocketStream` serves every platform and every state of a socket: each call tries the
operation first, and yields once more when that worked. A connection's reader and writer, which
move many small messages, know more: that a socket they have just drained has to be waited for,
and that a small write nearly always fits. docs/performance.md says what their turns of the loop
cost.
"""

import errno
import os
import sys
from typing import Self

import trio

_GONE = frozenset({errno.EBADF, errno.ENOTSOCK})


class SocketShortcut:
    """Reads and writes the socket of a `trio.SocketStream`; the stream still owns it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._is_drained = False

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

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        if self._is_drained:
            await self._wait_readable()
        else:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                data = os.read(self._socket.fileno(), max_bytes)
            except BlockingIOError:
                await self._wait_readable()
                continue
            except OSError as error:
                if error.errno in _GONE:
                    raise trio.ClosedResourceError("this socket was already closed") from None
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
            self._is_drained = len(data) < max_bytes
            return data

    async def _wait_readable(self) -> None:
        if self._socket.fileno() < 0:  # trio would raise ValueError
            raise trio.ClosedResourceError("this socket was already closed")
        await trio.lowlevel.wait_readable(self._socket)
