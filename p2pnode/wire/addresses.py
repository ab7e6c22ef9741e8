"""Multiaddrs: reading them strictly, and the `/p2p` part that says who must answer.

py-multiaddr accepts truncated binary addresses and keeps CIDs inside `/p2p`. Everything that
comes from a person or a peer is read here once, into the canonical form; from then on two equal
addresses have equal bytes. Source: multiformats/multiaddr; libp2p/specs, addressing.
"""

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, cast

from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, InvalidKeyError
from p2pnode.wire import varint
from p2pnode.wire.peer_id import PeerId

MAX_ADDRESS_BYTES: Final = 1024  # a relayed WebTransport address with two certificate hashes is 250
_P2P: Final = varint.encode(421)
_IP: Final = {4: varint.encode(4), 6: varint.encode(41)}
_TCP: Final = varint.encode(6)
_UDP: Final = varint.encode(273)
_QUIC: Final = varint.encode(461)
_IP_NAMES: Final = frozenset({"ip4", "ip6"})
_NAME_KINDS: Final = frozenset({"dns", "dns4", "dns6", "dnsaddr"})
_TLS_NAMES: Final = frozenset({"tls", "wss"})

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class NamePart(NamedTuple):
    """The part of an address that names a machine, or with `dnsaddr` a list of addresses."""

    kind: Literal["dns", "dns4", "dns6", "dnsaddr"]
    name: str


def parse_address(text: str) -> Multiaddr:
    """Read the text of a multiaddr.

    Raises:
        InvalidAddressError: it cannot be read, or is empty.
    """
    try:
        address = _checked(Multiaddr(text))
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidAddressError(f"{text[:200]!r} is not a multiaddr: {_reason(error)}") from error
    if not 0 < len(address.to_bytes()) <= MAX_ADDRESS_BYTES:
        raise InvalidAddressError(
            f"{text[:200]!r} is not a multiaddr of 1 to {MAX_ADDRESS_BYTES} bytes"
        )
    return address


@functools.lru_cache(maxsize=4096)  # peers tell the same few thousand addresses again and again
def read_address(data: bytes) -> Multiaddr:
    """Read a binary multiaddr, as peers send them.

    Raises:
        InvalidAddressError: it is malformed, not in canonical form, or of an unknown protocol.
    """
    if not 0 < len(data) <= MAX_ADDRESS_BYTES:
        raise InvalidAddressError(f"a multiaddr has 1 to {MAX_ADDRESS_BYTES} bytes")
    try:
        return _checked(Multiaddr(data))
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidAddressError(f"{data.hex()} is not a multiaddr") from error


def read_addresses(items: Iterable[bytes], *, limit: int) -> list[Multiaddr]:
    """Read the first `limit` binary multiaddrs, leaving out those this node cannot read.

    A peer may well speak transports this node has never heard of; that is no fault of its own.
    """
    found: dict[Multiaddr, None] = {}
    for data in items:
        if len(found) == limit:
            break
        try:
            found[read_address(data)] = None
        except InvalidAddressError:
            continue
    return list(found)


def split_p2p(address: Multiaddr) -> tuple[Multiaddr, PeerId | None]:
    """Split off the last part when it is `/p2p/<id>`: who must answer at the rest."""
    parts = address.split()
    if not parts or not (last := parts[-1].to_bytes()).startswith(_P2P):
        return address, None
    return Multiaddr(address.to_bytes()[: -len(last)]), _peer_id_of(last)


def with_p2p(address: Multiaddr, peer_id: PeerId) -> Multiaddr:
    """Put `/p2p/<id>` behind an address that does not end in one."""
    return Multiaddr(address.to_bytes() + _P2P + varint.prefixed(bytes(peer_id)))


def peer_address(text: str) -> tuple[PeerId, Multiaddr]:
    """Read an address that says both where to dial and who must answer.

    Raises:
        InvalidAddressError: it cannot be read, or lacks either part.
    """
    address, peer_id = split_p2p(parse_address(text))
    if peer_id is None:
        raise InvalidAddressError(f"{text[:200]!r} does not end in /p2p/ and the peer's id")
    if not address.to_bytes():
        raise InvalidAddressError(f"{text[:200]!r} names a peer, but no place to dial")
    return peer_id, address


def tcp_address(host: str, port: int) -> Multiaddr:
    """Return `/ip4/<host>/tcp/<port>`, or its IPv6 form.

    The zone of a link-local address (`fe80::1%eth0`) is left out: it means something on one
    machine only, and py-multiaddr 0.2 writes `/ip6zone` parts that it cannot take apart again.
    """
    # Each connection that comes in has two of them: their text would take seven times as long.
    return Multiaddr(b"".join((_ip_part(host), _TCP, port.to_bytes(2, "big"))))


def quic_address(host: str, port: int) -> Multiaddr:
    """Return `/ip4/<host>/udp/<port>/quic-v1`, or its IPv6 form; see `tcp_address`."""
    return Multiaddr(b"".join((_ip_part(host), _UDP, port.to_bytes(2, "big"), _QUIC)))


@functools.lru_cache(maxsize=1024)
def _ip_part(host: str) -> bytes:
    ip = ipaddress.ip_address(host.partition("%")[0])
    return _IP[ip.version] + ip.packed


def ip_of(address: Multiaddr) -> IpAddress | None:
    """Return the IP address that `address` starts with, or None (a name, a relay, …)."""
    protocol, value = next(iter(address.items()), (None, ""))
    if protocol is None or protocol.name not in _IP_NAMES:
        return None
    return ipaddress.ip_address(value)


def name_of(address: Multiaddr) -> NamePart | None:
    """Return the name that `address` starts with, or None (an IP address, …)."""
    protocol, value = next(iter(address.items()), (None, ""))
    if protocol is None or protocol.name not in _NAME_KINDS:
        return None
    return NamePart(cast('Literal["dns", "dns4", "dns6", "dnsaddr"]', protocol.name), value)


def with_ip(address: Multiaddr, ip: IpAddress) -> Multiaddr:
    """Put `ip` in the place of the name that `address` starts with.

    TLS still has to know the name, to ask for the right certificate and to check it: it stays as
    `/sni`.
    """
    name = name_of(address)
    if name is None:
        raise ValueError(f"{address} does not start with a name")
    parts = [Multiaddr(f"/ip{ip.version}/{ip}"), *address.split()[1:]]
    protocols = [part.protocols()[0].name for part in parts]
    if "sni" not in protocols:
        for place, protocol in enumerate(protocols):
            if protocol in _TLS_NAMES:
                sni = Multiaddr(f"/sni/{name.name}")
                secured = [Multiaddr("/tls"), sni]
                # /wss is /tls/ws, and the name belongs between the two.
                parts[place : place + 1] = (
                    [*secured, Multiaddr("/ws")] if protocol == "wss" else secured
                )
                break
    return Multiaddr(b"".join(part.to_bytes() for part in parts))


def is_loopback(address: Multiaddr) -> bool:
    """Tell whether `address` can only be reached on its own machine."""
    ip = ip_of(address)
    return ip is not None and ip.is_loopback


def _checked(address: Multiaddr) -> Multiaddr:
    """Return `address` in canonical form, or raise ValueError when it has none."""
    parts = [part.to_bytes() for part in address.split()]
    if b"".join(parts) != address.to_bytes():
        raise ValueError("its numbers are not in minimal form")
    address = Multiaddr(b"".join(map(_canonical_part, parts)))
    text = "".join(map(str, address.split()))
    # py-multiaddr's two readers disagree about truncated parts and about zones of IPv6.
    if text != str(address) or Multiaddr(text) != address or not list(address.items()):
        raise ValueError("it is cut short, or written in a form that cannot be read back")
    return address


def _canonical_part(part: bytes) -> bytes:
    return _P2P + varint.prefixed(bytes(_peer_id_of(part))) if part.startswith(_P2P) else part


def _peer_id_of(part: bytes) -> PeerId:
    """Read the id of a `/p2p` part, which py-multiaddr keeps as a CID if it was written as one."""
    size = varint.decode(part, len(_P2P))
    data = part[size[1] :] if size else b""
    try:
        return PeerId(data.removeprefix(b"\x01\x72"))
    except InvalidKeyError as error:
        raise InvalidAddressError("the /p2p part of an address is not a peer id") from error


def _reason(error: Exception) -> str:
    message = getattr(error, "message", None) or str(error)
    return str(message).partition(" (")[0]
