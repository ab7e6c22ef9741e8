"""Which network a peer is in, so that one network cannot crowd out all others.

An attacker makes peer ids by the million, but has addresses in few networks. A group is an IPv4 /16
or an IPv6 /32, about what one provider hands out. Where a table or a look-up already holds many
peers of a group, further ones are left out. Source: go-libp2p-kbucket, peerdiversity.
"""

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final

from multiaddr import Multiaddr

_IP4: Final = b"\x04"  # multicodec
_IP6: Final = b"\x29"
_IP_PARTS: Final = {_IP4: 5, _IP6: 17}  # bytes, with the multicodec
_IP4_GROUP_BYTES: Final = 2
_IP6_GROUP_BYTES: Final = 4


def group_of(addresses: Iterable[Multiaddr], *, private_too: bool) -> bytes | None:
    """Return the group of the first address that is in one.

    Args:
        addresses: of one peer. Names and relays that hide behind names are in no group.
        private_too: whether addresses that the internet does not route count as well.
    """
    for address in addresses:
        data = address.to_bytes()
        if size := _IP_PARTS.get(data[:1]):
            group = _group(data[:size], private_too)
            if group is not None:
                return group
    return None


@functools.lru_cache(maxsize=16_384)
def _group(data: bytes, private_too: bool) -> bytes | None:  # lru_cache's key
    ip = ipaddress.ip_address(data[1:])
    ip = (ip.ipv4_mapped if ip.version == 6 else None) or ip
    if not private_too and not ip.is_global:
        return None
    size = _IP4_GROUP_BYTES if ip.version == 4 else _IP6_GROUP_BYTES
    return ip.packed[:size]
