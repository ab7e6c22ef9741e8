"""How elements travel: spans of them as streams of bytes, in the group's codec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
import trio

from p2pnode.config.experts import Codec
from p2pnode.errors import DeadlineExceededError
from p2pnode.host import PROGRESS_BYTES, Stream
from p2pnode.rpc.codecs import transform
from p2pnode.rpc.codecs.names import travelling, wire_bytes, wire_form
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import MAX_JOINED_BYTES
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import buffer_of, empty
from p2pnode.swarm.averaging.elements import Elements
from p2pnode.swarm.averaging.parts import Span, chunks

T = TypeVar("T")

_CASTS: Final = frozenset({"none", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True)
class Travelling:
    """A chunk as it travels, and what its receivers make of it."""

    buffer: memoryview
    decoded: torch.Tensor


class Carrier:
    """Sends and receives elements of one round.

    Args:
        codec: the group's.
        precision: the dtype of elements here.
        transcoder: does what the codec takes.
    """

    def __init__(self, codec: Codec, precision: str, transcoder: Transcoder) -> None:
        self._codec = codec
        self._precision = precision
        self._transcoder = transcoder
        self._is_plain = self._meta(1).codec == "none"

    def _meta(self, count: int) -> TensorMeta:
        return travelling(TensorMeta(self._precision, (count,)), self._codec)

    def size(self, spans: Sequence[Span]) -> int:
        """Return how many bytes travel of these chunks."""
        return sum(wire_bytes(self._meta(end - start)) for start, end in spans)

    async def send(self, stream: Stream, elements: Elements, span: Span) -> None:
        """Send a span, chunk by chunk.

        Raises:
            StreamResetError, ConnectionClosedError: the receiver is gone.
        """
        if self._is_plain:
            await _send_buffers(stream, elements.buffers(span))
            return
        for chunk in chunks(span):
            await stream.send_all((await self.encode(elements.get(chunk), decode=False)).buffer)

    async def send_exactly(self, stream: Stream, elements: Elements) -> None:
        """Send all elements as they are, whatever the codec.

        Raises:
            StreamResetError, ConnectionClosedError: the receiver is gone.
        """
        await _send_buffers(stream, elements.buffers((0, elements.count)))

    async def encode(self, values: torch.Tensor, *, decode: bool = True) -> Travelling:
        """Return a chunk as it travels; without `decode`, what comes of it is not right."""
        if self._is_plain:
            return Travelling(buffer_of(values), values)
        meta = self._meta(len(values))

        def work() -> Travelling:
            wire = transform.encode(values, meta)
            return Travelling(buffer_of(wire), transform.decode(wire, meta) if decode else values)

        return await self._do(work, meta)

    async def receive(
        self, stream: Stream, elements: Elements, span: Span, patience: float
    ) -> None:
        """Receive a span that `send` has sent, into its place.

        Raises:
            DeadlineExceededError: `PROGRESS_BYTES` of it take more than `patience` seconds.
            ProtocolError: the stream ended before, or what came is malformed.
            StreamResetError, ConnectionClosedError: the sender is gone.
        """
        if self._is_plain:
            for buffer in elements.buffers(span):
                await _receive_into(stream, buffer, patience)
            return
        for chunk in chunks(span):
            received = await self.receive_chunk(stream, chunk, patience)
            elements.put(chunk, await self.decode(received, chunk))

    async def receive_exactly(self, stream: Stream, elements: Elements, patience: float) -> None:
        """Receive what `send_exactly` has sent; see `receive` for what it raises."""
        for buffer in elements.buffers((0, elements.count)):
            await _receive_into(stream, buffer, patience)

    async def receive_chunk(self, stream: Stream, chunk: Span, patience: float) -> torch.Tensor:
        """Receive one chunk, and leave it as it came; see `receive` for what it raises."""
        received, buffer = empty(wire_form(self._meta(chunk[1] - chunk[0])))
        await _receive_into(stream, buffer, patience)
        return received

    async def decode(self, received: torch.Tensor, chunk: Span) -> torch.Tensor:
        """Return the elements of a chunk that `receive_chunk` gave.

        Raises:
            ProtocolError: it is malformed.
        """
        meta = self._meta(chunk[1] - chunk[0])
        return await self._do(lambda: transform.decode(received, meta), meta)

    async def _do(self, work: Callable[[], T], meta: TensorMeta) -> T:
        # A cast of a chunk takes 0.1 ms, less than it takes to hand it to a thread.
        return work() if meta.codec in _CASTS else await self._transcoder.do(work, meta.nbytes)


async def _send_buffers(stream: Stream, buffers: Sequence[memoryview]) -> None:
    """Send large buffers from where they are, and small ones joined."""
    small: list[memoryview] = []
    size = 0
    for buffer in buffers:
        if size + len(buffer) > MAX_JOINED_BYTES and small:
            await stream.send_all(b"".join(small))
            small, size = [], 0
        if len(buffer) > MAX_JOINED_BYTES:
            await stream.send_all(buffer)
        else:
            small.append(buffer)
            size += len(buffer)
    if small:
        await stream.send_all(b"".join(small))


async def _receive_into(stream: Stream, buffer: memoryview, patience: float) -> None:
    try:
        await stream.receive_into(buffer, patience=patience)
    except trio.TooSlowError:
        raise DeadlineExceededError(
            f"less than {PROGRESS_BYTES} bytes came within {patience:g} s"
        ) from None
