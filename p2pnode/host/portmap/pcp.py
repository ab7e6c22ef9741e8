"""The datagrams of the Port Control Protocol (RFC 6887), as far as mappings need them. Pure.

```
request    02 op 00 00    lifetime:4  client_ip:16                          (section 7.1)
response   02 op|80 00 result:1  lifetime:4  epoch:4  00 * 12               (7.2)
MAP        nonce:12  protocol:1  00 * 3  internal:2 external:2 external_ip:16   (11.1), both ways
```

ANNOUNCE (op 0) has no more than the header. Options, which may follow, are for those who asked for
them; this node never does. IPv4 addresses are written as IPv6 ones (`::ffff:1.2.3.4`). PCP shares
its port with NAT-PMP, whose routers answer it by version 0 (appendix A).
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from p2pnode.errors import PortMappingError, ProtocolError
from p2pnode.host.portmap.interfaces import Kind, Port

NONCE_BYTES: Final = 12
MAX_BYTES: Final = 1100  # section 7

_VERSION: Final = 2
_RESPONSE: Final = 0x80
_ANNOUNCE: Final = 0
_MAP: Final = 1
_REQUEST: Final = struct.Struct(">BBHI16s")
_HEAD: Final = struct.Struct(">BBBBII12x")
_BODY: Final = struct.Struct(">12sB3xHH16s")
_PROTOCOLS: Final[dict[Kind, int]] = {"tcp": 6, "udp": 17}
_KINDS: Final[dict[int, Kind]] = {6: "tcp", 17: "udp"}
_NO_ADDRESS: Final = b"\0" * 10 + b"\xff\xff" + b"\0" * 4  # all zeros, as IPv4
_RESULTS: Final = {  # section 7.4
    1: "the router does not speak this version of PCP",
    2: "the router refuses: port mapping is switched off, or not for this machine",
    3: "the router could not read the request",
    4: "the router does not know this request",
    5: "the router does not know an option",
    6: "the router could not read an option",
    7: "the router has no network connection of its own",
    8: "the router has no room for another mapping",
    9: "the router does not map this protocol",
    10: "the router gives this machine no more mappings",
    11: "the router cannot give the external port asked for",
    12: "there is another translator between this machine and the router",
    13: "the router does not let so many in",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The router is there.

    Attributes:
        epoch: seconds since the router lost, or got, its memory of mappings.
    """

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A mapping was made, renewed, or taken back if its lifetime is 0."""

    epoch: int
    nonce: bytes
    port: Port
    external_ip: IPv4Address
    external_port: int
    lifetime: int


def announce_request(client: IPv4Address) -> bytes:
    """Ask whether the router is there."""
    return _REQUEST.pack(_VERSION, _ANNOUNCE, 0, 0, _wide(client))


def map_request(
    client: IPv4Address, nonce: bytes, port: Port, external_port: int, lifetime: int
) -> bytes:
    """Ask for a mapping; a lifetime of 0 takes it back.

    Args:
        client: the address by which this machine reaches the router.
        nonce: 12 bytes; who does not know them cannot change the mapping.
        port: what it leads to.
        external_port: the one liked best.
        lifetime: seconds.
    """
    head = _REQUEST.pack(_VERSION, _MAP, 0, lifetime, _wide(client))
    wanted = external_port if lifetime else 0
    return head + _BODY.pack(nonce, _PROTOCOLS[port.kind], port.number, wanted, _NO_ADDRESS)


def read(data: bytes) -> Announced | Mapped:
    """Read a response.

    Raises:
        PortMappingError: the router says no, and why.
        ProtocolError: it is none.
    """
    if len(data) >= 4 and data[0] == 0 and data[1] & _RESPONSE:
        raise PortMappingError("the router speaks NAT-PMP, and not PCP")
    if not _HEAD.size <= len(data) <= MAX_BYTES or len(data) % 4:
        raise ProtocolError("a response of PCP has the wrong length")
    version, opcode, _, result, lifetime, epoch = _HEAD.unpack_from(data)
    if not opcode & _RESPONSE:
        raise ProtocolError("not a response of PCP")
    if result:
        raise PortMappingError(_RESULTS.get(result, f"the router refuses with PCP code {result}"))
    if version != _VERSION:
        raise ProtocolError("a response of another version of PCP")
    if opcode & ~_RESPONSE == _ANNOUNCE:
        return Announced(epoch=epoch)
    if opcode & ~_RESPONSE != _MAP or len(data) < _HEAD.size + _BODY.size:
        raise ProtocolError("a response of PCP has the wrong length or an unknown kind")
    nonce, protocol, internal, external, ip = _BODY.unpack_from(data, _HEAD.size)
    external_ip = IPv6Address(ip).ipv4_mapped
    if protocol not in _KINDS or external_ip is None:
        raise ProtocolError("a mapping of PCP that is not of TCP or UDP over IPv4")
    return Mapped(
        epoch=epoch,
        nonce=nonce,
        port=Port(_KINDS[protocol], internal),
        external_ip=external_ip,
        external_port=external,
        lifetime=lifetime,
    )


def _wide(ip: IPv4Address) -> bytes:
    return _NO_ADDRESS[:12] + ip.packed
