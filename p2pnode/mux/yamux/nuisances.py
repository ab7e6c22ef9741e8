"""How much a Yamux peer may pester us with frames that cost it nothing and us a little; pure.

Resets, refused streams, pings, empty data. Honest peers send a few a second; a trainer that cancels
a step of calls resets hundreds at once.
"""

from typing import Final

from p2pnode.errors import ProtocolError

NUISANCE_BURST: Final = 4000.0
NUISANCE_RATE: Final = 100.0  # a second
PESTERED_BELOW: Final = 0.9  # of the burst left


class Nuisances:
    """A peer's allowance of such frames, which refills with time."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = NUISANCE_BURST
        self._at = now

    @property
    def is_pestered(self) -> bool:
        """Whether the peer sends more of them than honest ones do, if not yet too many."""
        return self._left < NUISANCE_BURST * PESTERED_BELOW

    def note(self, now: float) -> None:
        """Count one.

        Raises:
            ProtocolError: there have been too many.
        """
        earned = (now - self._at) * NUISANCE_RATE
        self._left = min(self._left + earned, NUISANCE_BURST) - 1
        self._at = now
        if self._left < 0:
            raise ProtocolError("the peer floods us with resets, pings or empty frames")
