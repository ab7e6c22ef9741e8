"""Which port to dial from: the one this node listens on, where that can work.

A connection that comes from the listening port shows its peer, and every NAT on the way, the very
endpoint at which this node can be reached; hole punching depends on it. The listening socket and
the dialling one must both carry SO_REUSEPORT. The listener gets it only after it has been bound:
another program that wants the port is refused as ever, and no moment is left in which two win.

Four things go wrong when a port is reused blindly, and are ruled out here:

- A socket bound to one interface cannot reach what is routed through another, so the source
  address must be the one the system would choose.
- From 127.0.0.1:4001 to 127.0.0.1:4001 a socket connects to itself. TCP allows it.
- The same pair of endpoints carries one connection at a time. The caller falls back to a port of
  the system's choice when the pair is taken.
- Two nodes that dial each other at the same instant, each from its listening port, get one
  connection that both believe to have dialled. Both notice that the other one, too, begins the
  handshake (`SimultaneousOpenError`), and `p2pnode.host.dialer` says who dials again. Within TLS
  it could not be told from a fault, so WebSocket over TLS does not reuse ports.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final, NamedTuple

from p2pnode.wire.addresses import IpAddress

CAN_REUSE: Final = hasattr(socket, "SO_REUSEPORT")
_DISCARD: Final = 9  # any port does: connecting a datagram socket sends nothing


class Endpoint(NamedTuple):
    """One end of a TCP connection."""

    ip: IpAddress
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """The sockets it needs."""
        return socket.AF_INET if self.ip.version == 4 else socket.AF_INET6

    @property
    def pair(self) -> tuple[str, int]:
        """The form that sockets take."""
        return str(self.ip), self.port


def choose_source(target: Endpoint, listening: Iterable[Endpoint]) -> Endpoint | None:
    """Return the endpoint among `listening` from which to dial `target`, or None.

    A listener on the exact address goes before one on all addresses.
    """
    same = [each for each in listening if each.ip.version == target.ip.version]
    if not same or (own := route_source(target)) is None:
        return None
    for ip in (own, ipaddress.ip_address("0.0.0.0" if own.version == 4 else "::")):  # noqa: S104  # compared
        for each in same:
            if each.ip == ip and (own, each.port) != target:
                return each
    return None


def route_source(target: Endpoint) -> IpAddress | None:
    """Return the own address from which the system reaches `target`, or None without a route."""
    try:
        with socket.socket(target.family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(target.ip), target.port or _DISCARD))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None
