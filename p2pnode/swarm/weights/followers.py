"""Who keeps replicas of which experts, as these hosts heard when they were asked: pure.

A replica that has not asked again in time is forgotten, so that one that died is soon not counted
on. Nothing else needs to be announced: who could take an expert over has to talk to its hosts
anyway.
"""

from typing import Final

from p2pnode.swarm.weights.messages import MAX_PEERS
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

PATIENCE: Final = 3.0  # times the interval after which a replica said it would ask again


class Followers:
    """The replicas of a host's experts."""

    def __init__(self) -> None:
        self._until: dict[Uid, dict[PeerId, float]] = {}

    def receive(self, uid: Uid, peer_id: PeerId, interval: float, now: float) -> None:
        """Take in that a peer follows an expert, and asks again after `interval` seconds."""
        known = self._until.setdefault(uid, {})
        if peer_id in known or len(self.of(uid, now)) < MAX_PEERS:
            known[peer_id] = now + PATIENCE * interval

    def of(self, uid: Uid, now: float) -> list[PeerId]:
        """List the replicas of an expert, in the order in which they came."""
        known = self._until.get(uid, {})
        for peer_id in [peer_id for peer_id, until in known.items() if until <= now]:
            del known[peer_id]
        return list(known)

    def forget(self, uid: Uid) -> None:
        """Drop what is known of an expert that is not hosted here any more."""
        self._until.pop(uid, None)
