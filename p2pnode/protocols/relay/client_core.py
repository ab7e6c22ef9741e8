"""At which relays a node holds reservations: chosen, renewed early, replaced. Pure.

1. A few relays are held at once. Configured ones go first, in their order, then others by chance,
   so that not every node of a network crowds the same one.
2. A reservation is renewed when a random share of its life is over, between a half and three
   quarters: a renewal that fails is tried again while the old one still holds, and relays are not
   asked by everybody in the same moment.
3. A relay that fails is left alone for a pause that doubles at each further failure, and others
   take its place at once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from multiaddr import Multiaddr

from p2pnode.config import RelaySettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.relay.messages import HopMessage
from p2pnode.protocols.relay.vouchers import Voucher
from p2pnode.wire.peer_id import PeerId

_RENEW_AFTER: Final = (0.5, 0.75)  # of a reservation's life
_MAX_DOUBLINGS: Final = 16


class Chance(Protocol):
    """What is asked of `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""

    def shuffle(self, x: list[PeerId], /) -> None:
        """Change the order."""


@dataclass(slots=True, kw_only=True)
class Relay:
    """A relay that is known.

    Attributes:
        peer_id: who it is.
        is_configured: whether a person named it; it is never forgotten.
        addresses: at which it can be dialled, as configured or as far as the host knows not.
        reached_at: where others reach this node through it, while a reservation is held.
        expires_at: until when that is.
        renew_at: when it is to be renewed.
        retry_at: it is left alone until then.
        failures: in a row.
        is_asked: whether a request is under way.
        is_limited: whether its circuits were when it was last asked.
    """

    peer_id: PeerId
    is_configured: bool = False
    addresses: tuple[Multiaddr, ...] = ()
    reached_at: tuple[Multiaddr, ...] = ()
    expires_at: float = -math.inf
    renew_at: float = math.inf
    retry_at: float = -math.inf
    failures: int = 0
    is_asked: bool = False
    is_limited: bool = False

    @property
    def is_held(self) -> bool:
        """Whether there is a reservation."""
        return self.expires_at > -math.inf


class Reservations:
    """The relays a node knows, and its reservations there; `now` is trio's clock.

    Args:
        settings: how many to hold, and the times.
        rng: chance.
    """

    def __init__(self, settings: RelaySettings, rng: Chance) -> None:
        self._settings = settings
        self._rng = rng
        self._relays: dict[PeerId, Relay] = {}
        self._wanted = 0

    # --- queries --------------------------------------------------------------------------------

    def held(self) -> list[Relay]:
        """The relays where a reservation is held."""
        return [each for each in self._relays.values() if each.is_held]

    def get(self, peer: PeerId) -> Relay | None:
        """What is known of a relay."""
        return self._relays.get(peer)

    @property
    def known(self) -> int:
        """How many relays are known."""
        return len(self._relays)

    def next_due(self) -> float:
        """When there is something to do next; infinity for never."""
        times = [each.expires_at for each in self._relays.values() if each.is_held]
        if self._wanted:
            idle = [each for each in self._relays.values() if not each.is_asked]
            times += [max(each.renew_at, each.retry_at) for each in idle if each.is_held]
            if self._missing() > 0:
                times += [each.retry_at for each in idle if not each.is_held]
        return min(times, default=math.inf)

    # --- inputs ---------------------------------------------------------------------------------

    def receive_configured(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
        """Note a relay that a person named."""
        relay = self._relays.setdefault(peer, Relay(peer_id=peer))
        relay.is_configured = True
        relay.addresses = tuple(dict.fromkeys((*relay.addresses, *addresses)))

    def receive_candidate(self, peer: PeerId) -> None:
        """Note a peer that relays for others."""
        if peer in self._relays:
            return
        if len(self._relays) >= self._settings.max_candidates:
            spare = next((each for each in self._relays.values() if _may_go(each)), None)
            if spare is None:
                return
            del self._relays[spare.peer_id]
        self._relays[peer] = Relay(peer_id=peer)

    def receive_no_candidate(self, peer: PeerId) -> None:
        """Note that a peer relays no longer; what it has promised it may still keep."""
        relay = self._relays.get(peer)
        if relay is not None and _may_go(relay):
            del self._relays[peer]

    def receive_granted(
        self,
        peer: PeerId,
        lifetime: float,
        reached_at: Iterable[Multiaddr],
        now: float,
        *,
        limited: bool = False,
    ) -> bool:
        """Note a reservation, or its renewal.

        Args:
            peer: the relay.
            lifetime: for how many seconds.
            reached_at: where others reach this node through it.
            now: the clock's time.
            limited: whether its circuits are.

        Returns:
            Whether it is kept: it may be that none is wanted any more.
        """
        relay = self._relays[peer]
        relay.is_asked = False
        relay.failures = 0
        if not self._wanted:
            return False
        relay.retry_at = -math.inf
        relay.is_limited = limited
        relay.reached_at = tuple(reached_at)
        relay.expires_at = now + lifetime
        relay.renew_at = now + lifetime * self._rng.uniform(*_RENEW_AFTER)
        return True

    def receive_failure(self, peer: PeerId, now: float) -> None:
        """Note that a request came to nothing; a reservation that is held still holds."""
        relay = self._relays[peer]
        relay.is_asked = False
        self._back_off(relay, now)

    def receive_lost(self, peer: PeerId, now: float) -> bool:
        """Note that the connection to a relay ended; returns whether a reservation went with it."""
        relay = self._relays.get(peer)
        if relay is None or not relay.is_held:
            return False
        _release(relay)
        self._back_off(relay, now)
        return True

    # --- commands -------------------------------------------------------------------------------

    def want(self, count: int) -> list[PeerId]:
        """Hold so many reservations from now on; those given up at once, for 0, are returned."""
        self._wanted = count
        if count:
            return []
        given_up = [each.peer_id for each in self.held()]
        for peer in given_up:
            _release(self._relays[peer])
        return given_up

    def expire(self, now: float) -> list[PeerId]:
        """Drop the reservations that have ended; returns whose."""
        over = [each for each in self.held() if each.expires_at <= now]
        for relay in over:
            _release(relay)
        return [each.peer_id for each in over]

    def begin(self, now: float) -> list[Relay]:
        """Choose the relays to ask now; each must be told of by one of the inputs above."""
        if not self._wanted:
            return []
        idle = [
            each for each in self._relays.values() if not each.is_asked and each.retry_at <= now
        ]
        chosen = [each for each in idle if each.is_held and each.renew_at <= now]
        free = [each for each in idle if not each.is_held]
        strangers = [each.peer_id for each in free if not each.is_configured]
        self._rng.shuffle(strangers)
        order = [each for each in free if each.is_configured]
        order += [self._relays[peer] for peer in strangers]
        chosen += order[: max(0, self._missing())]
        for relay in chosen:
            relay.is_asked = True
        return chosen

    def _missing(self) -> int:
        """How many more are wanted than are held or asked for."""
        busy = sum(each.is_held or each.is_asked for each in self._relays.values())
        return self._wanted - busy

    def _back_off(self, relay: Relay, now: float) -> None:
        pause = self._settings.retry_pause * 2.0 ** min(relay.failures, _MAX_DOUBLINGS)
        pause = min(pause, self._settings.retry_pause_max)
        relay.failures += 1
        relay.retry_at = now + pause * self._rng.uniform(0.75, 1.25)


def check_reservation(
    answer: HopMessage, *, relay: PeerId, own_id: PeerId, now: float, settings: RelaySettings
) -> float:
    """Check what a relay promises.

    Args:
        answer: what it said, which is yes.
        relay: who it is.
        own_id: of this node.
        now: seconds since the Unix epoch.
        settings: how long it must be, and may be.

    Returns:
        For how many seconds the promise holds.

    Raises:
        ProtocolError: it promises nothing, for no time, or not to this node; or somebody else does.
    """
    reservation = answer.reservation
    if reservation is None:
        raise ProtocolError(f"the relay {relay} agrees, and does not say to what")
    if reservation.voucher is not None:
        voucher = Voucher.open(reservation.voucher)
        if voucher.relay != relay or voucher.peer != own_id:
            raise ProtocolError(
                f"the relay {relay} gave a voucher of {voucher.relay} for {voucher.peer}"
            )
    lifetime = reservation.expire - now
    if lifetime < settings.min_lifetime:
        raise ProtocolError(
            f"the reservation of the relay {relay} would end in {lifetime:.0f} s; either it is of "
            "no use, or one of the two clocks is wrong"
        )
    return min(lifetime, settings.max_lifetime)


def _may_go(relay: Relay) -> bool:
    return not (relay.is_configured or relay.is_held or relay.is_asked)


def _release(relay: Relay) -> None:
    relay.expires_at, relay.renew_at, relay.reached_at = -math.inf, math.inf, ()
