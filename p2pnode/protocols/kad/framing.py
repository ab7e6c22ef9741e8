"""Messages over a stream, each behind its length, read in as few steps as they arrive in."""

from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.host import Stream
from p2pnode.protocols.kad.messages import Message, decode, encode
from p2pnode.wire import varint

_CHUNK_BYTES: Final = 64 * 1024


class MessageStream:
    """The messages of one stream, of at most `limit` bytes each."""

    __slots__ = ("_buffer", "_limit", "stream")

    def __init__(self, stream: Stream, limit: int) -> None:
        self.stream = stream
        self._limit = limit
        self._buffer = b""

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self.stream.send_all(varint.prefixed(encode(message)))

    async def receive(self) -> Message | None:
        """Receive one message; None at the clean end of the stream.

        Raises:
            ProtocolError: it is malformed or too long, or the stream ended inside it.
            RemoteError: the stream broke.
        """
        while (head := varint.decode(self._buffer)) is None:
            data = await self.stream.receive_some(_CHUNK_BYTES)
            if not data:
                if self._buffer:
                    raise ProtocolError("the stream ended inside a length prefix")
                return None
            self._buffer += data
        size, start = head
        if size > self._limit:
            raise ProtocolError(f"a message of {size} bytes exceeds the limit of {self._limit}")
        end = start + size
        if len(self._buffer) < end:
            await self._fill(end)
        message = self._buffer[start:end]
        self._buffer = self._buffer[end:]
        return decode(message)

    async def _fill(self, size: int) -> None:
        chunks, have = [self._buffer], len(self._buffer)
        while have < size:
            data = await self.stream.receive_some(_CHUNK_BYTES)
            if not data:
                raise ProtocolError(f"the stream ended after {have} of {size} bytes")
            chunks.append(bytes(data))
            have += len(data)
        self._buffer = b"".join(chunks)
