"""RPCs behind their uvarint lengths, taken out of a byte stream as it comes in.

Nothing is set aside for what a length promises: only bytes that have come are kept.
"""

from collections.abc import Iterator

from p2pnode.errors import ProtocolError
from p2pnode.wire import varint


class FrameSplitter:
    """Cuts a stream into frames of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def __len__(self) -> int:
        """How many bytes are kept, of a frame that is not whole."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> Iterator[bytes]:
        """Take in the stream's next bytes, and yield the frames that are whole now.

        Raises:
            ProtocolError: a frame is too long, or its length is malformed.
        """
        self._buffer += data
        offset = 0
        try:
            while (head := varint.decode(self._buffer, offset)) is not None:
                size, start = head
                if size > self._limit:
                    raise ProtocolError(f"an RPC of {size} bytes exceeds the limit")
                if len(self._buffer) < start + size:
                    return
                offset = start + size
                yield bytes(memoryview(self._buffer)[start:offset])
        finally:
            del self._buffer[:offset]
