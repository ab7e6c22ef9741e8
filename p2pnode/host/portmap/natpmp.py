"""The datagrams of NAT-PMP (RFC 6886). Pure.

```
request    00 00                                                    where am I? (section 3.2)
request    00 op 00 00  internal:2 external:2 lifetime:4            map (3.3); op 1 UDP, 2 TCP
response   00 op|80 result:2 epoch:4  ip:4                          to the first
response   00 op|80 result:2 epoch:4  internal:2 external:2 lifetime:4
```

A request for a lifetime of 0, with no external port, takes a mapping back (3.4). The router speaks
at port 5351.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from p2pnode.errors import PortMappingError, ProtocolError
from p2pnode.host.portmap.interfaces import Kind, Port

PORT: Final = 5351
EXTERNAL_REQUEST: Final = bytes(2)

_VERSION: Final = 0
_RESPONSE: Final = 0x80
_OPCODES: Final[dict[Kind, int]] = {"udp": 1, "tcp": 2}
_KINDS: Final[dict[int, Kind]] = {1: "udp", 2: "tcp"}
_HEAD: Final = struct.Struct(">BBHI")
_MAP_REQUEST: Final = struct.Struct(">BBHHHI")
_MAPPED: Final = struct.Struct(">HHI")
_RESULTS: Final = {  # section 3.5
    1: "the router does not speak NAT-PMP of this version",
    2: "the router refuses: port mapping is switched off, or not for this machine",
    3: "the router has no network connection of its own",
    4: "the router has no room for another mapping",
    5: "the router does not know this request",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """The router's address on the other side.

    Attributes:
        epoch: seconds since the router lost, or got, its memory of mappings.
        ip: the address.
    """

    epoch: int
    ip: IPv4Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A mapping was made, renewed, or taken back if its lifetime is 0."""

    epoch: int
    port: Port
    external_port: int
    lifetime: int


def map_request(port: Port, external_port: int, lifetime: int) -> bytes:
    """Ask for a mapping; a lifetime of 0 takes it back."""
    wanted = external_port if lifetime else 0
    return _MAP_REQUEST.pack(_VERSION, _OPCODES[port.kind], 0, port.number, wanted, lifetime)


def read(data: bytes) -> External | Mapped:
    """Read a response.

    Raises:
        PortMappingError: the router says no, and why.
        ProtocolError: it is none.
    """
    # Routers may answer a version they do not know by a header without the rest (section 3.5).
    if len(data) < _HEAD.size - 4 or not data[1] & _RESPONSE:
        raise ProtocolError("not a response of NAT-PMP")
    if result := int.from_bytes(data[2:4], "big"):
        raise PortMappingError(
            _RESULTS.get(result, f"the router refuses with NAT-PMP code {result}")
        )
    if data[0] != _VERSION or len(data) < _HEAD.size:
        raise ProtocolError("not a response of NAT-PMP")
    epoch = int.from_bytes(data[4:8], "big")
    body = data[_HEAD.size :]
    opcode = data[1] & ~_RESPONSE
    if opcode == 0 and len(body) == 4:
        return External(epoch=epoch, ip=IPv4Address(body))
    if opcode in _KINDS and len(body) == _MAPPED.size:
        internal, external, lifetime = _MAPPED.unpack(body)
        port = Port(_KINDS[opcode], internal)
        return Mapped(epoch=epoch, port=port, external_port=external, lifetime=lifetime)
    raise ProtocolError("a response of NAT-PMP has the wrong length or an unknown kind")
