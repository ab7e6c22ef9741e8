"""What a session is: many streams on one secured connection, whoever makes them.

Most transports give byte streams, on which `p2pnode.mux.yamux` makes sessions. QUIC has streams of
its own. The host takes both alike: they pass the same tests, and are charged to the same accounts.

A window is a promise: the peer may fill it before we have read a byte. So each stream's window is
charged when the stream begins and when the window grows, and given back when the stream is over.
Nothing is asked while data moves.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio

from p2pnode.errors import ProtocolError

Buffer = bytes | bytearray | memoryview


class StreamAccount(Protocol):
    """What one stream may use."""

    def grow(self, size: int, /) -> bool:
        """Charge `size` more bytes of window; False, and nothing charged, when they do not fit."""

    def end(self, unread: int, /) -> None:
        """Give back all but the `unread` bytes that wait for their reader; may be repeated."""


class Account(Protocol):
    """What one session may use."""

    def open_stream(self, *, inbound: bool, window: int, now: float) -> StreamAccount:
        """Charge a stream with its first window.

        Raises:
            ResourceLimitError: there is no room for it; nothing is charged.
        """


class Unmetered:
    """The account of a session that nobody counts, as in a measurement of the muxer alone."""

    def open_stream(self, **_: object) -> StreamAccount:
        """See `Account`."""
        return self

    def grow(self, _: int, /) -> bool:
        """See `StreamAccount`."""
        return True

    def end(self, _: int, /) -> None:
        """See `StreamAccount`."""


class MuxedStream(trio.abc.HalfCloseableStream):
    """One stream of a session.

    `send_all` returns when the session has taken the data, which may change from then on; one that
    is cancelled while it waits resets the stream. Sends of several tasks follow one another.
    Everything raises `StreamResetError` once either side has reset the stream,
    `ConnectionClosedError` once the session has ended, and `trio.ClosedResourceError` after this
    side has closed it.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def account(self) -> StreamAccount:
        """What it is charged to."""

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether neither side has finished or reset it, as far as is known here."""

    @property
    @abstractmethod
    def send_window(self) -> int:
        """How many bytes can be sent now that need not wait for the peer to read."""

    async def send_last(self, data: Buffer) -> None:
        """Send `data` and finish our direction, in one piece where that is possible."""
        await self.send_all(data)
        await self.send_eof()

    @abstractmethod
    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """Cancel `scope` when the stream fails, or if it has; None lets go of the last one."""

    @abstractmethod
    def send_later(self, data: Buffer) -> None:
        """Queue bytes to go with what is sent next; a few, alone, go within a moment.

        Whoever waits to read from the stream sends them, too.
        """

    @abstractmethod
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received bytes; b"" at the end.

        Raises:
            trio.BusyResourceError: another task is receiving.
        """

    @abstractmethod
    def receive_nowait(self) -> bytes:
        """Return bytes that have come, b"" if none have; not while a task is receiving."""

    def receive_pieces_nowait(self, most: int) -> list[bytes]:
        """Return what has come, up to `most` bytes, in pieces as they lie; not while one reads."""
        pieces = []
        while most and (piece := self.receive_nowait()):
            if len(piece) > most:
                self.unread(piece[most:])
                piece = piece[:most]
            pieces.append(piece)
            most -= len(piece)
        return pieces

    @abstractmethod
    def receive_into_nowait(self, buffer: memoryview) -> int:
        """Copy bytes that have come to the front of `buffer`; returns how many there were.

        Not while a task is receiving.
        """

    @abstractmethod
    async def receive_into(self, buffer: memoryview, until: float = math.inf) -> int:
        """Fill `buffer`; returns how many bytes there were for it before the end, or `until`.

        What has come when it is cancelled is lost. Raises as `receive_some` does.
        """

    @abstractmethod
    def unread(self, data: bytes) -> None:
        """Put back the end of what was received, to be received again."""

    @abstractmethod
    def reset(self, code: int = 0) -> None:
        """Abort both directions at once; `code` tells the peer why. Never blocks."""


class MuxedSession(trio.abc.AsyncResource):
    """A session; `run` does its work until it ends or is cancelled.

    Attributes:
        early_bytes: how much may be sent on a fresh stream in the hope that the peer takes its
            protocol: what fits the window that every stream of the peer begins with.
    """

    early_bytes: int

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the session has ended."""

    @property
    @abstractmethod
    def streams(self) -> int:
        """How many streams are open."""

    @property
    @abstractmethod
    def bytes_sent(self) -> int:
        """How many bytes of stream data went out."""

    @property
    @abstractmethod
    def bytes_received(self) -> int:
        """How many bytes of stream data came in."""

    @property
    @abstractmethod
    def rtt(self) -> float | None:
        """The shortest recent round trip in seconds, once known."""

    @property
    @abstractmethod
    def holdings(self) -> dict[str, int]:
        """What it holds in memory, by what it is; all zero when nothing was left behind."""

    @abstractmethod
    def charge_to(self, account: Account) -> None:
        """Charge all streams to `account`, instead of to nobody; call it before `run`."""

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the session until either side closes it; then every stream has failed.

        Raises:
            ProtocolError: the peer broke a rule; it was told.
            ConnectionClosedError: the connection broke, or the peer gave up or went silent.
        """

    @abstractmethod
    async def open_stream(self) -> MuxedStream:
        """Open a stream; nothing is sent before its first data, or before it is first read.

        Raises:
            ConnectionClosedError: the session has ended or is ending.
            ResourceLimitError: the account has no room for another stream, or the peer has none.
        """

    @abstractmethod
    async def serve(self, start: Callable[[MuxedStream], object]) -> NoReturn:
        """Pass each stream that the peer opens to `start`, which must not wait, at once.

        Raises:
            ConnectionClosedError: the session ended.
        """

    @abstractmethod
    async def refuse(self, code: int) -> None:
        """End a session that has not begun, and tell the peer why, in bounded time."""

    @abstractmethod
    def abort(self, error: ProtocolError) -> None:
        """End the session at once because of `error`, which `run` raises; never blocks."""

    @abstractmethod
    async def aclose(self) -> None:
        """Write what can be written, say goodbye and end the session, all in bounded time.

        The streams fail with `ConnectionClosedError`; what they have received can still be read.
        """
