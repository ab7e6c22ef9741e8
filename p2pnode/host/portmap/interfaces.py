"""What every way of asking a router has in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import ClassVar, Literal, NamedTuple

Kind = Literal["tcp", "udp"]


class Port(NamedTuple):
    """A port of this machine, at the address by which it reaches the router."""

    kind: Kind
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """What the router has granted.

    Attributes:
        port: what it leads to.
        external_ip: the router's address on the other side.
        external_port: the port there; not always the one asked for.
        lifetime: seconds for which it holds, unless renewed.
    """

    port: Port
    external_ip: IPv4Address
    external_port: int
    lifetime: float


class PortMapper(ABC):
    """One way of asking one router.

    Every method ends by itself within a bounded time. `PortMappingError` says that the router
    refuses, is silent, or does not know this way.
    """

    name: ClassVar[str]

    @abstractmethod
    async def find(self) -> None:
        """Find out whether the router can be asked in this way.

        Raises:
            PortMappingError: it cannot.
        """

    @abstractmethod
    async def map(self, port: Port, external_port: int, lifetime: float) -> Mapping:
        """Ask for a mapping, or renew it.

        Args:
            port: what it shall lead to.
            external_port: the one that would be liked best.
            lifetime: seconds; the router may grant fewer.

        Raises:
            PortMappingError: there is none now.
        """

    @abstractmethod
    async def unmap(self, mapping: Mapping) -> None:
        """Give a mapping back.

        Raises:
            PortMappingError: nobody knows whether it is gone; it will be when its time is up.
        """

    @abstractmethod
    async def check(self, held: Sequence[Mapping]) -> bool:
        """Tell whether the router still has what it granted, and is still at the same address.

        Raises:
            PortMappingError: it does not say.
        """
