"""How often somebody may begin something new: token buckets, and subnets as their keys."""

import functools
import ipaddress
from collections.abc import Hashable
from typing import Final, NamedTuple

from multiaddr import Multiaddr

from p2pnode.config import LimitSettings
from p2pnode.wire.addresses import IpAddress, ip_of

REMEMBERED_IPS: Final = 4096  # whose subnets need not be worked out again


class Rates:
    """One token bucket for each key; a key that was not heard of has a full one.

    Args:
        per_second: how fast a bucket fills.
        burst: how much it holds.
        max_kept: how many are remembered; the one used longest ago is forgotten first.
    """

    def __init__(self, per_second: float, burst: int, max_kept: int) -> None:
        self.per_second = per_second
        self._burst = burst
        self._max_kept = max_kept
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # tokens, when; oldest first

    def __len__(self) -> int:
        return len(self._buckets)

    def has(self, key: Hashable, now: float) -> bool:
        """Whether there is a token to take."""
        return self._tokens(key, now) >= 1

    def take(self, key: Hashable, now: float) -> None:
        """Take a token that `has` found."""
        tokens = self._tokens(key, now) - 1
        self._buckets.pop(key, None)
        if len(self._buckets) >= self._max_kept:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = tokens, now

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, at = self._buckets.get(key, (self._burst, now))
        return min(tokens + (now - at) * self.per_second, self._burst)


class Subnets(NamedTuple):
    """Where a connection comes from, twice: what one household has, and one organisation."""

    address: str
    network: str


class SubnetMap:
    """Finds the subnets of addresses."""

    def __init__(self, settings: LimitSettings) -> None:
        self._prefixes = {
            4: (settings.ip4_address_prefix, settings.ip4_network_prefix),
            6: (settings.ip6_address_prefix, settings.ip6_network_prefix),
        }
        self._exempt = [ipaddress.ip_network(each) for each in settings.exempt_subnets]
        self._subnets_of = functools.lru_cache(REMEMBERED_IPS)(self._work_out)

    def find(self, address: Multiaddr) -> Subnets | None:
        """Return the subnets of `address`, or None if it is exempt or has no IP address."""
        ip = plain_ip(address)
        return None if ip is None else self._subnets_of(ip)

    def _work_out(self, ip: IpAddress) -> Subnets | None:
        if any(ip in each for each in self._exempt):
            return None
        small, large = (
            str(ipaddress.ip_network((ip, bits), strict=False))
            for bits in self._prefixes[ip.version]
        )
        return Subnets(small, large)


def plain_ip(address: Multiaddr) -> IpAddress | None:
    """Return the IP address that `address` starts with; IPv4 also where it is written as IPv6."""
    ip = ip_of(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
