"""In which order to try the addresses of a peer. Pure.

1. The address that worked last.
2. Near ones: on this machine, or on a private network that may be the one we are on.
3. Public ones, and whatever cannot be told.
4. Private and loopback ones of places where we are not, by what we know of ourselves. They come
   late instead of never, since a VPN may lead there all the same.
5. Relayed ones: a relay is slower, and is somebody else's gift.

Within each, plain TCP goes first. QUIC follows: it needs fewer round trips and gets through more
NATs, but moves bulk more slowly here (docs/performance.md). Then come WebSocket and WebSocket over
TLS, which need more round trips. Of each of these, IPv6 and IPv4 take turns, so that a family that
is broken here costs one head start and not many (RFC 8305, section 4). Otherwise the given order
stays. go-libp2p's dial ranker cuts the groups alike.
"""

import ipaddress
import itertools
from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import Final

from multiaddr import Multiaddr

from p2pnode.wire.addresses import IpAddress, ip_of

# Two machines in the same one of these may share a network; a home network does not tell how far
# it reaches. RFC 1918, RFC 6598.
_IP4_NETWORKS: Final = tuple(
    map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
)
_IP6_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")  # RFC 4193: each site has its own /48
_IP6_SITE_BITS: Final = 48
_CIRCUIT: Final = b"\xa2\x02"  # the code of p2p-circuit
_TRANSPORTS: Final = {
    ("tcp",): 0,
    ("udp", "quic-v1"): 1,
    ("tcp", "ws"): 2,
    ("tcp", "wss"): 3,
    ("tcp", "tls", "ws"): 3,
}


class _Group(IntEnum):
    NEAR = 0
    PUBLIC = 1
    FAR = 2
    RELAYED = 3


def rank(
    addresses: Iterable[Multiaddr],
    *,
    preferred: Multiaddr | None = None,
    own: Collection[IpAddress] = (),
) -> list[Multiaddr]:
    """Order the addresses of one peer, the best to try first; none is added or left out.

    Args:
        addresses: without their `/p2p` part.
        preferred: the one that worked last, if known.
        own: the addresses this node has, as far as it knows; if it knows none, it may be anywhere.
    """
    given = list(addresses)
    hers = ips_of(given)
    same_machine = not hers.isdisjoint(own) or all(ip.is_loopback for ip in hers)
    buckets: dict[tuple[_Group, int], list[Multiaddr]] = {}
    first: list[Multiaddr] = []
    for address in given:
        group = _group(address, own, same_machine=same_machine)
        if address == preferred and group is not _Group.RELAYED:
            first.append(address)
        else:
            buckets.setdefault((group, _transport(address)), []).append(address)
    ordered = [_take_turns(buckets[key]) for key in sorted(buckets)]
    return first + list(itertools.chain.from_iterable(ordered))


def ips_of(addresses: Iterable[Multiaddr]) -> set[IpAddress]:
    """Collect the IP addresses that `addresses` start with."""
    return {ip for ip in map(ip_of, addresses) if ip is not None}


def is_relayed(address: Multiaddr) -> bool:
    """Tell whether `address` leads through a relay."""
    # Most are not, which shows without taking them apart.
    return _CIRCUIT in address.to_bytes() and any(
        each.name == "p2p-circuit" for each in address.protocols()
    )


def _group(address: Multiaddr, own: Collection[IpAddress], *, same_machine: bool) -> _Group:
    if is_relayed(address):
        return _Group.RELAYED
    ip = ip_of(address)
    if ip is None or ip.is_global:
        return _Group.PUBLIC
    if ip.is_loopback:
        return _Group.NEAR if same_machine else _Group.FAR
    network = _network(ip)
    if network is None:
        return _Group.FAR  # link-local ones need an interface, others are not for use at all
    known = [each for each in own if not each.is_loopback]
    return _Group.NEAR if not known or any(each in network for each in known) else _Group.FAR


def _network(ip: IpAddress) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the widest private network that holds `ip`, or None if it is in none."""
    if ip.version == 4:
        return next((each for each in _IP4_NETWORKS if ip in each), None)
    if ip in _IP6_UNIQUE_LOCAL:
        return ipaddress.IPv6Network((ip, _IP6_SITE_BITS), strict=False)
    return None


def _transport(address: Multiaddr) -> int:
    names = tuple(each.name for each in address.protocols()[1:] if each.name != "sni")
    return _TRANSPORTS.get(names, len(_TRANSPORTS))


def _take_turns(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Alternate between IPv6, which goes first, and the rest."""
    is_six = [(ip := ip_of(each)) is not None and ip.version == 6 for each in addresses]
    pairs = itertools.zip_longest(
        itertools.compress(addresses, is_six),
        itertools.compress(addresses, [not each for each in is_six]),
    )
    return [each for pair in pairs for each in pair if each is not None]
