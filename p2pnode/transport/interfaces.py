"""The IP addresses of this machine, to say where a wildcard listener can be reached.

Linux tells them exactly (ioctl and /proc, without root or a name server). Elsewhere the source
addresses of the default routes stand in for them.
"""

import contextlib
import ipaddress
import socket
import struct
import sys
from pathlib import Path
from typing import Final, Literal

from p2pnode.wire.addresses import IpAddress

_SIOCGIFADDR: Final = 0x8915  # Linux, netdevice(7)
_IF_INET6: Final = Path("/proc/net/if_inet6")
# Documentation prefixes (RFC 5737, RFC 3849): connecting a datagram socket there sends nothing.
_ELSEWHERE: Final[dict[int, tuple[socket.AddressFamily, str]]] = {
    4: (socket.AF_INET, "192.0.2.1"),
    6: (socket.AF_INET6, "2001:db8::1"),
}


def own_addresses(version: Literal[4, 6]) -> list[IpAddress]:
    """Return this machine's IP addresses of one version: routable ones first, loopback last.

    Link-local addresses are left out, since they mean something only together with an interface.
    """
    if sys.platform == "linux":
        found = _linux_ip4() if version == 4 else _linux_ip6()
    else:
        found = _route_source(version)
    loopback: IpAddress = ipaddress.ip_address("127.0.0.1" if version == 4 else "::1")
    useful = {ip for ip in found if not ip.is_link_local} | {loopback}
    return sorted(useful, key=lambda ip: (ip.is_loopback, ip.is_private, int(ip)))


def _linux_ip4() -> set[IpAddress]:
    found: set[IpAddress] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                found.add(ipaddress.IPv4Address(_ioctl(query, _SIOCGIFADDR, request)[20:24]))
    return found


def _ioctl(query: socket.socket, number: int, request: bytes) -> bytes:
    import fcntl  # noqa: PLC0415  # does not exist on Windows

    return fcntl.ioctl(query.fileno(), number, request)


def _linux_ip6() -> set[IpAddress]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:  # the kernel has no IPv6
        return set()
    return {ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines}


def _route_source(version: Literal[4, 6]) -> set[IpAddress]:
    family, elsewhere = _ELSEWHERE[version]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return {ipaddress.ip_address(probe.getsockname()[0])}
    except OSError:  # no route, or no such protocol
        return set()
