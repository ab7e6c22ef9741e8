"""How fast peers have been: what a trainer measures of them, as the costs of routes. Pure.

A call of n blocks takes a round trip and n computations. The round trip is measured by calls that
compute nothing, so that what a peer needs for a block can be told from calls of any length. A
peer whose computation was never seen is taken to be as fast as the others are on average: it is
neither shunned nor preferred for being new, and nobody's optimiser has to step to find out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from p2pnode.trainer.sequential.routing import Offer
from p2pnode.wire.peer_id import PeerId

_MAX_PEERS: Final = 4096  # the longest unused are forgotten beyond this
_FIRST_ROUND_TRIP: Final = 0.05  # seconds assumed when nothing at all was measured: across Europe
_FIRST_BLOCK: Final = 0.01  # likewise: a small block on a processor


@dataclass(slots=True)
class _Pace:
    round_trip: float | None = None
    block: float | None = None


class Paces:
    """Moving averages of what calls of each peer took.

    Args:
        smoothing: the weight of the newest call in an average.
    """

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._peers: OrderedDict[PeerId, _Pace] = OrderedDict()

    def has_round_trip(self, peer_id: PeerId) -> bool:
        """Tell whether the round trip to a peer was measured."""
        pace = self._peers.get(peer_id)
        return pace is not None and pace.round_trip is not None

    def round_trip(self, peer_id: PeerId) -> float:
        """Return the round trip to a peer in seconds; 0 when it was not measured."""
        pace = self._peers.get(peer_id)
        return 0.0 if pace is None else pace.round_trip or 0.0

    def receive_round_trip(self, peer_id: PeerId, seconds: float) -> None:
        """A call that computes nothing took so long."""
        pace = self._pace(peer_id)
        pace.round_trip = self._averaged(pace.round_trip, seconds)

    def receive_answer(self, peer_id: PeerId, blocks: int, seconds: float) -> None:
        """A call that ran so many blocks took so long."""
        pace = self._pace(peer_id)
        computed = max(0.0, seconds - (pace.round_trip or 0.0)) / blocks
        pace.block = self._averaged(pace.block, computed)

    def offer(self, peer_id: PeerId, *, load: int, surcharge: float, joins: bool = True) -> Offer:
        """Return what calls of a peer are expected to cost.

        Args:
            peer_id: the peer.
            load: how many calls wait there, as far as is known.
            surcharge: seconds added to the round trip, for a relay.
            joins: see `Offer`.
        """
        pace = self._peers.get(peer_id) or _Pace()
        trip, block = pace.round_trip, pace.block
        if trip is None:
            trip = self._mean([each.round_trip for each in self._peers.values()], _FIRST_ROUND_TRIP)
        if block is None:
            block = self._mean([each.block for each in self._peers.values()], _FIRST_BLOCK)
        return Offer(entry=trip + surcharge, block=block * (1 + load), joins=joins)

    def _averaged(self, average: float | None, seconds: float) -> float:
        if average is None:
            return seconds
        return average + self._smoothing * (seconds - average)

    def _mean(self, values: list[float | None], otherwise: float) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else otherwise

    def _pace(self, peer_id: PeerId) -> _Pace:
        pace = self._peers.setdefault(peer_id, _Pace())
        self._peers.move_to_end(peer_id)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)
        return pace
