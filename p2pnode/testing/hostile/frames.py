"""Yamux by hand: frames of any content, in any order."""

from collections import Counter
from typing import Final

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.mux.multistream.core import HEADER, encode_line
from p2pnode.mux.yamux.frames import HEADER_BYTES, INITIAL_WINDOW, Flag, FrameType, Header
from p2pnode.security.noise import SecureChannel

KEPT_BYTES: Final = 64 * 1024  # of each stream's data, for an attack to look at


def frame(
    kind: int, flags: int, stream_id: int, length: int | None = None, body: bytes = b""
) -> bytes:
    """Return a frame; its length is that of `body` unless it is to lie."""
    return Header(kind, flags, stream_id, len(body) if length is None else length).encode() + body


class FrameWire:
    """One end of a Yamux session that keeps no rule by itself but to answer pings.

    Attributes:
        go_away: the code with which the victim ended the session, if it did.
        ended: set when nothing more can come.
        resets: the code of each stream that the victim reset.
        finished: streams on which the victim has sent its end.
        data: the beginning of what came on each stream.
        granted: how much the victim has added to the window of each stream.
    """

    def __init__(self, channel: SecureChannel, *, is_client: bool) -> None:
        self.channel = channel
        self.go_away: int | None = None
        self.ended = trio.Event()
        self.resets: dict[int, int] = {}
        self.finished: set[int] = set()
        self.data: dict[int, bytearray] = {}
        self.granted: Counter[int] = Counter()
        self._next_id = 1 if is_client else 2
        self._received = bytearray()
        self._changed = trio.Event()
        self._sending = trio.StrictFIFOLock()

    def open_stream(self) -> "FrameStream":
        """Take the next stream id; nothing is sent yet."""
        self._next_id += 2
        return FrameStream(self, self._next_id - 2)

    async def send(self, *frames: bytes) -> bool:
        """Send frames; returns False when the victim has closed."""
        async with self._sending:
            try:
                await self.channel.send_all(b"".join(frames))
            except (trio.BrokenResourceError, trio.ClosedResourceError, P2PNodeError):
                return False
            return True

    async def read(self) -> None:
        """Read frames until the end, and answer pings."""
        try:
            while data := await self.channel.receive_some():
                self._received += data
                await self._take_frames()
        except (trio.BrokenResourceError, trio.ClosedResourceError, P2PNodeError):
            pass  # closed the hard way
        self.ended.set()
        self._notify()

    async def _take_frames(self) -> None:
        while len(self._received) >= HEADER_BYTES:
            header = Header.decode(self._received[:HEADER_BYTES])
            size = HEADER_BYTES + (header.length if header.kind == FrameType.DATA else 0)
            if len(self._received) < size:
                return
            body = bytes(self._received[HEADER_BYTES:size])
            del self._received[:size]
            if header.kind == FrameType.PING and header.flags & Flag.SYN:
                await self.send(frame(FrameType.PING, Flag.ACK, 0, header.length))
            self._note(header, body)

    def _note(self, header: Header, body: bytes) -> None:
        if header.kind == FrameType.GO_AWAY:
            self.go_away = header.length
        elif header.stream_id:
            kept = self.data.setdefault(header.stream_id, bytearray())
            kept += body[: KEPT_BYTES - len(kept)]
            if header.kind == FrameType.WINDOW_UPDATE:
                self.granted[header.stream_id] += header.length
            if header.flags & Flag.RST:
                self.resets[header.stream_id] = header.length
            if header.flags & Flag.FIN:
                self.finished.add(header.stream_id)
        self._notify()

    async def wait_over(self, stream_id: int) -> None:
        """Wait until the victim has reset or finished a stream, or is gone."""
        while not self.is_over(stream_id):
            await self._changed.wait()

    async def wait_data(self, stream_id: int, size: int) -> bytes:
        """Wait for the first `size` bytes of a stream; returns fewer if the victim is gone."""
        while len(self.data.get(stream_id, b"")) < size and not self.ended.is_set():
            await self._changed.wait()
        return bytes(self.data.get(stream_id, b"")[:size])

    async def wait_grant(self, stream_id: int, size: int) -> None:
        """Wait until the victim has allowed `size` bytes on a stream, or it is over."""
        while self.granted[stream_id] + INITIAL_WINDOW < size and not self.is_over(stream_id):
            await self._changed.wait()

    def is_over(self, stream_id: int) -> bool:
        """Whether the victim has reset or finished a stream, or is gone."""
        return stream_id in self.resets or stream_id in self.finished or self.ended.is_set()

    async def wait_opened(self, protocol: str) -> "FrameStream":
        """Wait for the victim to open a stream of `protocol`, which we agree to."""
        line = encode_line(protocol)
        while not self.ended.is_set():
            for stream_id, data in self.data.items():
                is_theirs = stream_id % 2 != self._next_id % 2
                if is_theirs and line in data:
                    stream = FrameStream(self, stream_id, opening=Flag.ACK)
                    await stream.send(encode_line(HEADER) + line)
                    return stream
            await self._changed.wait()
        raise trio.BrokenResourceError("the victim closed")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class FrameStream:
    """One stream of a `FrameWire`.

    Attributes:
        sent: bytes of data sent on it.
    """

    def __init__(self, wire: FrameWire, stream_id: int, *, opening: int = Flag.SYN) -> None:
        self.wire = wire
        self.stream_id = stream_id
        self.sent = 0
        self._flags = opening

    async def send(self, data: bytes = b"", flags: int = Flag.NONE) -> bool:
        """Send data in one frame, whatever the window; returns False when the victim closed."""
        flags, self._flags = flags | self._flags, Flag.NONE
        self.sent += len(data)
        return await self.wire.send(frame(FrameType.DATA, flags, self.stream_id, body=data))

    async def propose(self, protocol: str) -> None:
        """Propose a protocol, without waiting for the answer."""
        await self.send(encode_line(HEADER) + encode_line(protocol))

    async def finish(self) -> None:
        """Send the end."""
        await self.send(flags=Flag.FIN)

    async def wait_over(self) -> None:
        """Wait until the victim has reset or finished the stream."""
        await self.wire.wait_over(self.stream_id)

    async def wait_data(self, size: int) -> bytes:
        """Wait for the first `size` bytes of the victim's."""
        return await self.wire.wait_data(self.stream_id, size)

    async def wait_grant(self, size: int) -> None:
        """Wait until the victim allows `size` bytes in all, or the stream is over."""
        await self.wire.wait_grant(self.stream_id, size)
