"""Addresses that lead through a relay: `<where the relay is>/p2p/<relay>/p2p-circuit`. Pure.

Behind it may stand `/p2p/<target>`, who is to be reached. Source: libp2p/specs, addressing and
relay/circuit-v2.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError
from p2pnode.host.ranking import is_relayed
from p2pnode.wire.addresses import ip_of, split_p2p, with_p2p
from p2pnode.wire.peer_id import PeerId

CIRCUIT: Final = Multiaddr("/p2p-circuit")


class Way(NamedTuple):
    """A relayed address, taken apart; `where` is empty if it does not say where the relay is."""

    relay: PeerId
    where: Multiaddr
    target: PeerId | None


def through(where: Multiaddr, relay: PeerId) -> Multiaddr:
    """Return the address that leads through a relay, without who is to be reached."""
    return Multiaddr(with_p2p(where, relay).to_bytes() + CIRCUIT.to_bytes())


def split_way(address: Multiaddr) -> Way:
    """Take apart an address that leads through one relay.

    Raises:
        InvalidAddressError: it leads through none or several, or does not name the relay.
    """
    bare, target = split_p2p(address)
    head = bare.to_bytes().removesuffix(CIRCUIT.to_bytes())
    where, relay = split_p2p(Multiaddr(head))
    if len(head) == len(bare.to_bytes()) or relay is None or is_relayed(where):
        raise InvalidAddressError(
            f"{address} does not lead through one relay; write "
            "<address of the relay>/p2p/<its id>/p2p-circuit"
        )
    return Way(relay, where, target)


def ways_through(
    relay: PeerId, dialled: Iterable[Multiaddr], told: Iterable[Multiaddr], *, limit: int
) -> list[Multiaddr]:
    """Return the addresses at which others reach this node through a relay.

    Args:
        relay: who it is.
        dialled: where this node found it.
        told: where it says it is; addresses of others, and those nearer to it than this node,
            which may mean another machine elsewhere, are left out.
        limit: how many are returned.
    """
    found = dict.fromkeys(each for each in dialled if not is_relayed(each))
    ips = [ip for ip in map(ip_of, found) if ip is not None]
    is_far = any(ip.is_global for ip in ips)
    is_local = any(ip.is_loopback for ip in ips)
    for each in told:
        address, named = split_p2p(each)
        ip = ip_of(address)
        if named not in {None, relay} or is_relayed(address) or not address.to_bytes():
            continue
        if ip is not None and ((is_far and ip.is_private) or (ip.is_loopback and not is_local)):
            continue
        found[address] = None
    return [through(each, relay) for each in found][:limit]
