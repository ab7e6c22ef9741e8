"""One message of a tensor call over a stream: a header behind its length, then tensors."""

import math
from collections.abc import Sequence
from typing import Final

import torch
import trio

from p2pnode.errors import DeadlineExceededError, ProtocolError
from p2pnode.host import PROGRESS_BYTES, Stream
from p2pnode.rpc.messages import PREFIX_BYTES
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import empty

# Below this, one copy is cheaper than another write; above it, tensors are sent from their memory.
MAX_JOINED_BYTES: Final = 32 * 1024
_READ_AHEAD: Final = 4096  # holds most headers, and small calls whole; what is too much is copied


async def send_message(stream: Stream, header: bytes, buffers: Sequence[memoryview]) -> None:
    """Send a header, which has its length in front, the tensors, and the end of our direction.

    Raises:
        StreamResetError, ConnectionClosedError: the receiver is gone.
    """
    if len(header) + sum(map(len, buffers)) <= MAX_JOINED_BYTES:
        await stream.send_last(b"".join((header, *buffers)))
        return
    await stream.send_all(header)
    *others, last = buffers
    for buffer in others:
        await stream.send_all(buffer)
    await stream.send_last(last)


class IncomingMessage:
    """Reads one message; tensors are received into their own memory."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ahead = b""  # bytes read together with what was asked for

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
        """Allocate and receive the tensors that the header declares.

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
            tensor, buffer = empty(meta)
            known = min(len(self._ahead), len(buffer))
            buffer[:known] = self._ahead[:known]
            self._ahead = self._ahead[known:]
            try:
                await self._stream.receive_into(buffer[known:], patience=patience)
            except trio.TooSlowError:
                raise DeadlineExceededError(
                    f"the tensors come too slowly: less than {PROGRESS_BYTES} bytes within"
                    f" {patience:g} s; send fewer rows at once"
                ) from None
            tensors.append(tensor)
        if self._ahead:
            raise ProtocolError("the message is longer than its header says")
        return tensors

    async def _read_ahead(self, size: int) -> None:
        while len(self._ahead) < size:
            data = await self._stream.receive_some(_READ_AHEAD)
            if not data:
                raise ProtocolError("the stream ended inside a header")
            self._ahead += data
