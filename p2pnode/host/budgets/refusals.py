"""What was refused, and how a node tells of it without being flooded by what it refuses."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from multiaddr import Multiaddr

from p2pnode.errors import Limit, ResourceLimitError
from p2pnode.events import Event
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRefused(Event):
    """Budgets refused something; one event for many refusals, of the same limit.

    Attributes:
        limit: which budget is used up.
        count: how many refusals this event tells of.
        peer_id: whom the latest of them concerned, if that is known.
        address: where that one is, if that is known.
        reason: a sentence about the latest.
    """

    level = "info"

    limit: Limit
    count: int
    peer_id: PeerId | None
    address: Multiaddr | None
    reason: str


@dataclass(slots=True)
class _Told:
    at: float
    latest: ResourceRefused | None = None
    untold: int = 0


class Refusals:
    """Counts refusals; tells of the first of each limit at once, and of others by and by.

    Args:
        interval: seconds between two events about one limit.
        emit: takes the events.
    """

    def __init__(self, interval: float, emit: Callable[[ResourceRefused], object]) -> None:
        self.total: Counter[Limit] = Counter()
        self._interval = interval
        self._emit = emit
        self._told: dict[Limit, _Told] = {}

    def note(
        self,
        error: ResourceLimitError,
        *,
        peer_id: PeerId | None,
        address: Multiaddr | None,
        now: float,
    ) -> None:
        """Count a refusal by one of our own budgets."""
        assert error.limit is not None
        self.total[error.limit] += 1
        told = self._told.setdefault(error.limit, _Told(at=now - self._interval))
        told.untold += 1
        told.latest = ResourceRefused(
            limit=error.limit,
            count=told.untold,
            peer_id=peer_id,
            address=address,
            reason=str(error),
        )
        self._tell_if_due(told, now)

    def tell(self, now: float) -> None:
        """Tell of what is due; call it every few seconds."""
        for told in self._told.values():
            self._tell_if_due(told, now)

    def _tell_if_due(self, told: _Told, now: float) -> None:
        if told.latest is not None and now - told.at >= self._interval:
            latest, told.latest, told.untold, told.at = told.latest, None, 0, now
            self._emit(latest)
