"""DCUtR, pure: who says what when, who dials when and in which role, and when to try again.

A has dialled B through a relay (libp2p/specs, relay/DCUtR). On the wire:

1. B first dials A's public addresses by itself: often only one of the two is behind a NAT.
2. B opens a stream over the relay and sends CONNECT with its addresses. A answers with its own.
   B takes the time between the two: the round trip over the relay.
3. B sends SYNC, waits for half a round trip and dials; A dials when SYNC arrives. So both SYNs are
   under way at once, each makes the sender's NAT expect the other one, and TCP makes a single
   connection of the two dials (simultaneous open).
4. Nobody listened, so roles are agreed on beforehand: A is the client, which begins multistream,
   Noise and Yamux, and B is the server.
5. When nothing comes of it, B begins again at 2, three times in all.

go-libp2p before 0.41 has the roles the other way round. Newer ones, as B, swap the roles in the
last attempt for the sake of these; here both parts do.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings
from p2pnode.errors import ProtocolError
from p2pnode.events import Event
from p2pnode.protocols.dcutr.messages import HolePunch, MessageType, decode, encode
from p2pnode.wire.addresses import ip_of, split_p2p
from p2pnode.wire.peer_id import PeerId

PROTOCOL: Final = "/libp2p/dcutr"
MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HolePunched(Event):
    """A relayed peer is connected directly now.

    Attributes:
        peer_id: who.
        attempts: how many it took; 0 if the peer could simply be dialled.
        seconds: from the relayed connection to the direct one.
        address: the peer's end of the direct one.
    """

    level = "info"

    peer_id: PeerId
    attempts: int
    seconds: float
    address: Multiaddr


@dataclass(frozen=True, slots=True, kw_only=True)
class HolePunchAttemptFailed(Event):
    """One attempt made no direct connection.

    Attributes:
        peer_id: with whom.
        attempt: counted from 1.
        reason: what is wrong in general.
        addresses: those dialled, each with what happened there.
    """

    peer_id: PeerId
    attempt: int
    reason: str
    addresses: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HolePunchFailed(Event):
    """No attempt made a direct connection: the peer stays relayed for now.

    Attributes:
        peer_id: who.
        attempts: how many there were.
        reason: of the last one.
        addresses: those the last one dialled, each with what happened there.
        retry_in: seconds to the next try, if the peer is still relayed then.
    """

    level = "info"

    peer_id: PeerId
    attempts: int
    reason: str
    addresses: Mapping[str, str]
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The dials of one attempt.

    Attributes:
        attempt: counted from 1.
        addresses: all dialled at once.
        is_client: whether this side begins the handshakes.
        dial_at: when, on trio's clock.
    """

    attempt: int
    addresses: tuple[Multiaddr, ...]
    is_client: bool
    dial_at: float


def dial_patience(round_trip: float | None, settings: DcutrSettings) -> float:
    """Return the seconds for dialling the peer by itself, before holes are punched.

    A dial and its handshakes take four round trips, and over the relay one takes longer than
    directly. What has not come about in twice that time is hardly going to, unless a packet was
    lost; and then punching helps as well.

    Args:
        round_trip: over the relay, if it is known.
        settings: the limits.
    """
    if round_trip is None:
        return settings.direct_timeout
    return min(max(8 * round_trip, settings.direct_least), settings.direct_timeout)


def plays_client(*, is_opener: bool, attempt: int) -> bool:
    """Tell whether this side begins the handshakes.

    Args:
        is_opener: whether it is B, which opened the exchange.
        attempt: counted from 1.
    """
    return is_opener == (attempt >= MAX_ATTEMPTS)


def worth_dialling(
    addresses: Iterable[Multiaddr],
    can_punch: Callable[[Multiaddr], bool],
    settings: DcutrSettings,
) -> tuple[Multiaddr, ...]:
    """Choose the addresses to offer, or to dial of those offered: few, and of the open internet.

    Whoever sends addresses makes this node dial them. So names are not looked up, relays are not
    used, and machines on the own network are left alone.
    """
    found: dict[Multiaddr, None] = {}
    for each in addresses:
        address, _ = split_p2p(each)
        ip = ip_of(address)
        if ip is None or ip.is_multicast or ip.is_unspecified or not can_punch(address):
            continue
        if ip.is_global or settings.private_addresses:
            found[address] = None
        if len(found) == settings.max_addresses:
            break
    return tuple(found)


class Opener:
    """B's side of one upgrade.

    Args:
        own: the addresses to offer.
        can_punch: which kinds of addresses can be dialled so.
        settings: limits.

    Attributes:
        attempt: the one under way, counted from 1; 0 before the first.
    """

    def __init__(
        self,
        own: Iterable[Multiaddr],
        can_punch: Callable[[Multiaddr], bool],
        settings: DcutrSettings,
    ) -> None:
        self.attempt = 0
        self._connect = encode(HolePunch(type=MessageType.CONNECT, addresses=tuple(own)))
        self._can_punch = can_punch
        self._settings = settings
        self._sent_at: float | None = None

    @property
    def may_go_on(self) -> bool:
        """Whether there is an attempt left."""
        return self.attempt < MAX_ATTEMPTS

    def begin(self, now: float) -> bytes:
        """Begin the next attempt; returns the message to send at once, on a new stream."""
        assert self.may_go_on
        self.attempt += 1
        self._sent_at = now
        return self._connect

    def receive_message(self, data: bytes, now: float) -> tuple[bytes, Plan]:
        """Take the answer; returns the message to send at once, and what to do then.

        Raises:
            ProtocolError: it is no answer.
        """
        if self._sent_at is None:
            raise ProtocolError("a hole punching message came unasked")
        message = _expect(MessageType.CONNECT, data)
        round_trip = now - self._sent_at
        self._sent_at = None
        plan = Plan(
            attempt=self.attempt,
            addresses=worth_dialling(message.addresses, self._can_punch, self._settings),
            is_client=plays_client(is_opener=True, attempt=self.attempt),
            dial_at=now + round_trip / 2,
        )
        return encode(HolePunch(type=MessageType.SYNC)), plan


class Answerer:
    """A's side of one exchange.

    Args:
        attempt: which one it is, as `Attempts` counts.
        own: the addresses to offer.
        can_punch: which kinds of addresses can be dialled so.
        settings: limits.
    """

    def __init__(
        self,
        attempt: int,
        own: Iterable[Multiaddr],
        can_punch: Callable[[Multiaddr], bool],
        settings: DcutrSettings,
    ) -> None:
        self._attempt = attempt
        self._own = tuple(own)
        self._can_punch = can_punch
        self._settings = settings
        self._theirs: tuple[Multiaddr, ...] | None = None

    def receive_message(self, data: bytes, now: float) -> bytes | Plan:
        """Take the next message; returns the answer to send, or at the end what to do.

        Raises:
            ProtocolError: it is not the one that is due.
        """
        if self._theirs is None:
            message = _expect(MessageType.CONNECT, data)
            self._theirs = worth_dialling(message.addresses, self._can_punch, self._settings)
            return encode(HolePunch(type=MessageType.CONNECT, addresses=self._own))
        _expect(MessageType.SYNC, data)
        return Plan(
            attempt=self._attempt,
            addresses=self._theirs,
            is_client=plays_client(is_opener=False, attempt=self._attempt),
            dial_at=now,
        )


def _expect(kind: MessageType, data: bytes) -> HolePunch:
    message = decode(data)
    if message.type is not kind:
        raise ProtocolError(f"{message.type.name} came where {kind.name} is due")
    return message


class Attempts:
    """Which attempt of its upgrade an exchange is, that a peer opens: A has to count them itself.

    Exchanges belong to one upgrade as long as they follow each other within `attempt_memory`.
    """

    def __init__(self, settings: DcutrSettings) -> None:
        self._settings = settings
        self._last: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def count(self, peer_id: PeerId, now: float) -> int:
        """Count an exchange that begins; returns its number, from 1 to `MAX_ATTEMPTS`."""
        number, at = self._last.pop(peer_id, (0, now))
        if now - at > self._settings.attempt_memory or number == MAX_ATTEMPTS:
            number = 0
        self._last[peer_id] = number + 1, now
        if len(self._last) > self._settings.max_peers:
            self._last.popitem(last=False)
        return number + 1

    def forget(self, peer_id: PeerId) -> None:
        """Note that an upgrade succeeded."""
        self._last.pop(peer_id, None)


class Retries:
    """When an upgrade that failed may be tried again: after a pause that doubles.

    A NAT rarely changes its ways, and each try is some dozen packets to places that do not answer.
    The pauses are drawn from the upper half of the doubled time, so that those which failed
    together do not come back together.

    Args:
        settings: limits.
        draw: draws from 0 to 1.
    """

    def __init__(self, settings: DcutrSettings, draw: Callable[[], float]) -> None:
        self._settings = settings
        self._draw = draw
        self._failures: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()  # count, until

    def __len__(self) -> int:
        return len(self._failures)

    def remaining(self, peer_id: PeerId, now: float) -> float:
        """Return for how many seconds a peer is to be left alone; 0 if it may be tried."""
        return max(self._failures.get(peer_id, (0, now))[1] - now, 0.0)

    def fail(self, peer_id: PeerId, now: float) -> float:
        """Note that an upgrade failed; returns the seconds to the next one."""
        count, until = self._failures.pop(peer_id, (0, now))
        if now - until > self._settings.retry_pause_max:  # it may well be elsewhere by now
            count = 0
        longest = min(
            self._settings.retry_pause * 2.0 ** min(count, 62), self._settings.retry_pause_max
        )
        pause = longest * (1.0 + self._draw()) / 2
        self._failures[peer_id] = count + 1, now + pause
        if len(self._failures) > self._settings.max_peers:
            self._failures.popitem(last=False)
        return pause

    def succeed(self, peer_id: PeerId) -> None:
        """Note that a peer is connected directly."""
        self._failures.pop(peer_id, None)
