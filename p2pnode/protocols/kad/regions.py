"""Parts of the key space that were looked through lately, and who is there.

A look-up of one key tells who is closest to many others. Let it have found the k closest peers to
a key A, the farthest of them at distance R, and let the point of a key B differ from A's in the
last m bits only. Then no other peer is closer to B than R with its last m bits cleared: XOR with
B and with A agree above these bits. All peers found that are closer than that to B are, for sure,
the closest ones to B. When they are half of k, they will do: whoever looks for B meets them first.
So storing thousands of keys takes about as many look-ups as there are nodes / (k / 2).
"""

import bisect
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from p2pnode.protocols.kad.keys import point
from p2pnode.wire.peer_id import PeerId

MAX_REGIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Who is closest to a key.

    Attributes:
        peers: the closest first.
        sure: how many of them are known to be the closest; there may be closer ones than those
            behind.
    """

    peers: list[PeerId]
    sure: int


class Regions:
    """Remembers the results of look-ups for `lifetime` seconds, the latest `MAX_REGIONS`."""

    def __init__(self, k: int, lifetime: float) -> None:
        self._k = k
        self._lifetime = lifetime
        self._found: OrderedDict[int, tuple[list[PeerId], float]] = OrderedDict()
        self._centres: list[int] = []  # sorted

    def __len__(self) -> int:
        return len(self._centres)

    def remember(self, target: int, closest: list[PeerId], now: float) -> None:
        """Note the peers found closest to a point, the closest first."""
        while self._found and next(iter(self._found.values()))[1] <= now - self._lifetime:
            self._drop(next(iter(self._found)))
        self._drop(target)
        if len(self._found) == MAX_REGIONS:
            self._drop(next(iter(self._found)))
        self._found[target] = (closest, now)
        bisect.insort(self._centres, target)

    def recall(self, target: int, now: float) -> Neighbourhood | None:
        """Return who is closest to a point, when a look-up nearby has told."""
        best: Neighbourhood | None = None
        for centre in self._beside(target):
            closest, since = self._found[centre]
            if now < since + self._lifetime:
                found = self._see(centre, closest, target)
                if best is None or found.sure > best.sure:
                    best = found
        return best if best is not None and 2 * best.sure >= min(self._k, len(best.peers)) else None

    def forget(self, target: int) -> None:
        """Make the next look-up near a point a full one."""
        for centre in self._beside(target):
            self._drop(centre)

    def _beside(self, target: int) -> list[int]:
        """The centres next to a point: those that share most leading bits are among them."""
        place = bisect.bisect_left(self._centres, target)
        return self._centres[max(place - 1, 0) : place + 2]

    def _see(self, centre: int, closest: list[PeerId], target: int) -> Neighbourhood:
        by_distance = sorted((point(peer) ^ target, peer) for peer in closest)
        peers = [peer for _, peer in by_distance]
        if len(closest) < self._k or centre == target:
            return Neighbourhood(peers, len(peers))  # that is the whole network, or the very key
        differing = (centre ^ target).bit_length()
        radius = (point(closest[-1]) ^ centre) >> differing << differing
        return Neighbourhood(peers, bisect.bisect_left(by_distance, (radius, b"")))

    def _drop(self, centre: int) -> None:
        if self._found.pop(centre, None) is not None:
            del self._centres[bisect.bisect_left(self._centres, centre)]
