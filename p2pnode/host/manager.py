"""Which connections to close when there are too many, and which never.

Hard limits refuse (`p2pnode.host.budgets`); the marks here keep the node well below them. Above
the high mark it closes down to the low one: connections without streams before those with, crowds
from one subnet before single peers, what peers opened before what this node wanted, and then what
was used longest ago, or, of those in use, what has lived for the shortest time. New connections
get a grace, protected peers are left alone, and a connection with a call in progress goes only if
all others that may go are not enough.
"""

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from p2pnode.config import LimitSettings
from p2pnode.host.interfaces import Direction
from p2pnode.wire.peer_id import PeerId

CROWD: Final = 8  # so many connections from one subnet are a household's, more are a crowd

T = TypeVar("T")


class ProtectedPeers:
    """The peers whose connections are not trimmed, each with the reasons why."""

    def __init__(self) -> None:
        self._tags: dict[PeerId, set[str]] = {}

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._tags

    def protect(self, peer_id: PeerId, tag: str) -> None:
        """Note one more reason to keep a peer; giving it twice changes nothing."""
        self._tags.setdefault(peer_id, set()).add(tag)

    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """Take a reason back; returns whether others remain."""
        tags = self._tags.get(peer_id, set())
        tags.discard(tag)
        if not tags:
            self._tags.pop(peer_id, None)
        return bool(tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Generic[T]):
    """A connection as the manager sees it.

    Attributes:
        connection: what is closed if it is chosen.
        peer_id: who is at the other end.
        direction: who dialled.
        crowd: the subnet it comes from.
        last_used: when a stream was last open on it, or it was opened; now, if one is open.
        opened_at: when it was opened.
        streams: how many are open.
        calls: how many of these are calls in progress, rather than a protocol's standing ones.
    """

    connection: T
    peer_id: PeerId
    direction: Direction
    crowd: Hashable
    last_used: float
    opened_at: float
    streams: int
    calls: int


class ConnectionManager:
    """Chooses the connections to close. Pure: the clock's time is an argument."""

    def __init__(self, limits: LimitSettings, protected: Container[PeerId]) -> None:
        self._limits = limits
        self._protected = protected
        self._trimmed_at = float("-inf")

    def is_trim_due(self, count: int, now: float) -> bool:
        """Whether `count` connections are too many, and the last trim is long enough ago."""
        silent_until = self._trimmed_at + self._limits.trim_silence
        return count > self._limits.high_water and now >= silent_until

    def trim(self, candidates: Iterable[Candidate[T]], now: float) -> list[T]:
        """Choose what to close to come down to the low mark, the least valuable first.

        Args:
            candidates: all open connections; call it when `is_trim_due`.
            now: the clock's time.
        """
        self._trimmed_at = now
        candidates = list(candidates)
        excess = max(0, len(candidates) - self._limits.low_water)
        may_go = [each for each in candidates if self._may_go(each, now)]
        return [each.connection for each in _least_valuable_first(may_go)[:excess]]

    def spare(self, candidates: Iterable[Candidate[T]], now: float) -> T | None:
        """Choose the one to close so that another one fits, or None if none may go.

        Only connections without streams go for a newcomer, or a stranger that comes again and
        again would drive out all peers in use.
        """
        idle = [each for each in candidates if not each.streams and self._may_go(each, now)]
        return _least_valuable_first(idle)[0].connection if idle else None

    def _may_go(self, each: Candidate[T], now: float) -> bool:
        if each.peer_id in self._protected:
            return False
        since = each.opened_at if each.streams else each.last_used
        return now - since >= self._limits.trim_grace


def _least_valuable_first(candidates: Sequence[Candidate[T]]) -> list[Candidate[T]]:
    """Order by what is worth keeping, the crowds' surplus in front of others like it."""
    ordered = sorted(candidates, key=_worth, reverse=True)
    seen: Counter[Hashable] = Counter()
    surplus = {}
    for each in ordered:  # a crowd keeps its best
        surplus[id(each)] = seen[each.crowd] // CROWD
        seen[each.crowd] += 1
    return sorted(ordered, key=lambda each: (_need(each), -surplus[id(each)], _worth(each)))


def _need(each: Candidate[T]) -> int:
    """Whether it is unused (0), held open by standing streams (1) or busy with calls (2)."""
    return 2 if each.calls else 1 if each.streams else 0


def _worth(each: Candidate[T]) -> tuple[int, bool, float]:
    seniority = -each.opened_at if each.streams else each.last_used
    return _need(each), each.direction == "outbound", seniority
