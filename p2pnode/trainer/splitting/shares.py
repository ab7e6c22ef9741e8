"""Which peer of a swarm gets which rows of a batch: pure."""

import itertools
import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.wire.peer_id import PeerId

_MAX_PEERS: Final = 4096  # whose speeds are remembered; those measured longest ago go first


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a batch, from `start` up to, but not including, `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def share_out(rows: int, speeds: Sequence[float]) -> list[int]:
    """Return how many rows each of some peers gets, in proportion to their speeds.

    If there are as many rows as peers, each gets at least one: who computes nothing would never
    show that it has become faster. What is left after rounding down goes to the largest remainders.

    Args:
        rows: to share out.
        speeds: positive, at least one.
    """
    least = int(rows >= len(speeds))
    total = sum(speeds)
    left = rows - least * len(speeds)
    wanted = [left * speed / total for speed in speeds]
    counts = [min(left, int(each)) for each in wanted]
    order = sorted(range(len(speeds)), key=lambda at: (counts[at] - wanted[at], at))
    for at in itertools.islice(itertools.cycle(order), left - sum(counts)):
        counts[at] += 1
    return [least + count for count in counts]


def assign(
    spans: Iterable[Rows], speeds: Mapping[PeerId, float], limits: Mapping[PeerId, int]
) -> list[tuple[PeerId, Rows]]:
    """Share rows out among peers, in order, cut into parts that each peer takes in one call.

    Args:
        spans: the rows.
        speeds: of the peers, in any unit.
        limits: the most rows of one part, at least 1.
    """
    waiting = list(spans)
    peers = list(speeds)
    counts = share_out(sum(map(len, waiting)), [speeds[peer] for peer in peers])
    parts: list[tuple[PeerId, Rows]] = []
    for peer, count in zip(peers, counts, strict=True):
        while count:  # a peer's share may be of several spans
            span = waiting.pop(0)
            size = min(count, len(span), limits[peer])
            parts.append((peer, Rows(span.start, span.start + size)))
            if size < len(span):
                waiting.insert(0, Rows(span.start + size, span.stop))
            count -= size  # noqa: PLW2901  # what is left of the peer's share
    return parts


def cut(rows: Rows, most: int) -> list[Rows]:
    """Cut rows into parts of `most` at most."""
    return [
        Rows(start, min(start + most, rows.stop)) for start in range(rows.start, rows.stop, most)
    ]


class _Pace:
    """What calls of one peer have shown."""

    def __init__(self, parts: int) -> None:
        # Seconds for a row, forward and backward, of the last parts.
        self.costs: tuple[deque[float], ...] = (deque(maxlen=parts), deque(maxlen=parts))
        self.latency = math.inf  # seconds of the shortest call without rows


class Speeds:
    """How many rows a second each peer computes, forward and backward, as its parts have shown.

    Of each kind the median of the last parts counts, so that one which a lost packet has held up
    moves no rows.

    Args:
        parts: so many of a kind count.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._paces: OrderedDict[PeerId, _Pace] = OrderedDict()

    def receive_latency(self, peer_id: PeerId, seconds: float) -> None:
        """Take in how long a call without rows took."""
        pace = self._pace(peer_id)
        pace.latency = min(pace.latency, seconds)

    def receive(self, peer_id: PeerId, rows: int, seconds: float, *, backward: bool) -> None:
        """Take in how long a call with so many rows took, at least one.

        What the shortest call without rows took is not counted as work, or else a peer with few
        rows would seem slow for the way to it, and get ever fewer; a tenth of the time is, in any
        case.
        """
        pace = self._pace(peer_id)
        on_the_way = pace.latency if pace.latency < math.inf else 0.0
        pace.costs[backward].append(max(seconds - on_the_way, 0.1 * seconds, 1e-9) / rows)

    def of(self, peers: Sequence[PeerId]) -> dict[PeerId, float]:
        """Return the speeds of some peers; what is not known of one is the mean of the others."""
        totals = dict.fromkeys(peers, 0.0)
        for kind in range(2):
            known = {
                peer: statistics.median(pace.costs[kind])
                for peer in peers
                if (pace := self._paces.get(peer)) is not None and pace.costs[kind]
            }
            mean = statistics.harmonic_mean(list(known.values())) if known else 0.0
            for peer in peers:
                totals[peer] += known.get(peer, mean)
        return {peer: 1 / total if total else 1.0 for peer, total in totals.items()}

    def _pace(self, peer_id: PeerId) -> _Pace:
        pace = self._paces.setdefault(peer_id, _Pace(self._parts))
        self._paces.move_to_end(peer_id)
        if len(self._paces) > _MAX_PEERS:
            self._paces.popitem(last=False)
        return pace
