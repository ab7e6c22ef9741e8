"""What a trainer counts about its calls.

Written by the trio thread alone. Everyone else reads a `Stats`, a copy taken at one moment.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final

from p2pnode.wire.peer_id import PeerId

MAX_HOSTS: Final = 4096  # those called longest ago are forgotten beyond this


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStats:
    """One host's part of the calls."""

    calls: int
    failed_calls: int
    latency: float | None  # seconds of a successful call, a moving average


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A trainer's calls since it connected; a call tried on two hosts counts as two."""

    calls: int = 0  # all attempts, however they ended
    failed_calls: int = 0  # those that ended in an error or ran out of time
    stragglers: int = 0  # those cut off because enough others had answered; not failed
    anomalies: int = 0  # failed because the answer held NaN or infinite values
    hosts: dict[str, HostStats] = field(default_factory=dict)  # by peer id


@dataclass(slots=True)
class _Host:
    calls: int = 0
    failed_calls: int = 0
    latency: float | None = None


class Recorder:
    """Counts calls, and keeps a moving average of each host's latency.

    Args:
        smoothing: the weight of the newest call in the average.
    """

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._counts: Counter[str] = Counter()
        self._hosts: OrderedDict[PeerId, _Host] = OrderedDict()

    def started(self, peer_id: PeerId) -> None:
        """Count a call that is being made."""
        self._counts["calls"] += 1
        self._host(peer_id).calls += 1

    def answered(self, peer_id: PeerId, seconds: float) -> None:
        """Take in the latency of a successful call."""
        host = self._host(peer_id)
        average = seconds if host.latency is None else host.latency
        host.latency = average + self._smoothing * (seconds - average)

    def failed(self, peer_id: PeerId) -> None:
        """Count a call that failed."""
        self._counts["failed_calls"] += 1
        self._host(peer_id).failed_calls += 1

    def add(self, name: str, count: int = 1) -> None:
        """Count `stragglers` or `anomalies`."""
        self._counts[name] += count

    def latency_of(self, peer_id: PeerId) -> float | None:
        """Return the average seconds of a call, or None before the first success."""
        host = self._hosts.get(peer_id)
        return None if host is None else host.latency

    def snapshot(self) -> Stats:
        """Copy the counts."""
        return Stats(
            **self._counts,
            hosts={
                str(peer_id): HostStats(
                    calls=host.calls, failed_calls=host.failed_calls, latency=host.latency
                )
                for peer_id, host in tuple(self._hosts.items())
            },
        )

    def _host(self, peer_id: PeerId) -> _Host:
        host = self._hosts.setdefault(peer_id, _Host())
        self._hosts.move_to_end(peer_id)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        return host
