"""Which router this machine goes through, and by which of its own addresses.

Linux tells it in /proc/net/route, without root or a program to run. Elsewhere there is no such
place, and only UPnP, which finds routers by itself, would need none; this node does not ask there.
"""

import ipaddress
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NamedTuple

from p2pnode.transport.reuse import Endpoint, route_source

_ROUTES: Final = Path("/proc/net/route")
_IN_USE: Final = 0x1  # Linux, route.h: RTF_UP
_BY_GATEWAY: Final = 0x2  # RTF_GATEWAY
_ANY_PORT: Final = 9


class Gateway(NamedTuple):
    """The router, and this machine as the router sees it."""

    ip: IPv4Address
    own: IPv4Address


def find_gateway() -> Gateway | None:
    """Return the default router, or None if there is none or this system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        table = _ROUTES.read_text()
    except OSError:  # no IPv4
        return None
    ip = read_default_route(table)
    if ip is None:
        return None
    own = route_source(Endpoint(ip, _ANY_PORT))
    return Gateway(ip, own) if isinstance(own, IPv4Address) else None


def read_default_route(table: str) -> IPv4Address | None:
    """Read the text of /proc/net/route: the gateway of the default route that is preferred.

    Each line has the interface, then the destination, the gateway and the flags in hexadecimal
    (addresses in the machine's own byte order), and the metric as the seventh.
    """
    found: list[tuple[int, IPv4Address]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        try:
            destination, gateway, flags = (int(each, 16) for each in fields[1:4])
            metric, mask = int(fields[6]), int(fields[7], 16)
            ip = ipaddress.IPv4Address(gateway.to_bytes(4, sys.byteorder))
        except (ValueError, IndexError, OverflowError):  # not a line as we know them
            continue
        if destination == mask == 0 and flags & _IN_USE and flags & _BY_GATEWAY:
            found.append((metric, ip))
    return min(found)[1] if found else None
