"""One request to a relay, or of a relay, and its answer; and the byte stream that comes of it."""

from typing import Final

import trio

from p2pnode.errors import P2PNodeError, ProtocolError
from p2pnode.host import Stream
from p2pnode.protocols.relay.messages import (
    MAX_MESSAGE,
    HopMessage,
    StopMessage,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)
from p2pnode.wire import varint

# Bytes passed on at once, if so many have come: whole Noise frames, so that none is cut in two.
CHUNK: Final = 8 * 65_519


async def ask_hop(stream: Stream, message: HopMessage) -> HopMessage:
    """Ask a relay.

    Raises:
        ProtocolError: its answer is none.
        ProtocolNotSupportedError: it is no relay.
        RemoteError: the stream broke.
    """
    await send_hop(stream, message)
    return decode_hop(await receive(stream))


async def ask_stop(stream: Stream, message: StopMessage) -> StopMessage:
    """Ask a peer, as its relay, to take a circuit; raises as `ask_hop` does."""
    await send_stop(stream, message)
    return decode_stop(await receive(stream))


async def send_hop(stream: Stream, message: HopMessage) -> None:
    """Send a message between a relay and who asks it."""
    await stream.send_all(varint.prefixed(encode_hop(message)))


async def send_stop(stream: Stream, message: StopMessage) -> None:
    """Send a message between a relay and who is reached through it."""
    await stream.send_all(varint.prefixed(encode_stop(message)))


async def receive(stream: Stream) -> bytes:
    """Read one message; not a byte behind it, where a circuit's own bytes begin.

    Raises:
        ProtocolError: the stream ended, or the message is too long.
    """
    message = await stream.receive_prefixed(MAX_MESSAGE)
    if message is None:
        raise ProtocolError("the stream ended where a relay message should be")
    return message


class CircuitStream(trio.abc.Stream):
    """A circuit as a byte stream like any transport's: its errors are those of trio.

    Attributes:
        closed: set when this side has closed it.
    """

    def __init__(self, stream: Stream) -> None:
        self.closed = trio.Event()
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        try:
            await self._stream.send_all(data)
        except P2PNodeError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        try:
            await self._stream.wait_send_all_might_not_block()
        except P2PNodeError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        try:
            if max_bytes is None:
                return await self._stream.receive_some()
            return b"".join(await self._stream.receive_pieces(min(max_bytes, CHUNK)))
        except P2PNodeError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        try:
            await self._stream.aclose()
        except P2PNodeError:
            pass  # it has ended already, however that was
        finally:
            self.closed.set()
