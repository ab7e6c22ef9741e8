"""Addresses that failed are left alone for a while, which doubles at each further failure. Pure.

A peer that is gone is told of by others for hours, and each telling would cause a dial; without
pauses, all who know it would knock at its door, or at that of whoever has its address now, for as
long. The pauses are drawn from the upper half of the doubled time, so that those who failed
together do not come back together.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class _Failures:
    count: int
    until: float


class DialBackoff:
    """Remembers failed addresses, each for one peer; the oldest failures go when it is full."""

    def __init__(self, settings: NetworkSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._failures: OrderedDict[tuple[PeerId, Multiaddr], _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def remaining(self, peer_id: PeerId, address: Multiaddr, now: float) -> float:
        """Return for how many seconds `address` is to be left alone; 0 if it may be dialled."""
        found = self._failures.get((peer_id, address))
        return max(found.until - now, 0.0) if found is not None else 0.0

    def fail(self, peer_id: PeerId, address: Multiaddr, now: float) -> None:
        """Note a failed dial. One that had been quiet for a whole longest pause starts anew."""
        key = (peer_id, address)
        longest = self._settings.dial_backoff_max
        found = self._failures.pop(key, None)
        if found is None or now - found.until > longest:
            found = _Failures(0, now)
        doubled = self._settings.dial_backoff * 2.0 ** min(found.count, 62)
        found.count += 1
        found.until = now + min(doubled, longest) * self._rng.uniform(0.5, 1.0)
        self._failures[key] = found
        while len(self._failures) > self._settings.dial_backoff_addresses:
            self._failures.popitem(last=False)

    def succeed(self, peer_id: PeerId, address: Multiaddr) -> None:
        """Note that `address` works."""
        self._failures.pop((peer_id, address), None)
