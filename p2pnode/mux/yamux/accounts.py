"""What a session asks before it takes on memory for its peer: an account, kept elsewhere.

A window is a promise: the peer may fill it before we have read a byte. So each stream's window is
charged when the stream begins and when the window grows, and given back when the stream is over.
Nothing is asked while data moves.
"""

from typing import Protocol


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
