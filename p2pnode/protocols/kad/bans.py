"""Peers that failed us, left alone for a time that doubles with each further failure.

A success forgets a peer's failures. Failures while a peer is banned already are those of requests
that were under way when the first one failed, and do not count again.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

MAX_REMEMBERED: Final = 10_000  # the longest untouched are forgotten beyond this

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Ban:
    until: float
    time: float  # of the latest ban, in seconds


class Bans(Generic[K]):
    """Who is banned until when; `first` and `longest` bound the time of one ban in seconds."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = max(first, longest)
        self._bans: OrderedDict[K, _Ban] = OrderedDict()

    def __len__(self) -> int:
        """Count those remembered, banned or not."""
        return len(self._bans)

    def is_banned(self, who: K, now: float) -> bool:
        """Tell whether to leave `who` alone."""
        ban = self._bans.get(who)
        return ban is not None and now < ban.until

    def banned_until(self, who: K) -> float:
        """Return when the ban of `who` ends, which may be over; minus infinity for no ban."""
        ban = self._bans.get(who)
        return float("-inf") if ban is None else ban.until

    def time_of(self, who: K) -> float:
        """Return how long the latest ban of `who` is, running or over; 0 for no ban."""
        ban = self._bans.get(who)
        return 0.0 if ban is None else ban.time

    def restore(self, who: K, until: float, time: float) -> None:
        """Take over a ban from an earlier life of this node."""
        self._bans[who] = _Ban(until, min(max(time, self._first), self._longest))
        if len(self._bans) > MAX_REMEMBERED:
            self._bans.popitem(last=False)

    def receive_failure(self, who: K, now: float) -> bool:
        """Ban `who`, twice as long as before; False when a ban was running already."""
        ban = self._bans.get(who)
        if ban is None:
            ban = self._bans[who] = _Ban(now + self._first, self._first)
            if len(self._bans) > MAX_REMEMBERED:
                self._bans.popitem(last=False)
            return True
        if now < ban.until:
            return False
        ban.time = min(2 * ban.time, self._longest)
        ban.until = now + ban.time
        self._bans.move_to_end(who)
        return True

    def receive_success(self, who: K) -> None:
        """Forget the failures of `who`."""
        self._bans.pop(who, None)

    def pardon(self, who: K) -> None:
        """Lift a running ban, but remember it for the time of the next."""
        if ban := self._bans.get(who):
            ban.until = float("-inf")
