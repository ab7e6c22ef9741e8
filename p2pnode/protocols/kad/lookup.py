"""One iterative look-up: whom to ask next, and when it is over.

Source: libp2p/specs, kad-dht, "Peer routing": ask the alpha closest known peers that were not
asked yet, learn closer ones from their answers, and end when the k closest known have answered.

| state of a peer | becomes  | when                                               |
|-----------------|----------|----------------------------------------------------|
| known           | asked    | it is among the k closest that have not failed     |
| asked           | answered | its answer came, however late                      |
| asked           | failed   | its request failed; it no longer counts among the k |

A request that takes longer than `patience` is slow. A slow request frees its slot, so that a few
silent peers cannot stop a look-up. And when beta of the closest have answered (half of them, where
few are known) and everybody else among them is slow, the look-up ends without them. `patience`
grows with the slowest answer seen, so that on slow links everybody is still waited for.
"""

import bisect
from collections.abc import Iterable
from itertools import islice
from typing import Final

from p2pnode.protocols.kad.keys import point
from p2pnode.wire.peer_id import PeerId

MAX_CANDIDATES: Final = 512  # remembered per look-up: the closest; liars cannot make it grow
_SLOWNESS: Final = 4.0  # a request is slow after so many times the slowest answer, at least


class Lookup:
    """The state of one look-up of the point `target`.

    `next_queries` says whom to ask, `receive_answer` and `receive_failure` tell what came of it,
    and `is_finished` whether to stop; when nothing happens, look again at `next_deadline`.
    """

    def __init__(
        self,
        target: int,
        seeds: Iterable[PeerId],
        *,
        k: int,
        alpha: int,
        beta: int,
        patience: float,
    ) -> None:
        self._target = target
        self._k = k
        self._alpha = alpha
        self._beta = beta
        self._patience = patience
        self._order: list[tuple[int, PeerId]] = []  # every candidate with its distance, sorted
        self._known: set[PeerId] = set()
        self._asked: dict[PeerId, float] = {}  # in flight, and since when
        self._answered: set[PeerId] = set()
        self._failed: set[PeerId] = set()
        self._learn(seeds)

    def next_queries(self, now: float) -> list[PeerId]:
        """Name the peers to ask now; they count as asked."""
        slots = self._alpha - sum(not self._is_slow(since, now) for since in self._asked.values())
        idle = (
            peer
            for peer in self._frontier()
            if peer not in self._asked and peer not in self._answered
        )
        chosen = list(islice(idle, max(slots, 0)))
        self._asked.update(dict.fromkeys(chosen, now))
        return chosen

    def receive_answer(self, peer: PeerId, closer: Iterable[PeerId], now: float) -> None:
        """Take the answer of `peer`, and the peers that it says are closer."""
        since = self._asked.pop(peer, now)
        self._patience = max(self._patience, _SLOWNESS * (now - since))
        self._failed.discard(peer)
        self._answered.add(peer)
        self._learn(closer)

    def receive_failure(self, peer: PeerId) -> None:
        """Leave `peer` out of the rest of the look-up."""
        self._asked.pop(peer, None)
        self._failed.add(peer)

    def is_finished(self, now: float) -> bool:
        """Tell whether the closest peers have answered, or nobody is left to wait for."""
        frontier = self._frontier()
        unanswered = [peer for peer in frontier if peer not in self._answered]
        if not unanswered:
            return True
        enough = min(self._beta, (len(frontier) + 1) // 2)
        return len(frontier) - len(unanswered) >= enough and all(
            peer in self._asked and self._is_slow(self._asked[peer], now) for peer in unanswered
        )

    def next_deadline(self, now: float) -> float:
        """Return when the next request under way becomes slow; infinity when none will."""
        due = (since + self._patience for since in self._asked.values())
        return min((when for when in due if when > now), default=float("inf"))

    @property
    def closest(self) -> list[PeerId]:
        """The k closest peers that answered, the closest first."""
        answered = (peer for _, peer in self._order if peer in self._answered)
        return list(islice(answered, self._k))

    @property
    def asked(self) -> int:
        """How many peers were asked so far."""
        return len(self._answered | self._failed | self._asked.keys())

    def _is_slow(self, since: float, now: float) -> bool:
        return now >= since + self._patience

    def _frontier(self) -> list[PeerId]:
        """The k closest peers known that have not failed."""
        return list(islice((peer for _, peer in self._order if peer not in self._failed), self._k))

    def _learn(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer in self._known:
                continue
            candidate = (point(peer) ^ self._target, peer)
            if len(self._order) == MAX_CANDIDATES:
                if candidate > self._order[-1]:
                    continue
                self._order.pop()
            self._known.add(peer)
            bisect.insort(self._order, candidate)
