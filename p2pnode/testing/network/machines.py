"""Machines of the virtual network: where they are, how they are linked, who listens on them."""

import ipaddress
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from p2pnode.testing.network.grades import LinkGrade
from p2pnode.testing.network.lanes import Downlink, Uplink
from p2pnode.testing.network.nat import Endpoint, Nat, Router

if TYPE_CHECKING:
    from p2pnode.testing.network.dialling import Knock
    from p2pnode.testing.network.wires import Wire

EPHEMERAL_PORTS: Final = range(32768, 61000)  # those Linux dials from
_GOLDEN: Final = 0x9E3779B1  # 2**32 / golden ratio, odd: spreads numbers over all addresses


class Machine:
    """One machine; made by `VirtualNetwork.add_machine`.

    Attributes:
        number: counted from 1.
        ip: its own address, which is private behind a router.
        region: where it is, for a `RegionMatrix`.
        grade: what its link is like.
        router: what translates its addresses, or None.
        up: whether it has power; changed by the network only.
        group: its side of a partition, or None if it belongs to all.
        listeners: who accepts connections, by port.
        knocks: connections being opened from here, by local port and remote endpoint.
        wires: the connections it holds.
    """

    __slots__ = (
        "_ports",
        "downlink",
        "grade",
        "group",
        "ip",
        "knocks",
        "listeners",
        "number",
        "region",
        "router",
        "up",
        "uplink",
        "wires",
    )

    def __init__(
        self, number: int, ip: str, *, region: str, grade: LinkGrade, router: Router | None
    ) -> None:
        self.number = number
        self.ip = ip
        self.region = region
        self.grade = grade
        self.router = router
        self.up = True
        self.group: int | None = None
        self.uplink = Uplink(grade.up)
        self.downlink = Downlink(grade.down)
        self.listeners: dict[int, object] = {}
        self.knocks: dict[tuple[int, Endpoint], Knock] = {}
        self.wires: dict[Wire, None] = {}
        self._ports = itertools.cycle(EPHEMERAL_PORTS)

    def __repr__(self) -> str:
        return f"<machine {self.number} at {self.ip}>"

    @property
    def nat(self) -> Nat:
        """What kind of router it is behind."""
        return Nat.NONE if self.router is None else self.router.kind

    @property
    def public_ip(self) -> str:
        """The address others see it come from."""
        return self.ip if self.router is None else self.router.ip

    def free_port(self) -> int:
        """Return a port that nobody listens on; the same one comes again after all others."""
        return next(port for port in self._ports if port not in self.listeners)


def public_ips() -> Iterator[str]:
    """Yield addresses of the internet, no two alike, neighbours far apart.

    So that no two of a few thousand machines share a /16, unless somebody wants them to.
    """
    for number in itertools.count(1):
        address = ipaddress.IPv4Address(number * _GOLDEN % 2**32)
        if address.is_global and not address.is_multicast and not address.is_reserved:
            yield str(address)


def private_ips() -> Iterator[str]:
    """Yield the addresses of a home network."""
    for number in itertools.count(2):
        yield f"192.168.{number >> 8 & 255}.{number & 255}"
