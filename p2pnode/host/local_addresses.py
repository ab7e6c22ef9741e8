"""Where this node itself can be dialled: as announced, listened on, mapped, or seen by others."""

from collections.abc import Callable, Collection, Iterable, Sequence

from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.events import Event
from p2pnode.host.interfaces import Connection, LocalPeerChanged
from p2pnode.host.ranking import ips_of, is_relayed
from p2pnode.host.reachability.nat_behaviour import Sighting
from p2pnode.host.reachability.observed import (
    ObservedAddressBelieved,
    ObservedAddressDropped,
    ObservedAddresses,
    Place,
)
from p2pnode.transport.base import Listener
from p2pnode.wire.addresses import IpAddress, ip_of


class LocalAddresses:
    """The listeners and the votes of others, and what follows from them.

    Args:
        settings: how many must agree on an observed address, and the like.
        announce: told to others instead of all that is direct, if not empty.
        emit: told of changes.
        moved: called when this machine has come to an IP address that it did not have.

    Attributes:
        listeners: those that are open.
        mapped: the addresses at which a router has promised to let others in.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        announce: Sequence[Multiaddr],
        emit: Callable[[Event], object],
        moved: Callable[[], object],
    ) -> None:
        self.listeners = list[Listener]()
        self._announce = tuple(announce)
        self._emit = emit
        self._moved = moved
        self._votes = ObservedAddresses(settings)
        self._believed: tuple[Multiaddr, ...] = ()
        self.mapped: tuple[Multiaddr, ...] = ()
        self._verified: tuple[Multiaddr, ...] = ()
        self._refuted: tuple[Multiaddr, ...] = ()
        self._told: list[Multiaddr] = []
        self._ips = set[IpAddress]()

    @property
    def all(self) -> list[Multiaddr]:
        """What is told to others."""
        direct = self._announce or tuple(
            each for each in (*self.candidates, *self._verified) if self._is_worth_telling(each)
        )
        return list(dict.fromkeys((*direct, *self.relayed)))

    @property
    def candidates(self) -> list[Multiaddr]:
        """Where others may be able to dial this node directly, told to them or not."""
        direct = self._announce or (*self.listening, *self.mapped, *self._believed)
        return list(dict.fromkeys(direct))

    def set_mapped(self, addresses: Sequence[Multiaddr], now: float) -> None:
        """Take the addresses at which a router has promised to let others in."""
        self.mapped = tuple(addresses)
        self.update(now)

    def judge(
        self, verified: Collection[Multiaddr], refuted: Collection[Multiaddr], now: float
    ) -> None:
        """Take in at which addresses others were found to reach this node, and at which not."""
        self._verified, self._refuted = tuple(verified), tuple(refuted)
        self.update(now)

    def _is_worth_telling(self, address: Multiaddr) -> bool:
        """Leave out what leads nowhere, and what may lead nowhere where there is better.

        Private addresses were not tried by anybody, and are for those who share a network with us.
        """
        ip = ip_of(address)
        if address in self._refuted:
            return False
        if address in self._verified or ip is None or not ip.is_global:
            return True
        return all(each.version != ip.version for each in ips_of(self._verified))

    @property
    def listening(self) -> list[Multiaddr]:
        """The addresses this node listens on, those of each interface of a wildcard."""
        return [each for each in self._of_listeners() if not is_relayed(each)]

    @property
    def relayed(self) -> list[Multiaddr]:
        """The addresses at which relays take connections for this node."""
        return [each for each in self._of_listeners() if is_relayed(each)]

    @property
    def observed(self) -> list[Multiaddr]:
        """The addresses at which enough others see this node."""
        return list(self._believed)

    def observe(self, connection: Connection, observed: Multiaddr, now: float) -> None:
        """Take a peer's word for where it sees this node, as one vote among others."""
        self._votes.observe(
            connection,
            observed=observed,
            local=connection.local_address,
            remote=connection.remote_address,
            listening=self.listening,
            now=now,
        )
        self.update(now)

    def seen_by(self, now: float) -> dict[tuple[int, str], list[Sighting]]:
        """List who sees this node where, by IP version and `tcp` or `udp`."""
        return self._votes.by_family(now)

    def sightings(self, now: float) -> list[tuple[Place, Place, int]]:
        """List where each of our places is seen, and by how many observers far enough apart."""
        return self._votes.sightings(now)

    def end(self, connection: Connection, now: float) -> None:
        """Let the vote of a peer that has left go stale."""
        self._votes.end(connection, now)

    def update(self, now: float) -> None:
        """Count the votes, look at the interfaces, and tell of what has changed."""
        self._count_votes(now)
        if set(self.all) != set(self._told):
            self.tell()
        ips = ips_of(self.listening)
        before, self._ips = self._ips, ips
        if not ips <= before:
            self._moved()

    def tell(self) -> None:
        """Tell all who are connected about this node anew."""
        self._told = self.all
        self._emit(LocalPeerChanged())

    def _of_listeners(self) -> Iterable[Multiaddr]:
        return dict.fromkeys(each for one in self.listeners for each in one.addresses)

    def _count_votes(self, now: float) -> None:
        """Believe the observed addresses that enough peers agree on, and no others."""
        believed = self._votes.believed(self.listening, now)
        before, self._believed = self._believed, tuple(believed)
        for address, observers in believed.items():
            if address not in before:
                self._emit(ObservedAddressBelieved(address=address, observers=observers))
        for address in before:
            if address not in believed:
                self._emit(ObservedAddressDropped(address=address))
