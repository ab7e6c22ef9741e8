"""Votes of networks on whether an address, or a family, can be reached, and their verdict. Pure.

`p2pnode.host.reachability.verdicts` says what the rules are for.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.host.interfaces import Reachability
from p2pnode.wire.addresses import IpAddress

if TYPE_CHECKING:
    from p2pnode.wire.peer_id import PeerId

_NETWORK_BITS: Final = {4: 24, 6: 48}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known of one address or family.

    Attributes:
        state: the verdict.
        reached: how many networks say that they reached it.
        failed: how many say that they could not.
        since: when the verdict became what it is, by trio's clock.
    """

    state: Reachability
    reached: int
    failed: int
    since: float


def network_of(ip: IpAddress) -> Network:
    """Return the network whose members are one voice, and share one allowance."""
    return ipaddress.ip_network((ip, _NETWORK_BITS[ip.version]), strict=False)


class Subject:
    """What there is to find out: the votes on one address, or one family, and their verdict.

    Args:
        address: which one, or None for a family as a whole.
        settings: how many votes count, and for how long.

    Attributes:
        state: the verdict.
        since: when it became what it is.
        checked_at: when the last vote was cast.
        pause: seconds before a network that has voted is asked again.
        must_recheck: whether something has changed since the last vote.
        in_flight: who is being asked now, and its network.
    """

    def __init__(self, address: Multiaddr | None, settings: ReachabilitySettings) -> None:
        self.address = address
        self.state = Reachability.UNKNOWN
        self.since = 0.0
        self.checked_at = -math.inf
        self.pause = settings.retry_interval
        self.must_recheck = False
        self.in_flight: dict[PeerId, Network] = {}
        self._settings = settings
        self._passed_over: dict[Network, float] = {}  # those that tried something else instead
        self._votes: OrderedDict[Network, tuple[bool, float]] = OrderedDict()  # the newest last

    def vote(self, network: Network, now: float, *, reached: bool) -> None:
        """Take a network's word; its earlier one counts no longer."""
        self._votes.pop(network, None)
        self._votes[network] = reached, now
        while len(self._votes) > self._settings.window:
            self._votes.popitem(last=False)
        self.checked_at = now
        self.must_recheck = False

    def pass_over(self, network: Network, now: float) -> None:
        """Note that a network, when asked, tried another address: it may lack the transport."""
        self._passed_over[network] = now

    def expire(self, now: float) -> None:
        """Drop the votes that are too old."""
        limit = now - self._settings.verdict_ttl
        for network in [each for each, at in self._passed_over.items() if at <= limit]:
            del self._passed_over[network]
        for network in [each for each, (_, at) in self._votes.items() if at <= limit]:
            del self._votes[network]

    def clear(self, now: float) -> None:
        """Forget everything."""
        self._votes.clear()
        self._passed_over.clear()
        self.checked_at = -math.inf
        self.pause = self._settings.retry_interval
        self._become(Reachability.UNKNOWN, now)

    @property
    def networks(self) -> Iterable[Network]:
        """Those that have voted."""
        return self._votes.keys()

    def voted_at(self, network: Network) -> float:
        """When a network voted; minus infinity if it has not."""
        vote = self._votes.get(network)
        return -math.inf if vote is None else vote[1]

    def asked_at(self, network: Network) -> float:
        """When a network last answered anything; minus infinity if it has not."""
        return max(self.voted_at(network), self._passed_over.get(network, -math.inf))

    def said_yes(self, network: Network) -> bool:
        """Whether a network says that it reached it."""
        vote = self._votes.get(network)
        return vote is not None and vote[0]

    @property
    def counts(self) -> tuple[int, int]:
        """How many say that they reached it, and how many deny it."""
        yes = sum(reached for reached, _ in self._votes.values())
        return yes, len(self._votes) - yes

    def judge(self, needed: int, now: float) -> None:
        """Let the verdict follow the votes.

        Args:
            needed: by how many one side must lead.
            now: trio's clock.
        """
        yes, no = self.counts
        if yes - no >= needed:
            self._become(Reachability.PUBLIC, now)
        elif no - yes >= needed:
            self._become(Reachability.PRIVATE, now)
        elif not self._votes:
            self._become(Reachability.UNKNOWN, now)
        if self.is_settled(needed):
            self.pause = self._settings.retry_interval

    def _become(self, state: Reachability, now: float) -> None:
        if self.state is not state:
            self.state, self.since = state, now

    def is_settled(self, needed: int) -> bool:
        """Whether nobody needs to be asked but to see if it is still so."""
        if self.must_recheck or self.state is Reachability.UNKNOWN or not self._votes:
            return False
        yes, no = self.counts
        newest = next(reversed(self._votes.values()))[0]
        agrees = newest is (self.state is Reachability.PUBLIC)
        return agrees and abs(yes - no) >= needed

    def finding(self) -> Finding:
        """Describe it."""
        yes, no = self.counts
        return Finding(state=self.state, reached=yes, failed=no, since=self.since)
