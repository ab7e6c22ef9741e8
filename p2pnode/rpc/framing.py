"""One message of a tensor call over a stream: a header behind its length, then tensors."""

import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import torch
import trio

from p2pnode.errors import DeadlineExceededError, ProtocolError, RemoteError
from p2pnode.host import PROGRESS_BYTES, Stream
from p2pnode.rpc.codecs.names import wire_form
from p2pnode.rpc.messages import PREFIX_BYTES
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import empty

T = TypeVar("T")

# Below this, one copy is cheaper than another write; above it, tensors are sent from their memory.
MAX_JOINED_BYTES: Final = 32 * 1024
# A message up to this size that fits the stream's window is sent before its answer is read: that
# cannot block on a host that has refused it meanwhile. A larger one is sent beside the reading.
_SENT_AT_ONCE: Final = 512 * 1024
_READ_AHEAD: Final = 16 * 1024  # holds headers, and small calls whole; what is too much is copied


async def send_message(
    stream: Stream, header: bytes, buffers: Sequence[memoryview], *, is_last: bool = True
) -> None:
    """Send a header, which has its length in front, and the tensors.

    Args:
        stream: to the receiver.
        header: with its length.
        buffers: the tensors' elements.
        is_last: whether the end of our direction follows.

    Raises:
        StreamResetError, ConnectionClosedError: the receiver is gone.
    """
    parts: Sequence[bytes | memoryview] = (header, *buffers)
    if sum(map(len, parts)) <= MAX_JOINED_BYTES:
        parts = (b"".join(parts),)
    *others, last = parts
    for part in others:
        await stream.send_all(part)
    await (stream.send_last if is_last else stream.send_all)(last)


async def send_and_receive(
    stream: Stream,
    header: bytes,
    buffers: Sequence[memoryview],
    receive: Callable[[], Awaitable[T]],
    *,
    is_last: bool = True,
) -> T:
    """Send a message, and receive its answer, which may come before all of it was sent.

    Args:
        stream: to the receiver.
        header: with its length.
        buffers: the tensors' elements.
        receive: reads the answer.
        is_last: whether the end of our direction follows the message.

    Raises:
        StreamResetError, ConnectionClosedError: the receiver is gone.
        RemoteError: as `receive` raises it.
    """
    if len(header) + sum(map(len, buffers)) <= min(_SENT_AT_ONCE, stream.send_window):
        await send_message(stream, header, buffers, is_last=is_last)
        return await receive()
    outcome: T | RemoteError
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            # The reading side meets the same end of the stream, and tells.
            with contextlib.suppress(RemoteError):
                await send_message(stream, header, buffers, is_last=is_last)

        nursery.start_soon(send)
        try:
            outcome = await receive()
        except RemoteError as error:
            outcome = error
        if is_last or isinstance(outcome, RemoteError):  # else the stream goes on, and needs all
            nursery.cancel_scope.cancel()
    if isinstance(outcome, RemoteError):
        raise outcome
    return outcome


class IncomingMessage:
    """Reads messages, each a header and its tensors, which are received into their own memory."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ahead = b""  # bytes read together with what was asked for

    async def begins(self) -> bool:
        """Wait for a message; false when the sender has ended its side instead.

        Raises:
            StreamResetError, ConnectionClosedError: the sender is gone.
        """
        if not self._ahead:
            self._ahead = bytes(await self._stream.receive_some(_READ_AHEAD))
        return bool(self._ahead)

    async def header(self, limit: int) -> bytes:
        """Read the header.

        Raises:
            ProtocolError: it is longer than `limit`, or the stream ended before its end.
            StreamResetError, ConnectionClosedError: the sender is gone.
        """
        await self._read_ahead(PREFIX_BYTES)
        size = int.from_bytes(self._ahead[:PREFIX_BYTES], "big")
        if size > limit:
            raise ProtocolError(f"a header of {size} bytes exceeds the limit of {limit}")
        end = PREFIX_BYTES + size
        await self._read_ahead(end)
        header, self._ahead = self._ahead[PREFIX_BYTES:end], self._ahead[end:]
        return header

    async def tensors(
        self, metas: Sequence[TensorMeta], *, patience: float = math.inf
    ) -> list[torch.Tensor]:
        """Allocate and receive what travels of the tensors that the header declares.

        Args:
            metas: of the tensors.
            patience: seconds to wait for each `PROGRESS_BYTES` of them: memory is held for all.

        Raises:
            DeadlineExceededError: they come more slowly than that.
            ProtocolError: the stream ended before, or more has come already.
            StreamResetError, ConnectionClosedError: the sender is gone.
        """
        tensors = []
        for meta in metas:
            tensor, buffer = empty(wire_form(meta))
            known = min(len(self._ahead), len(buffer))
            buffer[:known] = self._ahead[:known]
            self._ahead = self._ahead[known:]
            if known < len(buffer):
                await self._receive_into(buffer[known:], patience)
            tensors.append(tensor)
        if self._ahead:
            raise ProtocolError("the message is longer than its header says")
        return tensors

    async def _receive_into(self, buffer: memoryview, patience: float) -> None:
        try:
            await self._stream.receive_into(buffer, patience=patience)
        except trio.TooSlowError:
            raise DeadlineExceededError(
                f"the tensors come too slowly: less than {PROGRESS_BYTES} bytes within"
                f" {patience:g} s; send fewer rows at once"
            ) from None

    async def _read_ahead(self, size: int) -> None:
        while len(self._ahead) < size:
            data = await self._stream.receive_some(_READ_AHEAD)
            if not data:
                raise ProtocolError("the stream ended inside a header")
            self._ahead += data
