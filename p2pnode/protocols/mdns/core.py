"""mDNS discovery, pure: what is said on the local network, and what of it is believed.

A node asks for `_p2p._udp.local` (PTR); each answers with a name of its own, `<label>` and that,
whose TXT record holds texts `dnsaddr=<multiaddr>`, each multiaddr ending in the node's
`/p2p/<id>`. The label is drawn anew at each start, so that it tells nothing about the node.
(libp2p/specs, discovery/mdns; the records themselves are RFC 6762 and 6763.)

Anyone on the network may say anything here. So what is read is bounded, speaks of one peer, and
holds IP addresses only, which are dialled directly; who answers there proves it by Noise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError
from p2pnode.host.ranking import is_relayed
from p2pnode.wire.addresses import IpAddress, ip_of, parse_address, split_p2p, with_p2p
from p2pnode.wire.peer_id import PeerId

SERVICE: Final = "_p2p._udp.local."
MAX_TEXT_BYTES: Final = 4096  # of TXT data read from one peer; a packet holds about twice that
MAX_SHARED_BYTES: Final = 1024  # of TXT data sent, so that an answer fits into one Ethernet frame
_PREFIX: Final = b"dnsaddr="
_MAX_STRING: Final = 255  # RFC 1035, section 3.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a peer says of itself on the local network.

    Attributes:
        peer_id: who it says it is.
        addresses: where, without their `/p2p` part.
    """

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What this node says, and where.

    Attributes:
        text: the data of its TXT record.
        interfaces: its own addresses on the interfaces to speak and listen on.
    """

    text: bytes
    interfaces: tuple[IpAddress, ...]


def compose(peer_id: PeerId, listening: Iterable[Multiaddr]) -> Advertisement | None:
    """Decide what to say and where, by where a node listens; None if that is nowhere of use.

    Loopback is left to nodes that listen nowhere else: on a network it would mean every machine
    but ours. IPv6's loopback carries no multicast.
    """
    placed = [(ip, each) for each in listening if (ip := ip_of(each)) and not is_relayed(each)]
    placed = [pair for pair in placed if not pair[0].is_loopback] or placed
    interfaces = tuple(
        dict.fromkeys(ip for ip, _ in placed if ip.version == 4 or not ip.is_loopback)
    )
    text = build_text(peer_id, [address for _, address in placed])
    if not interfaces or not text:
        return None
    return Advertisement(text=text, interfaces=interfaces)


def build_text(peer_id: PeerId, addresses: Iterable[Multiaddr]) -> bytes:
    """Return the data of a TXT record with as many of `addresses` as there is room for."""
    data = bytearray()
    for address in addresses:
        entry = _PREFIX + str(with_p2p(address, peer_id)).encode()
        if len(entry) <= _MAX_STRING and len(data) + 1 + len(entry) <= MAX_SHARED_BYTES:
            data.append(len(entry))
            data += entry
    return bytes(data)


def read_texts(texts: Iterable[bytes], *, limit: int) -> Announcement | None:
    """Read the TXT records of one name; None if they hold no address of any peer.

    Args:
        texts: the data of each; go-libp2p puts all into one record, js-libp2p makes one for each
            address.
        limit: how many addresses are kept.
    """
    peer_id: PeerId | None = None
    found: dict[Multiaddr, None] = {}
    for entry in _split_strings(b"".join(texts)[:MAX_TEXT_BYTES]):
        if not entry.startswith(_PREFIX) or len(found) == limit:
            continue
        try:
            text = entry.removeprefix(_PREFIX).decode()
            address, named = split_p2p(parse_address(text))
        except (InvalidAddressError, UnicodeDecodeError):
            continue
        if named is None or ip_of(address) is None or is_relayed(address):
            continue
        peer_id = peer_id or named
        if named == peer_id:
            found[address] = None
    if peer_id is None:
        return None
    return Announcement(peer_id=peer_id, addresses=tuple(found))


def within_reach(
    addresses: Sequence[Multiaddr], interfaces: Iterable[IpAddress]
) -> tuple[Multiaddr, ...]:
    """Leave out what the network of `interfaces` cannot mean.

    A node on loopback hears other programs of its machine and nobody else; a node on a network
    hears other machines, whose loopback is not its own.
    """
    on_loopback = all(ip.is_loopback for ip in interfaces)
    return tuple(
        each for each in addresses if (ip := ip_of(each)) and ip.is_loopback is on_loopback
    )


def _split_strings(data: bytes) -> list[bytes]:
    """Split TXT data into its strings; what is cut off at the end is left out."""
    found = []
    start = 0
    while start < len(data):
        end = start + 1 + data[start]
        if end <= len(data):
            found.append(data[start + 1 : end])
        start = end
    return found
