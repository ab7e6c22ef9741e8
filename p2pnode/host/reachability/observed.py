"""Where others see this node: believed only when enough of them, far enough apart, agree. Pure.

Each peer tells by identify which address our connection comes from. Behind a NAT that may be the
only way to learn a public address; but peers err, and some lie. So it is put to a vote:

- A connection has one vote, its newest. It counts while the connection lives, and then for
  `observed_address_ttl`.
- Votes are counted by observer group: one IPv4 address, or one IPv6 /56, which is what a household
  gets. However many peers speak from one group, they are one voice.
- Only connections from or to a port we listen on count (dialling reuses it): any other port is
  mapped for that one connection, and nobody could dial it.
- What a NAT translates is an IP address and a port, whatever is spoken behind them. So votes are
  about these two, and hold for every listen address that shares them.
- `observed_votes` groups must agree. Of those believed the most seen `observed_max_per_family`
  count, for each of TCP and UDP over IPv4 and IPv6.
- Loopback, link-local and meaningless addresses are never believed. Private ones are, on the word
  of observers in private networks; elsewhere they would say nothing.

go-libp2p's ObservedAddrManager is the model: same groups, same numbers.
"""

import ipaddress
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.events import Event
from p2pnode.host.ranking import is_relayed
from p2pnode.host.reachability.nat_behaviour import Endpoint, Sighting
from p2pnode.wire.addresses import IpAddress, ip_of

_IP6_GROUP_BITS: Final = 56
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the observer's own translation
_PORT_KINDS: Final = frozenset({"tcp", "udp"})

Group = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedAddressBelieved(Event):
    """Enough peers have seen this node at an address; others are told of it from now on."""

    level = "info"

    address: Multiaddr
    observers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedAddressDropped(Event):
    """Too few peers see this node at an address any longer."""

    level = "info"

    address: Multiaddr


class Place(NamedTuple):
    """What a NAT translates: an IP address and a port."""

    ip: IpAddress
    kind: str  # tcp or udp
    port: int

    @property
    def family(self) -> tuple[int, str]:
        """Places of one family are alternatives to each other."""
        return self.ip.version, self.kind

    def followed_by(self, tail: bytes) -> Multiaddr:
        """Return the address that leads to this place and goes on with `tail`."""
        head = Multiaddr(f"/ip{self.ip.version}/{self.ip}/{self.kind}/{self.port}")
        return Multiaddr(head.to_bytes() + tail)


@dataclass(slots=True)
class _Vote:
    local: Place
    observed: Place
    observer: Endpoint
    group: Group
    until: float


class ObservedAddresses:
    """The votes on where this node can be reached from elsewhere."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._votes: OrderedDict[Hashable, _Vote] = OrderedDict()

    def __len__(self) -> int:
        return len(self._votes)

    def observe(
        self,
        connection: Hashable,
        *,
        observed: Multiaddr,
        local: Multiaddr,
        remote: Multiaddr,
        listening: Iterable[Multiaddr],
        now: float,
    ) -> bool:
        """Take a peer's word for where it sees us; returns whether it counts.

        Args:
            connection: over which it said so; its earlier word counts no longer.
            observed: where it sees us.
            local: our end of the connection.
            remote: the peer's end.
            listening: the addresses we listen on.
            now: trio's clock.
        """
        self._votes.pop(connection, None)
        ours, theirs, observer = _place(local), _place(observed), ip_of(remote)
        if ours is None or theirs is None or observer is None:
            return False
        if is_relayed(local) or is_relayed(observed) or is_relayed(remote):
            return False
        places = tails_by_place(listening)
        if ours not in places or theirs in places or not _is_plausible(theirs, ours, observer):
            return False
        group = group_of(observer)
        if not self._make_room(group, now):
            return False
        far = _place(remote)
        end = Endpoint(observer, far.port if far is not None else 0)
        self._votes[connection] = _Vote(ours, theirs, end, group, math.inf)
        return True

    def end(self, connection: Hashable, now: float) -> None:
        """Note that a connection has ended: its vote counts for a while only."""
        if (vote := self._votes.get(connection)) is not None:
            vote.until = now + self._settings.observed_address_ttl

    def believed(self, listening: Iterable[Multiaddr], now: float) -> dict[Multiaddr, int]:
        """Return the addresses to tell others of, each with the number of groups that saw it."""
        tails = tails_by_place(listening)
        seen = sorted(
            ((count, local, theirs) for local, theirs, count in self.sightings(now)),
            key=lambda each: (-each[0], str(each[2].ip), each[2].port),
        )
        counts: Counter[tuple[int, str]] = Counter()
        taken: set[Place] = set()
        found: dict[Multiaddr, int] = {}
        for count, local, theirs in seen:
            if count < self._settings.observed_votes or local not in tails or theirs in tails:
                continue
            if theirs not in taken:
                if counts[theirs.family] >= self._settings.observed_max_per_family:
                    continue
                counts[theirs.family] += 1
                taken.add(theirs)
            for tail in tails[local]:
                found.setdefault(theirs.followed_by(tail), count)
        return found

    def sightings(self, now: float) -> list[tuple[Place, Place, int]]:
        """List where each of our places is seen, believed or not, and by how many groups."""
        self._expire(now)
        groups: dict[tuple[Place, Place], set[Group]] = {}
        for vote in self._votes.values():
            groups.setdefault((vote.local, vote.observed), set()).add(vote.group)
        return [(local, seen, len(voters)) for (local, seen), voters in groups.items()]

    def by_family(self, now: float) -> dict[tuple[int, str], list[Sighting]]:
        """List who sees us where, by IP version and `tcp` or `udp`."""
        self._expire(now)
        found: dict[tuple[int, str], list[Sighting]] = {}
        for vote in self._votes.values():
            local, seen = vote.local, vote.observed
            sighting = Sighting(
                local=Endpoint(local.ip, local.port),
                remote=vote.observer,
                seen=Endpoint(seen.ip, seen.port),
            )
            found.setdefault(local.family, []).append(sighting)
        return found

    def _expire(self, now: float) -> None:
        for connection in [each for each, vote in self._votes.items() if vote.until <= now]:
            del self._votes[connection]

    def _make_room(self, group: Group, now: float) -> bool:
        """Keep one group from taking the places of others, and all from taking too many."""
        same = [each for each, vote in self._votes.items() if vote.group == group]
        if len(same) >= self._settings.observed_max_votes_per_group:
            del self._votes[same[0]]
        if len(self._votes) >= self._settings.observed_max_votes:
            self._expire(now)
            ended = (each for each, vote in self._votes.items() if vote.until < math.inf)
            for connection in itertools.islice(ended, 1):
                del self._votes[connection]
                break
        return len(self._votes) < self._settings.observed_max_votes


def group_of(ip: IpAddress) -> Group:
    """Return which addresses count as one observer with `ip`."""
    bits = 32 if ip.version == 4 else _IP6_GROUP_BITS
    return ipaddress.ip_network((ip, bits), strict=False)


def _is_plausible(theirs: Place, ours: Place, observer: IpAddress) -> bool:
    """Tell whether `theirs` can be where `observer` sees our `ours`."""
    ip = theirs.ip
    if not theirs.port or theirs.family != ours.family or observer.version != ip.version:
        return False
    if ip.is_unspecified or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip in _NAT64:
        return False
    if ip.version == 4 and ip.is_reserved:
        return False
    return ip.is_global or not observer.is_global


def _place(address: Multiaddr) -> Place | None:
    split = _split(address)
    return split[0] if split else None


def _split(address: Multiaddr) -> tuple[Place, bytes] | None:
    """Split an address behind its port; None if it does not begin with an IP address and one."""
    ip = ip_of(address)
    parts = address.split()
    if ip is None or len(parts) < 2:
        return None
    (protocol,) = parts[1].protocols()
    if protocol.name not in _PORT_KINDS:
        return None
    port = int(parts[1].value_for_protocol(protocol.code) or 0)
    return Place(ip, protocol.name, port), b"".join(part.to_bytes() for part in parts[2:])


def tails_by_place(listening: Iterable[Multiaddr]) -> dict[Place, Collection[bytes]]:
    """Sort direct addresses by what a NAT translates of them, with what follows behind that."""
    found: dict[Place, dict[bytes, None]] = {}
    for address in listening:
        if (split := _split(address)) is not None and not is_relayed(address):
            found.setdefault(split[0], {})[split[1]] = None
    return {place: tuple(tails) for place, tails in found.items()}
