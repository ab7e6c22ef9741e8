"""What a Yamux session runs over."""

from collections.abc import Sequence
from typing import Protocol

from p2pnode.mux.yamux.state import Buffer


class Channel(Protocol):
    """A secured connection, step by step: `p2pnode.security.noise.SecureChannel`."""

    @property
    def is_flushed(self) -> bool:
        """Whether everything that was written has been sent."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Take buffers, in order, when all earlier ones are flushed; they may change afterwards."""

    def send_now(self) -> bool:
        """Send what can be sent without waiting; returns whether that was everything."""

    async def flush(self) -> None:
        """Send what was written."""

    async def wait_received(self) -> bool:
        """Wait until something can be read; returns False at the end."""

    def next_size(self) -> int:
        """Return how many bytes `read` would give, or -1 if they have to be waited for."""

    def read(self) -> bytes:
        """Return the next piece."""

    def read_into(self, buffer: memoryview) -> None:
        """Write the next piece to `buffer`, of exactly its size."""

    async def aclose(self) -> None:
        """Close the channel."""
