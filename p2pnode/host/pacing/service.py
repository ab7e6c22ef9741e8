"""Holding a node to a bandwidth, whatever its connections are made of.

Sessions are paced and not sockets: there one knows which bytes are whose. A call of 64 MB waits
chunk by chunk, while the DHT, pings and the headers of other calls, on the same connection, go
past it: neither a write of few bytes nor the first bytes that come on a stream wait for bulk. And
QUIC, which has no byte stream beneath its sessions, is held like the others.

Counted is what streams carry. Encryption, frames and packets add about five parts in a hundred.
Connections through a relay are not counted twice: the one to the relay is.
"""

import math
from collections.abc import Callable
from typing import Final, NoReturn

import trio

from p2pnode.config import LimitSettings
from p2pnode.errors import ProtocolError
from p2pnode.host.pacing.core import Pace
from p2pnode.transport.session import Account, Buffer, MuxedSession, MuxedStream, StreamAccount

URGENT_BYTES: Final = 4096  # written at once, or received first on a stream: no bulk
MAX_CHUNK: Final = 256 * 1024


class Bandwidth:
    """What all streams of a node may send and take, in bytes a second."""

    def __init__(self, limits: LimitSettings) -> None:
        self.up = Pace(limits.max_upload)
        self.down = Pace(limits.max_download)
        self._is_limited = bool(limits.max_upload or limits.max_download)

    def pace(self, session: MuxedSession) -> MuxedSession:
        """Return the session, held to this bandwidth if there is a limit."""
        return PacedSession(session, self) if self._is_limited else session


async def _pass(pace: Pace, size: int, *, urgent: bool) -> None:
    """Wait until `size` bytes may pass."""
    now = trio.current_time()
    at = pace.reserve(size, now, urgent=urgent)
    if at > now:
        try:
            await trio.sleep_until(at)
        except trio.Cancelled:
            pace.give_back(size)
            raise


class PacedStream(MuxedStream):
    """A stream whose bytes wait for their turn."""

    __slots__ = ("_bandwidth", "_muxed", "_received", "_send_lock")

    def __init__(self, muxed: MuxedStream, bandwidth: Bandwidth) -> None:
        self._muxed = muxed
        self._bandwidth = bandwidth
        self._received = 0
        self._send_lock = trio.StrictFIFOLock()

    @property
    def account(self) -> StreamAccount:
        """See `MuxedStream`."""
        return self._muxed.account

    @property
    def is_live(self) -> bool:
        """See `MuxedStream`."""
        return self._muxed.is_live

    @property
    def send_window(self) -> int:
        """See `MuxedStream`."""
        return self._muxed.send_window

    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """See `MuxedStream`."""
        self._muxed.cancel_when_lost(scope)

    # --- sending --------------------------------------------------------------------------------

    async def send_all(self, data: Buffer) -> None:
        """See `MuxedStream`."""
        view = memoryview(data).cast("B")
        async with self._send_lock:
            rest = await self._send_ahead(view)
            await self._muxed.send_all(rest)

    async def send_last(self, data: Buffer) -> None:
        """See `MuxedStream`."""
        view = memoryview(data).cast("B")
        async with self._send_lock:
            rest = await self._send_ahead(view)
            await self._muxed.send_last(rest)

    async def _send_ahead(self, view: memoryview) -> memoryview:
        """Send all but the last chunk; returns that one, which may go now."""
        pace = self._bandwidth.up
        if len(view) <= URGENT_BYTES:
            await self._wait(len(view), urgent=True)
            return view
        size = pace.chunk(MAX_CHUNK)
        while len(view) > size:
            await self._wait(size, urgent=False)
            await self._muxed.send_all(view[:size])
            view = view[size:]
        await self._wait(len(view), urgent=False)
        return view

    async def _wait(self, size: int, *, urgent: bool) -> None:
        try:
            await _pass(self._bandwidth.up, size, urgent=urgent)
        except trio.Cancelled:
            self._muxed.reset()  # a part may be on its way
            raise

    def send_later(self, data: Buffer) -> None:
        """See `MuxedStream`."""
        self._bandwidth.up.reserve(len(data), trio.current_time())
        self._muxed.send_later(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._muxed.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See `MuxedStream`."""
        async with self._send_lock:
            await self._muxed.send_eof()

    # --- receiving ------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `MuxedStream`; how much there is turns out later, and the next one waits for it."""
        await _pass(self._bandwidth.down, 0, urgent=self._is_new)
        most = self._bandwidth.down.chunk(MAX_CHUNK)
        data = await self._muxed.receive_some(most if max_bytes is None else min(most, max_bytes))
        self._note(len(data))
        return data

    def receive_nowait(self) -> bytes:
        """See `MuxedStream`."""
        data = self._muxed.receive_nowait()
        self._note(len(data))
        return data

    def receive_into_nowait(self, buffer: memoryview) -> int:
        """See `MuxedStream`."""
        size = self._muxed.receive_into_nowait(buffer)
        self._note(size)
        return size

    async def receive_into(self, buffer: memoryview, until: float = math.inf) -> int:
        """See `MuxedStream`."""
        chunk = self._bandwidth.down.chunk(MAX_CHUNK)
        filled = 0
        while filled < len(buffer):
            wanted = min(chunk, len(buffer) - filled)
            with trio.move_on_at(until) as scope:
                await _pass(self._bandwidth.down, wanted, urgent=self._is_new)
            if scope.cancelled_caught:
                break
            came = await self._muxed.receive_into(buffer[filled : filled + wanted], until)
            self._received += came
            filled += came
            if came < wanted:
                self._bandwidth.down.give_back(wanted - came)
                break
        return filled

    @property
    def _is_new(self) -> bool:
        """Whether so little has come on it that it need not be bulk."""
        return self._received < URGENT_BYTES

    def _note(self, size: int) -> None:
        """Charge what has come already."""
        self._received += size
        self._bandwidth.down.reserve(size, trio.current_time())

    def unread(self, data: bytes) -> None:
        """See `MuxedStream`."""
        self._received -= len(data)
        self._bandwidth.down.give_back(len(data))
        self._muxed.unread(data)

    # --- the end --------------------------------------------------------------------------------

    def reset(self, code: int = 0) -> None:
        """See `MuxedStream`."""
        self._muxed.reset(code)

    async def aclose(self) -> None:
        """See `MuxedStream`."""
        await self._muxed.aclose()


class PacedSession(MuxedSession):
    """A session whose streams are held to a bandwidth."""

    def __init__(self, session: MuxedSession, bandwidth: Bandwidth) -> None:
        self.early_bytes = session.early_bytes
        self._session = session
        self._bandwidth = bandwidth

    @property
    def is_closed(self) -> bool:
        """See `MuxedSession`."""
        return self._session.is_closed

    @property
    def streams(self) -> int:
        """See `MuxedSession`."""
        return self._session.streams

    @property
    def bytes_sent(self) -> int:
        """See `MuxedSession`."""
        return self._session.bytes_sent

    @property
    def bytes_received(self) -> int:
        """See `MuxedSession`."""
        return self._session.bytes_received

    @property
    def rtt(self) -> float | None:
        """See `MuxedSession`."""
        return self._session.rtt

    @property
    def holdings(self) -> dict[str, int]:
        """See `MuxedSession`."""
        return self._session.holdings

    def charge_to(self, account: Account) -> None:
        """See `MuxedSession`."""
        self._session.charge_to(account)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `MuxedSession`."""
        await self._session.run(task_status=task_status)

    async def open_stream(self) -> MuxedStream:
        """See `MuxedSession`."""
        return PacedStream(await self._session.open_stream(), self._bandwidth)

    async def serve(self, start: Callable[[MuxedStream], object]) -> NoReturn:
        """See `MuxedSession`."""
        await self._session.serve(lambda muxed: start(PacedStream(muxed, self._bandwidth)))

    async def refuse(self, code: int) -> None:
        """See `MuxedSession`."""
        await self._session.refuse(code)

    def abort(self, error: ProtocolError) -> None:
        """See `MuxedSession`."""
        self._session.abort(error)

    async def aclose(self) -> None:
        """See `MuxedSession`."""
        await self._session.aclose()
