"""What an AutoNAT server dials, for whom, and how often. Pure.

Whoever asks has this node knock at doors, so everything here is about whose:

- Version 1 reaches only the IP address that the request comes from. Version 2 reaches others, but
  first the requester sends more bytes than the handshakes cost whoever is dialled.
- Nothing is dialled for those who come through a relay: where they are, nobody knows.
- Private addresses are left alone, unless the settings say that there are no others; so are our
  own, which a NAT would have to send back to us.
- One request of a peer at a time, and so many a minute for each peer, each network and in all.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import ProtocolError
from p2pnode.host.budgets.rates import Rates, plain_ip
from p2pnode.host.ranking import is_relayed
from p2pnode.host.reachability.verdicts import is_probeable
from p2pnode.host.reachability.votes import network_of
from p2pnode.protocols.autonat.messages import MAX_DATA_PIECE, Addresses, DialData
from p2pnode.wire.addresses import IpAddress
from p2pnode.wire.peer_id import PeerId

_MAX_RATES_KEPT: Final = 4096
MOST_DIAL_DATA: Final = 100_000  # bytes; libp2p/specs, autonat v2
_SPREAD: Final = 3.0  # the dial data asked for varies up to so many times the least
_LEAST_PIECE: Final = 100  # bytes of dial data in one message, save the last; as in go-libp2p


class Gatekeeper:
    """Admits requests, and counts those under way."""

    def __init__(self, settings: ReachabilitySettings) -> None:
        self._settings = settings
        self._under_way: set[PeerId] = set()
        self._rates = (
            _rates(settings.requests_per_minute, settings.request_burst),
            _rates(settings.requests_per_minute_per_network, settings.request_burst_per_network),
            _rates(settings.requests_per_minute_per_peer, settings.request_burst_per_peer),
        )

    def __len__(self) -> int:
        return len(self._under_way)

    def enter(self, peer_id: PeerId, address: Multiaddr, now: float) -> str | None:
        """Admit a request, which then must `leave`; or return why not.

        Args:
            peer_id: who asks.
            address: where its connection comes from.
            now: trio's clock.
        """
        ip = plain_ip(address)
        if ip is None or is_relayed(address):
            return "nobody is dialled for those who come through a relay"
        if peer_id in self._under_way:
            return "another request of this peer is being served"
        if len(self._under_way) >= self._settings.max_requests:
            return "too many requests are being served"
        keys = None, network_of(ip), peer_id
        if not all(rates.has(key, now) for rates, key in zip(self._rates, keys, strict=True)):
            return "requests come too fast"
        for rates, key in zip(self._rates, keys, strict=True):
            rates.take(key, now)
        self._under_way.add(peer_id)
        return None

    def leave(self, peer_id: PeerId) -> None:
        """Note that a request has been served."""
        self._under_way.discard(peer_id)


@dataclass(frozen=True, slots=True)
class Choice:
    """The one address that version 2 dials.

    Attributes:
        index: its place in the request.
        address: where to.
        is_theirs: whether the request comes from its IP address, so that it costs nothing more.
    """

    index: int
    address: Multiaddr
    is_theirs: bool


def choose_v1(
    asked: Addresses,
    seen: Multiaddr,
    *,
    own: Collection[IpAddress],
    can_dial: Callable[[Multiaddr], bool],
    settings: ReachabilitySettings,
) -> list[Multiaddr]:
    """Return the addresses that version 1 dials, one after the other.

    That the requester's connection comes from an address is reason enough to try that one too, as
    the specification allows: it may not know it.

    Args:
        asked: what the request names.
        seen: where the requester's connection comes from.
        own: this node's IP addresses.
        can_dial: whether this node has a transport for an address.
        settings: what may be dialled, and how much.
    """
    theirs = plain_ip(seen)
    found = [
        each
        for each in dict.fromkeys((*asked, seen))
        if each is not None
        and plain_ip(each) == theirs
        and _may_dial(each, own, settings)
        and can_dial(each)
    ]
    return found[: settings.max_dials_per_request]


def choose_v2(
    asked: Addresses,
    seen: Multiaddr,
    *,
    own: Collection[IpAddress],
    can_dial: Callable[[Multiaddr], bool],
    settings: ReachabilitySettings,
) -> Choice | None:
    """Return the first address that this node is willing to dial; see `choose_v1`."""
    for index, address in enumerate(asked):
        if address is not None and _may_dial(address, own, settings) and can_dial(address):
            return Choice(index, address, plain_ip(address) == plain_ip(seen))
    return None


def _may_dial(
    address: Multiaddr, own: Collection[IpAddress], settings: ReachabilitySettings
) -> bool:
    return is_probeable(address, settings) and plain_ip(address) not in own


class DialDataMeter:
    """Counts the bytes that a requester sends for a dial to an IP address other than its own.

    Args:
        least: settings' `dial_data_bytes`.
        chance: from 0 to 1; so that nobody can say beforehand what a dial costs.
    """

    def __init__(self, least: int, chance: float) -> None:
        self.wanted = min(int(least * (1 + (_SPREAD - 1) * chance)), MOST_DIAL_DATA)
        self._missing = self.wanted

    @property
    def is_complete(self) -> bool:
        """Whether all has come."""
        return self._missing <= 0

    def receive_piece(self, piece: DialData) -> None:
        """Count one message.

        Raises:
            ProtocolError: it is so small that it is made to cost us time, and not the sender bytes.
        """
        if piece.size < min(_LEAST_PIECE, self._missing):
            raise ProtocolError(f"a piece of dial data has only {piece.size} bytes")
        self._missing -= piece.size


def dial_data_pieces(size: int) -> list[DialData]:
    """Return the messages that carry at least `size` bytes of dial data."""
    return [DialData(size=MAX_DATA_PIECE)] * -(-size // MAX_DATA_PIECE)


def _rates(per_minute: float, burst: int) -> Rates:
    return Rates(per_minute / 60.0, burst, _MAX_RATES_KEPT)
