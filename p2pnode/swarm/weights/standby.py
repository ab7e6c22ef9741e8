"""When a replica of an expert takes its place: pure.

Rules:

1. As long as a host of the expert is announced, or can be reached, it is served, and the replica
   follows it.
2. When there is none, the replica waits for a time of grace, and then serves the expert itself.
   Replicas know of each other from the hosts they follow. The one closest to the expert goes first,
   by XOR of the hashes as in the DHT; the next one waits twice as long, and so on, and finds the
   expert served when it looks again.
   A replica that has seen no host yet, as it has just started, first waits for as long as
   announcements live: it may not have found those that there are.
3. A replica that has no state does not take over: fresh weights are nobody's.

What two replicas do that never heard of each other, or cannot reach each other, is what any two
hosts of one expert do: both serve it.
"""

import math
from collections.abc import Iterable

from p2pnode.protocols.kad.keys import point
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


def distance(peer_id: PeerId, uid: Uid) -> int:
    """Return how far a peer is from an expert; the closest one goes first."""
    return point(bytes(peer_id)) ^ point(str(uid).encode())


class Standby:
    """One replica.

    Args:
        own: this node.
        uid: the expert, its run named by id.
        grace: seconds without any host until the closest replica takes over.
        lifetime: seconds on top, until any host has been seen.
        has_state: whether there is a state to serve with.
    """

    def __init__(
        self, own: PeerId, uid: Uid, *, grace: float, lifetime: float, has_state: bool
    ) -> None:
        self.uid = uid
        self.has_state = has_state
        self.hosts: tuple[PeerId, ...] = ()  # those that served the expert last
        self._own = own
        self._grace = grace
        self._lifetime = lifetime
        self._others: dict[PeerId, tuple[PeerId, ...]] = {}  # replicas, by the host that told
        self._gone_since = math.inf

    def receive_hosts(self, hosts: Iterable[PeerId]) -> None:
        """Take in who serves the expert now: somebody does."""
        self.hosts = tuple(hosts)
        self._gone_since = math.inf

    def receive_replicas(self, host: PeerId, replicas: Iterable[PeerId]) -> None:
        """Take in which replicas a host knows of."""
        self._others[host] = tuple(each for each in replicas if each != self._own)

    def receive_absence(self, now: float) -> None:
        """Take in that no host is announced, and those known cannot be reached."""
        self._gone_since = min(self._gone_since, now)

    @property
    def replicas(self) -> tuple[PeerId, ...]:
        """The other replicas that the last hosts knew of."""
        return tuple(dict.fromkeys(each for host in self.hosts for each in self._told_by(host)))

    @property
    def take_over_at(self) -> float:
        """When this replica is to serve the expert; infinite while it is not to."""
        if not self.has_state:
            return math.inf
        own = distance(self._own, self.uid)
        before = sum(distance(each, self.uid) < own for each in self.replicas)
        patience = 0.0 if self.hosts else self._lifetime
        return self._gone_since + patience + self._grace * (1 + before)

    def _told_by(self, host: PeerId) -> tuple[PeerId, ...]:
        return self._others.get(host, ())
