"""When to ask a router again, and what is held meanwhile. Pure: time and chance are arguments.

A mapping is renewed when half of its life is over, a little later by chance, and if that fails, in
half of what is then left (RFC 6887, section 11.2.1; RFC 6886, section 3.3). What the router refused
is asked again after a pause that doubles.

A router that lost its memory tells by its epoch: a count of seconds that began anew (RFC 6887,
section 8.5; RFC 6886, section 3.6). Then all is asked for again at once.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.config import PortmapSettings
from p2pnode.host.portmap.interfaces import Mapping, Port

_SLACK: Final = 2.0  # seconds between what the router counted and what we did, besides drift
_RENEWAL_SPREAD: Final = 0.125  # of a life; renewals come between a half and five eighths of it
_LEAST_PAUSE: Final = 4.0  # seconds between two renewals (RFC 6887, section 11.2.1)


class Epoch:
    """Watches a router's count of seconds for the moment it begins anew.

    Args:
        drift: how far the two clocks may run apart, as a share of the time passed: 1/16 for PCP,
            1/8 for NAT-PMP, which only looks for a count that is too low.
        may_run_ahead: whether a count that is too high tells nothing.
    """

    def __init__(self, *, drift: float, may_run_ahead: bool) -> None:
        self._drift = drift
        self._may_run_ahead = may_run_ahead
        self._last: tuple[int, float] | None = None

    def receive(self, epoch: int, now: float) -> bool:
        """Take a count; returns whether the router has kept its memory since the last one."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return True
        counted, passed = epoch - last[0], now - last[1]
        if counted < -1:
            return False
        if counted + _SLACK < passed * (1 - self._drift):
            return False
        return self._may_run_ahead or passed + _SLACK >= counted * (1 - self._drift)


@dataclass(slots=True)
class _Lease:
    due: float
    mapping: Mapping | None = None
    ends: float = -math.inf
    failures: int = 0


class Leases:
    """The mappings that this node wants and has.

    Args:
        settings: pauses and the like.
        draw: chance, from 0 to below 1: so that the nodes of a home do not renew in step.

    Attributes:
        has_ever_held: whether the router has granted anything yet.
    """

    def __init__(self, settings: PortmapSettings, draw: Callable[[], float]) -> None:
        self._settings = settings
        self._draw = draw
        self._leases: dict[Port, _Lease] = {}
        self.has_ever_held = False

    def want(self, ports: Iterable[Port], now: float) -> list[Mapping]:
        """Say which ports are to be reached, the first `max_ports` of them.

        Returns:
            Mappings that are of no more use, to be given back.
        """
        wanted = dict.fromkeys(list(dict.fromkeys(ports))[: self._settings.max_ports])
        dropped = [
            lease.mapping
            for port, lease in self._leases.items()
            if port not in wanted and lease.mapping is not None and lease.ends > now
        ]
        self._leases = {port: self._leases.get(port) or _Lease(now) for port in wanted}
        return dropped

    def held(self, now: float) -> list[Mapping]:
        """The mappings that hold now."""
        return [
            lease.mapping
            for lease in self._leases.values()
            if lease.mapping is not None and lease.ends > now
        ]

    def next_due(self, now: float) -> Port | None:
        """Which port to ask the router for now, if for any."""
        return next((port for port, lease in self._leases.items() if lease.due <= now), None)

    def next_deadline(self, now: float) -> float:
        """When to look again: a mapping is due then, or comes to its end."""
        ends = [lease.ends for lease in self._leases.values() if lease.ends > now]
        return min([lease.due for lease in self._leases.values()] + ends, default=math.inf)

    def wish_for(self, port: Port) -> int:
        """Which external port to ask for: the one had before, or the same as inside."""
        mapping = self._leases[port].mapping
        return port.number if mapping is None else mapping.external_port

    def receive_mapped(self, mapping: Mapping, now: float) -> None:
        """Note what the router granted."""
        self.has_ever_held = True
        lease = self._leases[mapping.port]
        lease.mapping = mapping
        lease.failures = 0
        lease.ends = now + mapping.lifetime
        share = 0.5 + self._draw() * _RENEWAL_SPREAD
        lease.due = now + max(mapping.lifetime * share, _LEAST_PAUSE)

    def receive_refused(self, port: Port, now: float) -> None:
        """Note that the router did not grant a port, or did not answer."""
        lease = self._leases[port]
        lease.failures += 1
        if lease.ends > now:
            lease.due = now + max((lease.ends - now) / 2, _LEAST_PAUSE)
        else:
            pause = self._settings.retry_interval * 2 ** min(lease.failures - 1, 32)
            lease.due = now + min(pause, self._settings.max_retry_interval)

    def lose_all(self, now: float) -> None:
        """Note that the router has forgotten everything: ask for all anew, the same if possible."""
        for lease in self._leases.values():
            lease.ends = now
            lease.due = now
            lease.failures = 0
