"""Addresses that failed are left alone for a while, which doubles at each further failure. Pure.

A peer that is gone is told of by others for hours, and each telling would cause a dial; without
pauses, all who know it would knock at its door, or at that of whoever has its address now, for as
long. The pauses are drawn from the upper half of the doubled time, so that those who failed
together do not come back together.

A node to which no peer at all is connected has reason to think that it is its own network that
fails. Its pauses stay short, so that it is back soon after its network is; and with the first
connection it forgets what failed meanwhile, as it does when it comes to have another address.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class _Failures:
    """Those of one address: the last one's time, and the pause after it before it was cut."""

    count: int
    at: float
    doubled: float
    share: float

    def until(self, longest: float) -> float:
        return self.at + min(self.doubled, longest) * self.share


class DialBackoff:
    """Remembers failed addresses, each for one peer; the oldest failures go when it is full."""

    def __init__(self, settings: NetworkSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._failures: OrderedDict[tuple[PeerId, Multiaddr], _Failures] = OrderedDict()
        self._addresses: dict[PeerId, dict[Multiaddr, None]] = {}  # those in it, by peer
        self._alone = False

    def __len__(self) -> int:
        return len(self._failures)

    def remaining(self, peer_id: PeerId, address: Multiaddr, now: float) -> float:
        """Return for how many seconds `address` is to be left alone; 0 if it may be dialled."""
        found = self._failures.get((peer_id, address))
        return max(found.until(self._longest) - now, 0.0) if found is not None else 0.0

    def fail(self, peer_id: PeerId, address: Multiaddr, now: float) -> None:
        """Note a failed dial. One that had been quiet for a whole longest pause starts anew."""
        found = self._failures.get((peer_id, address))
        longest = self._settings.dial_backoff_max
        count = 0 if found is None or now - found.until(longest) > longest else found.count
        doubled = self._settings.dial_backoff * 2.0 ** min(count, 62)
        self.succeed(peer_id, address)  # so that it is the newest
        self._failures[peer_id, address] = _Failures(
            count + 1, now, doubled, self._rng.uniform(0.5, 1.0)
        )
        self._addresses.setdefault(peer_id, {})[address] = None
        while len(self._failures) > self._settings.dial_backoff_addresses:
            self.succeed(*next(iter(self._failures)))

    def failures(self, peer_id: PeerId, address: Multiaddr) -> int:
        """How often `address` has failed in a row, as far as that is remembered."""
        found = self._failures.get((peer_id, address))
        return 0 if found is None else found.count

    def succeed(self, peer_id: PeerId, address: Multiaddr) -> None:
        """Note that `address` works."""
        if self._failures.pop((peer_id, address), None) is not None:
            addresses = self._addresses[peer_id]
            del addresses[address]
            if not addresses:
                del self._addresses[peer_id]

    def meet(self, peer_id: PeerId) -> None:
        """Note that a peer is connected, whoever dialled: where it is, it can be tried again."""
        if self._alone:
            self._alone = False
            self.clear()
        for address in tuple(self._addresses.get(peer_id, ())):
            self.succeed(peer_id, address)

    def be_alone(self) -> None:
        """Note that no peer is connected, until one is met."""
        self._alone = True

    def clear(self) -> None:
        """Forget all failures: this node has come to another place."""
        self._failures.clear()
        self._addresses.clear()

    @property
    def _longest(self) -> float:
        settings = self._settings
        return settings.dial_backoff_alone if self._alone else settings.dial_backoff_max
