"""What this node publishes, and when each is due to be published again. Pure; times are trio's."""

import heapq
import random
from dataclasses import dataclass

from p2pnode.errors import ResourceLimitError


@dataclass(frozen=True, slots=True)
class Publication:
    """A value under its key, or, without a value, that this node provides the key."""

    key: bytes
    value: bytes | None


class Publications:
    """At most `limit` publications, each due once per `interval` seconds, spread by chance."""

    def __init__(self, interval: float, limit: int, rng: random.Random) -> None:
        self._interval = interval
        self._limit = limit
        self._rng = rng
        self._kept: dict[bytes, tuple[Publication, float]] = {}
        self._due: list[tuple[float, bytes]] = []  # a heap; holds stale items too

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: bytes, value: bytes | None, now: float) -> None:
        """Keep publishing from now on.

        Raises:
            ResourceLimitError: there are too many.
        """
        if key not in self._kept and len(self._kept) >= self._limit:
            raise ResourceLimitError(f"a node keeps at most {self._limit} values published")
        self._schedule(Publication(key, value), now)

    def remove(self, key: bytes) -> bool:
        """Stop publishing; returns whether it was published."""
        return self._kept.pop(key, None) is not None

    def retry(self, key: bytes, when: float) -> None:
        """Have a key due at `when`, unless it is due earlier or is published no more."""
        kept = self._kept.get(key)
        if kept is not None and when < kept[1]:
            self._set(kept[0], when)

    def next_due(self) -> float:
        """Return when the next one is due; infinity for never."""
        while self._due:
            when, key = self._due[0]
            kept = self._kept.get(key)
            if kept is not None and kept[1] == when:
                return when
            heapq.heappop(self._due)
        return float("inf")

    def take_due(self, now: float) -> list[Publication]:
        """Return those that are due, and when they will be due again is decided."""
        taken = []
        while self.next_due() <= now:
            publication, _ = self._kept[self._due[0][1]]
            heapq.heappop(self._due)
            self._schedule(publication, now)
            taken.append(publication)
        return taken

    def _schedule(self, publication: Publication, now: float) -> None:
        # Never later than the interval: what was stored must not expire in between.
        self._set(publication, now + self._interval * self._rng.uniform(0.8, 1.0))

    def _set(self, publication: Publication, when: float) -> None:
        self._kept[publication.key] = (publication, when)
        heapq.heappush(self._due, (when, publication.key))
        if len(self._due) > 2 * len(self._kept) + 64:  # mostly stale: start afresh
            self._due = [(when, key) for key, (_, when) in self._kept.items()]
            heapq.heapify(self._due)
