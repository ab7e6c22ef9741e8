"""Channels for a muxer without encryption: what is written arrives as it is."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


class PieceChannel(ABC):
    """A channel as the muxer drives it, step by step, on top of sending and receiving pieces."""

    def __init__(self) -> None:
        self._unsent: list[bytes] = []
        self._pieces: deque[bytes] = deque()

    @abstractmethod
    async def send_many(self, buffers: Sequence[Buffer]) -> None:
        """Send the buffers in order."""

    @abstractmethod
    async def receive_many(self) -> list[bytes]:
        """Wait for pieces, and return at least one; [] at the end."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close this end."""

    @property
    def is_flushed(self) -> bool:
        """See `p2pnode.mux.yamux.channel.Channel`."""
        return not self._unsent

    def write(self, buffers: Sequence[Buffer]) -> None:
        """See `Channel`."""
        assert self.is_flushed
        self._unsent = [bytes(each) for each in buffers]

    def send_now(self) -> bool:
        """See `Channel`; everything has to be waited for."""
        return self.is_flushed

    async def flush(self) -> None:
        """See `Channel`."""
        await self.send_many(self._unsent)
        self._unsent = []

    async def wait_received(self) -> bool:
        """See `Channel`."""
        while not self._pieces:
            pieces = await self.receive_many()
            if not pieces:
                return False
            self._pieces.extend(pieces)
        return True

    def next_size(self) -> int:
        """See `Channel`."""
        return len(self._pieces[0]) if self._pieces else -1

    def read(self) -> bytes:
        """See `Channel`."""
        return self._pieces.popleft()

    def read_into(self, buffer: memoryview) -> None:
        """See `Channel`."""
        buffer[:] = self._pieces.popleft()
