"""Whom to ask whether others can reach this node: the peers that serve AutoNAT. Pure.

`p2pnode.host.reachability.verdicts` says what is asked, and what the answers count for.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.host.reachability.votes import Network, network_of
from p2pnode.wire.addresses import IpAddress
from p2pnode.wire.peer_id import PeerId


@dataclass(slots=True)
class ProbeServer:
    """A peer that can be asked.

    Attributes:
        peer_id: who it is.
        network: whose word its answers are.
        family: 4 or 6, of the connection to it.
        takes_others: it dials IP addresses that the request does not come from (version 2).
        takes_none: it dials where it sees us when it is asked for no address (version 1).
        guesses: where we may be, as it sees us.
        free_at: when it may be asked again, by trio's clock.
        failures: how often in a row it did not help.
    """

    peer_id: PeerId
    network: Network
    family: int
    takes_others: bool
    takes_none: bool
    guesses: tuple[Multiaddr, ...] = ()
    free_at: float = -math.inf
    failures: int = 0


class ProbeServers:
    """Those that are known, the one told of longest ago first; nobody crowds the others out."""

    def __init__(self, settings: ReachabilitySettings) -> None:
        self._settings = settings
        self._servers: dict[PeerId, ProbeServer] = {}

    def __len__(self) -> int:
        return len(self._servers)

    def receive(
        self,
        peer_id: PeerId,
        ip: IpAddress,
        *,
        takes_others: bool,
        takes_none: bool,
        guesses: Sequence[Multiaddr],
    ) -> bool:
        """Note a connected one; see `ProbeServer`. Returns whether anything of it was news."""
        server = known = self._servers.pop(peer_id, None)
        network = network_of(ip)
        if server is None or server.network != network:
            server = ProbeServer(peer_id, network, ip.version, takes_others, takes_none)
        before = server.takes_others, server.takes_none, server.guesses
        server.takes_others, server.takes_none = takes_others, takes_none
        server.guesses = tuple(guesses)
        self._servers[peer_id] = server
        if len(self._servers) > self._settings.max_servers:
            self._forget_one_of_a_crowd()
        return server is not known or (takes_others, takes_none, server.guesses) != before

    def _forget_one_of_a_crowd(self) -> None:
        """Make room: nobody drives the others out by coming with many from one network."""
        crowds = Counter(each.network for each in self._servers.values())
        most = max(crowds.values())
        oldest = next(each for each in self._servers.values() if crowds[each.network] == most)
        del self._servers[oldest.peer_id]

    def receive_disconnected(self, peer_id: PeerId) -> None:
        """Note that one sees us no more; it can still be asked, over a new connection."""
        if (server := self._servers.get(peer_id)) is not None:
            server.guesses = ()

    def forget(self, peer_id: PeerId) -> None:
        """Ask one no more."""
        self._servers.pop(peer_id, None)

    def rest(self, peer_id: PeerId, now: float, *, helped: bool) -> None:
        """Leave one alone for a while after it was asked: longer each time it does not help."""
        server = self._servers.get(peer_id)
        if server is None:
            return
        if helped:
            server.failures = 0
            server.free_at = now + self._settings.server_interval
        else:
            shun = self._settings.shun_time * 2.0 ** min(server.failures, 32)
            server.failures += 1
            server.free_at = now + min(shun, self._settings.max_shun_time)

    def connected_by(self, family: int) -> list[ProbeServer]:
        """Return those whose connection is of a family."""
        return [each for each in self._servers.values() if each.family == family]

    def that_take_others(self) -> list[ProbeServer]:
        """Return those that dial other IP addresses than the one they see us at."""
        return [each for each in self._servers.values() if each.takes_others]
