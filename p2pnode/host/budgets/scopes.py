"""Counts of what is in use, by whom: the arithmetic of budgets.

A use is charged to every scope it belongs to, or to none. A scope exists while somebody holds it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Final

from p2pnode.config import LimitSettings
from p2pnode.host.interfaces import Direction


class Resource(IntEnum):
    """What is counted."""

    CONNECTIONS = 0
    INBOUND_CONNECTIONS = 1
    OUTBOUND_CONNECTIONS = 2
    STREAMS = 3
    INBOUND_STREAMS = 4
    OUTBOUND_STREAMS = 5
    BYTES = 6  # of windows: what the other side may send before we have read any of it


CONNECTION_RESOURCES: Final[dict[Direction, tuple[Resource, Resource]]] = {
    "inbound": (Resource.CONNECTIONS, Resource.INBOUND_CONNECTIONS),
    "outbound": (Resource.CONNECTIONS, Resource.OUTBOUND_CONNECTIONS),
}
STREAM_RESOURCES: Final[dict[Direction, tuple[Resource, Resource]]] = {
    "inbound": (Resource.STREAMS, Resource.INBOUND_STREAMS),
    "outbound": (Resource.STREAMS, Resource.OUTBOUND_STREAMS),
}


class Kind(StrEnum):
    """Whose uses are counted together."""

    NODE = "node"
    NETWORK = "network"
    ADDRESS = "address"
    PEER = "peer"
    CONNECTION = "connection"
    PROTOCOL = "protocol"
    PAIR = "pair"  # one protocol with one peer


# How much of what. Plain numbers stand for the resources: lists take them twice as fast.
Needs = Sequence[tuple[int, int]]

UNLIMITED: Final = 1 << 62


class Scope:
    """What one of a kind uses, and what it may use; both by `Resource`."""

    __slots__ = ("holders", "key", "kind", "limits", "used")

    def __init__(self, kind: Kind, key: Hashable, limits: Sequence[int]) -> None:
        self.kind = kind
        self.key = key
        self.limits = limits
        self.used = [0] * len(Resource)
        self.holders = 0

    @property
    def share(self) -> float:
        """How much of its scarcest resource is used, from 0 to 1."""
        return max(used / limit for used, limit in zip(self.used, self.limits, strict=True))


def reserve(
    scopes: Sequence[Scope], needs: Needs, *, part: int = 1
) -> tuple[Scope, Resource] | None:
    """Charge `needs` to all of `scopes`, or to none.

    Args:
        scopes: each once; of those that have no room the first is named.
        needs: how much of what.
        part: 2 leaves half of every limit to others.

    Returns:
        Where there is no room and of what, or None when it is charged.
    """
    for scope in scopes:
        used, limits = scope.used, scope.limits
        for resource, amount in needs:
            if (used[resource] + amount) * part > limits[resource]:
                return scope, Resource(resource)
    for scope in scopes:
        used = scope.used
        for resource, amount in needs:
            used[resource] += amount
    return None


def release(scopes: Iterable[Scope], needs: Needs) -> None:
    """Give back what `reserve` charged."""
    for scope in scopes:
        used = scope.used
        for resource, amount in needs:
            used[resource] -= amount


class Scopes:
    """The scopes that somebody holds."""

    def __init__(self, settings: LimitSettings) -> None:
        self.limits = _limits(settings)
        self._held: dict[tuple[Kind, Hashable], Scope] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, kind: Kind, key: Hashable) -> Scope:
        """Find or make a scope; `drop` it as often as it was held."""
        scope = self._held.get((kind, key))
        if scope is None:
            scope = self._held[kind, key] = Scope(kind, key, self.limits[kind])
        scope.holders += 1
        return scope

    def drop(self, scope: Scope) -> None:
        """Note that one of those who held the scope does so no longer."""
        scope.holders -= 1
        if not scope.holders:
            del self._held[scope.kind, scope.key]

    def of(self, kind: Kind) -> list[Scope]:
        """Return all of one kind."""
        return [scope for scope in self._held.values() if scope.kind is kind]


def _limits(settings: LimitSettings) -> Mapping[Kind, Sequence[int]]:
    def limits(**named: int) -> Sequence[int]:
        return [named.get(resource.name.lower(), UNLIMITED) for resource in Resource]

    return {
        Kind.NODE: limits(
            connections=settings.max_connections,
            inbound_connections=settings.max_inbound_connections,
            outbound_connections=settings.max_outbound_connections,
            inbound_streams=settings.max_inbound_streams,
            outbound_streams=settings.max_outbound_streams,
            bytes=settings.max_bytes,
        ),
        Kind.NETWORK: limits(
            inbound_connections=settings.max_inbound_connections_per_network,
            bytes=settings.max_bytes_per_network,
        ),
        Kind.ADDRESS: limits(
            inbound_connections=settings.max_inbound_connections_per_address,
            bytes=settings.max_bytes_per_address,
        ),
        Kind.PEER: limits(
            connections=settings.max_connections_per_peer,
            inbound_streams=settings.max_inbound_streams_per_peer,
            outbound_streams=settings.max_outbound_streams_per_peer,
            bytes=settings.max_bytes_per_peer,
        ),
        Kind.CONNECTION: limits(
            streams=settings.max_streams_per_connection,
            bytes=settings.max_bytes_per_connection,
        ),
        Kind.PROTOCOL: limits(
            inbound_streams=settings.max_inbound_streams_per_protocol,
            outbound_streams=settings.max_outbound_streams_per_protocol,
        ),
        Kind.PAIR: limits(
            inbound_streams=settings.max_inbound_streams_per_protocol_per_peer,
            outbound_streams=settings.max_outbound_streams_per_protocol_per_peer,
        ),
    }
