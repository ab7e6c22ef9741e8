"""What a host tells of itself to status pages."""

from dataclasses import dataclass

from multiaddr import Multiaddr

from p2pnode.host.budgets import BudgetReport
from p2pnode.host.connections import ConnectionInfo
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """The network side at one moment, for status pages.

    Attributes:
        peer_id: this node.
        addresses: where others can dial it, as they are told.
        listening: the addresses it listens on.
        observed: those that enough others see it at.
        protocols: what it serves.
        connections: all open ones.
        known_peers: how many peers the peerstore holds.
        dials: peers being dialled now.
        handshakes: inbound connections that have not yet said who they are.
        budgets: what is used of what may be used, and what was refused.
    """

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]
    listening: tuple[Multiaddr, ...]
    observed: tuple[Multiaddr, ...]
    protocols: tuple[str, ...]
    connections: tuple[ConnectionInfo, ...]
    known_peers: int
    dials: int
    handshakes: int
    budgets: BudgetReport
