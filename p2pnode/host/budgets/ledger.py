"""All budgets of a host."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import LimitSettings
from p2pnode.errors import Limit
from p2pnode.host.budgets.accounts import ConnectionAccount
from p2pnode.host.budgets.rates import Rates, SubnetMap, plain_ip
from p2pnode.host.budgets.refusals import Refusals, ResourceRefused
from p2pnode.host.budgets.scopes import (
    CONNECTION_RESOURCES,
    UNLIMITED,
    Kind,
    Resource,
    Scope,
    Scopes,
)
from p2pnode.host.interfaces import Direction
from p2pnode.transport.handshakes import Handshakes
from p2pnode.wire.peer_id import PeerId

TOP: Final = 5  # of each kind of scope are described: those that use most of what they may


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much of one resource is used."""

    resource: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeUse:
    """How much one scope uses of each resource that is limited there.

    Attributes:
        kind: node, network, address, peer or protocol.
        name: which of its kind: a subnet, a peer id, a protocol, or nothing.
        uses: by resource.
    """

    kind: str
    name: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport:
    """The budgets at one moment, for status pages.

    Attributes:
        node: all uses together.
        top: of subnets, peers and protocols the few that use most of what they may.
        refusals: how many there were since the start, by limit.
    """

    node: ScopeUse
    top: tuple[ScopeUse, ...]
    refusals: Mapping[Limit, int]


class Budgets:
    """How much of this node may be used by whom, and how much is. Pure: time is an argument.

    Args:
        settings: the limits.
        emit: told of refusals, a few times a minute at most for each limit.
    """

    def __init__(
        self, settings: LimitSettings, emit: Callable[[ResourceRefused], object] = lambda _: None
    ) -> None:
        self.scopes = Scopes(settings)
        self.subnets = SubnetMap(settings)
        self.refusals = Refusals(settings.refusal_interval, emit)
        self.background_protocols = settings.background_protocols
        self._settings = settings
        self._node = self.scopes.hold(Kind.NODE, "")  # for good
        self._handshakes = Handshakes(settings.max_handshakes)
        self._address_rates = Rates(
            settings.connections_per_second_per_address,
            settings.connection_burst_per_address,
            settings.max_rates_kept,
        )
        self._network_rates = Rates(
            settings.connections_per_second_per_network,
            settings.connection_burst_per_network,
            settings.max_rates_kept,
        )
        self._stream_rates = Rates(
            settings.streams_per_second_per_peer,
            settings.stream_burst_per_peer,
            settings.max_rates_kept,
        )

    # --- connections ----------------------------------------------------------------------------

    def accept(self, address: Multiaddr, now: float) -> ConnectionAccount:
        """Open the account of a connection that was just accepted from `address`.

        Raises:
            ResourceLimitError: its subnet has too many, or makes them too fast.
        """
        account = ConnectionAccount(self, "inbound", address=address)
        self._check_connection_rate(account, address, now)
        account.locate(address, now)
        return account

    def dial(self, peer_id: PeerId) -> ConnectionAccount:
        """Open the account of a connection to a peer; it costs nothing until there is one."""
        return ConnectionAccount(self, "outbound", peer_id=peer_id)

    def lack_of_room(self, direction: Direction) -> tuple[Scope, Resource] | None:
        """Return what the node has no more of, for another connection, if there is no room."""
        used, limits = self._node.used, self._node.limits
        # The direction's own first: a connection that ends gives back both.
        for resource in reversed(CONNECTION_RESOURCES[direction]):
            if used[resource] >= limits[resource]:
                return self._node, resource
        return None

    def crowd_of(self, address: Multiaddr) -> str:
        """Name whose a connection from `address` is likely to be: who comes from one subnet."""
        subnets = self.subnets.find(address)
        return subnets.address if subnets is not None else str(plain_ip(address))

    # --- handshakes and rates -------------------------------------------------------------------

    @property
    def handshakes(self) -> int:
        """How many inbound handshakes are under way."""
        return len(self._handshakes)

    def handshake(
        self, address: Multiaddr, give_way: Callable[[], object]
    ) -> contextlib.AbstractContextManager[None]:
        """Charge a connection that has not said yet who it is.

        Args:
            address: where it comes from.
            give_way: called when it has to make room for another one; it is no longer charged.
        """
        return self._handshakes.hold(self.crowd_of(address), give_way)

    def _check_connection_rate(
        self, account: ConnectionAccount, address: Multiaddr, now: float
    ) -> None:
        subnets = self.subnets.find(address)
        if subnets is None:
            return
        keys = (
            (Limit.ADDRESS_CONNECTION_RATE, self._address_rates, subnets.address),
            (Limit.NETWORK_CONNECTION_RATE, self._network_rates, subnets.network),
        )
        for limit, rates, key in keys:
            if not rates.has(key, now):
                reason = f"more than {rates.per_second:g} connections a second come from {key}"
                raise account.refuse(limit, reason, now)
        for _, rates, key in keys:
            rates.take(key, now)

    def check_stream_rate(self, account: ConnectionAccount, now: float) -> None:
        """Count an inbound stream of a peer.

        Raises:
            ResourceLimitError: it opens them too fast.
        """
        rates = self._stream_rates
        if not rates.has(account.peer_id, now):
            reason = f"more than {rates.per_second:g} streams a second come from one peer"
            raise account.refuse(Limit.PEER_STREAM_RATE, reason, now)
        rates.take(account.peer_id, now)

    # --- reports --------------------------------------------------------------------------------

    def report(self) -> BudgetReport:
        """Describe what is used now."""
        node = _use_of(self._node)
        handshakes = Use(
            resource="handshakes", used=self.handshakes, limit=self._settings.max_handshakes
        )
        top = [
            _use_of(scope)
            for kind in (Kind.NETWORK, Kind.ADDRESS, Kind.PEER, Kind.PROTOCOL)
            for scope in sorted(self.scopes.of(kind), key=_share, reverse=True)[:TOP]
            if scope.share > 0
        ]
        return BudgetReport(
            node=ScopeUse(kind=node.kind, name=node.name, uses=(*node.uses, handshakes)),
            top=tuple(top),
            refusals=dict(self.refusals.total),
        )


def _share(scope: Scope) -> float:
    return scope.share


def _use_of(scope: Scope) -> ScopeUse:
    return ScopeUse(
        kind=scope.kind,
        name=str(scope.key),
        uses=tuple(
            Use(
                resource=resource.name.lower(),
                used=scope.used[resource],
                limit=scope.limits[resource],
            )
            for resource in Resource
            if scope.limits[resource] < UNLIMITED
        ),
    )
