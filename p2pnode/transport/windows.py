"""How far the receive windows of a session's streams may grow, whichever muxer has them. Pure.

A window limits a stream to one window a round trip. So one that its reader uses up faster than a
few round trips is doubled, up to a limit for the stream and one for the session, and only if the
stream's account agrees.

Source: go-yamux 4, which doubles by the same rule.
"""

from typing import Final

from p2pnode.transport.session import StreamAccount

GROWTH_ROUND_TRIPS: Final = 4  # a window half used up within so many is doubled, as in go-yamux


class WindowGrowth:
    """A session's budget for windows beyond the one that every stream begins with.

    Args:
        initial: what every stream begins with, in bytes.
        most: how large one window may get, in bytes.
        most_growth: by how many bytes all windows together may have grown.

    Attributes:
        grown: by how many bytes they have, now.
    """

    __slots__ = ("_initial", "_most", "_most_growth", "grown")

    def __init__(self, *, initial: int, most: int, most_growth: int) -> None:
        self.grown = 0
        self._initial = initial
        self._most = most
        self._most_growth = most_growth

    def grow(
        self, window: int, account: StreamAccount, took: float, round_trip: float | None
    ) -> int:
        """Charge the growth of a window that has been half used up.

        Args:
            window: how large it is, in bytes.
            account: the stream's.
            took: how long its use took, in seconds.
            round_trip: to the peer, in seconds; as long as it is unknown nothing grows.

        Returns:
            How many bytes larger the window is to be; 0 if it stays.
        """
        if round_trip is None or took >= GROWTH_ROUND_TRIPS * round_trip:
            return 0
        growth = min(window, self._most - window)
        if growth <= 0 or self.grown + growth > self._most_growth or not account.grow(growth):
            return 0
        self.grown += growth
        return growth

    def give_back(self, window: int) -> None:
        """Note that a stream whose window had grown to `window` bytes is over."""
        self.grown -= window - self._initial
