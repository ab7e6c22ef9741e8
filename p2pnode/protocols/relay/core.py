"""What a relay promises and carries, and to whom: reservations, circuits and their limits. Pure.

Source: libp2p/specs, relay/circuit-v2.

1. A peer asks for a *reservation*, by which the relay takes connections for it until it expires.
   It lasts only while the peer stays connected, and is renewed by asking again.
2. Another peer asks for a *circuit* to one that holds a reservation. What the circuit may carry is
   told to both ends beforehand.
3. Places are limited for all peers, for the household and the organisation that a peer is in (its
   small and its large subnet), and for the peer; a peer may use up its own and no others.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from p2pnode.config import RelaySettings
from p2pnode.host.budgets.rates import Rates, Subnets
from p2pnode.protocols.relay.messages import Limit, Status
from p2pnode.wire.peer_id import PeerId

MAX_REQUESTERS: Final = 4096  # whose recent haste is remembered


class Acl(Protocol):
    """Who may use a relay; an owner may give one of its own."""

    def may_reserve(self, peer: PeerId) -> bool:
        """Whether the relay takes connections for `peer`."""

    def may_connect(self, source: PeerId, target: PeerId) -> bool:
        """Whether `source` may reach `target` through the relay."""


class Everybody:
    """The rule of a relay that is open to all, as long as there is room."""

    def may_reserve(self, _peer: PeerId) -> bool:
        """See `Acl`."""
        return True

    def may_connect(self, _source: PeerId, _target: PeerId) -> bool:
        """See `Acl`."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A peer's reservation.

    Attributes:
        subnets: where the peer was when it asked; None if nothing is counted there.
        expires_at: by the clock given to the core.
    """

    subnets: Subnets | None
    expires_at: float


@dataclass(slots=True, kw_only=True, eq=False)
class Circuit:
    """A connection between two peers that this relay carries.

    Attributes:
        source: who asked for it.
        target: whom it leads to.
        began_at: when, by the clock given to the core.
        limit: what it may carry.
        carried: bytes so far, from the source and from the target.
    """

    source: PeerId
    target: PeerId
    began_at: float
    limit: Limit
    carried: list[int] = field(default_factory=lambda: [0, 0])

    def room(self, way: int, most: int) -> int:
        """How many bytes may go one way at once.

        Args:
            way: 0 from the source to the target, 1 back.
            most: that are to go.
        """
        return min(most, self.limit.data - self.carried[way]) if self.limit.data else most


class RelayCore:
    """The state of a relay.

    Args:
        settings: its limits.
        acl: who may use it.
        log: called with each reservation that ends, and why.

    Attributes:
        refused: how many requests were, by status.
        carried: bytes of circuits that have ended.
    """

    def __init__(
        self,
        settings: RelaySettings,
        acl: Acl | None = None,
        log: Callable[[PeerId, str], object] = lambda _peer, _reason: None,
    ) -> None:
        self._settings = settings
        self._acl = acl or Everybody()
        self._log = log
        seconds = math.ceil(settings.circuit_seconds)  # never 0, which would be no limit
        self.limit = Limit(duration=seconds, data=settings.circuit_bytes)
        self.refused: Counter[Status] = Counter()
        self.carried = 0
        self._places: dict[PeerId, Place] = {}
        self._taken: Counter[str] = Counter()  # places, by subnet
        self._circuits: dict[Circuit, None] = {}
        self._ends: Counter[PeerId] = Counter()  # of circuits, by peer
        self._requests = Rates(
            settings.requests_per_second, settings.request_burst, max_kept=MAX_REQUESTERS
        )

    # --- queries --------------------------------------------------------------------------------

    @property
    def reservations(self) -> int:
        """How many peers hold one."""
        return len(self._places)

    @property
    def circuits(self) -> list[Circuit]:
        """Those that are open."""
        return list(self._circuits)

    def holds(self, peer: PeerId) -> bool:
        """Whether a peer has a reservation."""
        return peer in self._places

    def next_expiry(self) -> float:
        """When the next reservation expires; infinity for never."""
        return min((each.expires_at for each in self._places.values()), default=float("inf"))

    # --- inputs ---------------------------------------------------------------------------------

    def receive_reserve(self, peer: PeerId, subnets: Subnets | None, now: float) -> Place | Status:
        """Take a request for a reservation, or for the renewal of one.

        Args:
            peer: who asks.
            subnets: where from; None if nothing is counted there.
            now: the clock's time.

        Returns:
            The reservation, or why there is none.
        """
        self.expire(now)
        refusal = self._why_not_reserve(peer, subnets, now)
        if refusal is not None:
            return self._refuse(refusal)
        self._forget(peer)
        place = Place(subnets=subnets, expires_at=now + self._settings.reservation_lifetime)
        self._places[peer] = place
        self._taken.update(subnets or ())
        return place

    def receive_connect(self, source: PeerId, target: PeerId, now: float) -> Circuit | Status:
        """Take a request for a circuit; its place is taken until `end`.

        Args:
            source: who asks.
            target: whom it wants to reach.
            now: the clock's time.

        Returns:
            The circuit, or why there is none.
        """
        self.expire(now)
        refusal = self._why_not_connect(source, target, now)
        if refusal is not None:
            return self._refuse(refusal)
        circuit = Circuit(source=source, target=target, began_at=now, limit=self.limit)
        self._circuits[circuit] = None
        self._ends.update((source, target))
        return circuit

    def receive_gone(self, peer: PeerId) -> None:
        """Note that a peer is no longer connected, which ends its reservation."""
        if self._forget(peer):
            self._log(peer, "it is no longer connected")

    # --- commands -------------------------------------------------------------------------------

    def end(self, circuit: Circuit) -> None:
        """Give back the places that a circuit took."""
        del self._circuits[circuit]
        self.carried += sum(circuit.carried)
        for peer in (circuit.source, circuit.target):
            self._ends[peer] -= 1
            if not self._ends[peer]:
                del self._ends[peer]

    def expire(self, now: float) -> None:
        """Drop the reservations that are over."""
        over = [peer for peer, each in self._places.items() if each.expires_at <= now]
        for peer in over:
            self._forget(peer)
            self._log(peer, "it was not renewed")

    def drop_all(self, reason: str) -> None:
        """Take all reservations back."""
        for peer in list(self._places):
            self._forget(peer)
            self._log(peer, reason)

    # --- rules ----------------------------------------------------------------------------------

    def _why_not_reserve(self, peer: PeerId, subnets: Subnets | None, now: float) -> Status | None:
        if not self._has_patience(peer, now):
            return Status.RESOURCE_LIMIT_EXCEEDED
        if not self._acl.may_reserve(peer):
            return Status.PERMISSION_DENIED
        held = self._places.get(peer)
        if held is None and len(self._places) >= self._settings.max_reservations:
            return Status.RESERVATION_REFUSED
        if subnets is not None:
            most = (
                self._settings.max_reservations_per_address,
                self._settings.max_reservations_per_network,
            )
            own = set(held.subnets or ()) if held is not None else set[str]()
            for subnet, limit in zip(subnets, most, strict=True):
                if self._taken[subnet] - (subnet in own) >= limit:
                    return Status.RESERVATION_REFUSED
        return None

    def _why_not_connect(self, source: PeerId, target: PeerId, now: float) -> Status | None:
        if not self._has_patience(source, now):
            return Status.RESOURCE_LIMIT_EXCEEDED
        if source == target or not self._acl.may_connect(source, target):
            return Status.PERMISSION_DENIED
        if target not in self._places:
            return Status.NO_RESERVATION
        most = self._settings.max_circuits_per_peer
        crowded = any(self._ends[peer] >= most for peer in (source, target))
        if crowded or len(self._circuits) >= self._settings.max_circuits:
            return Status.RESOURCE_LIMIT_EXCEEDED
        return None

    def _has_patience(self, peer: PeerId, now: float) -> bool:
        if not self._requests.has(peer, now):
            return False
        self._requests.take(peer, now)
        return True

    def _refuse(self, status: Status) -> Status:
        self.refused[status] += 1
        return status

    def _forget(self, peer: PeerId) -> bool:
        place = self._places.pop(peer, None)
        if place is None:
            return False
        for subnet in place.subnets or ():
            self._taken[subnet] -= 1
            if not self._taken[subnet]:
                del self._taken[subnet]
        return True
