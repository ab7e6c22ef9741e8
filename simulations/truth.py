"""What only a simulation can know: who of all nodes is closest to a key."""

from collections.abc import Callable, Sequence

from p2pnode.protocols.kad.keys import point
from p2pnode.wire.peer_id import PeerId
from simulations.node import Node
from simulations.world import World


def closest_to(world: World, key: bytes, asker: Node) -> Node:
    """Return the honest server closest to a key, the asker aside, of those that have joined."""
    target = point(key)
    servers = (
        each for each in world.joined if each.dht.serves and each.liar is None and each is not asker
    )
    return min(servers, key=lambda each: each.point ^ target)


def begins_with(world: World, closest: Node) -> Callable[[Sequence[PeerId]], bool]:
    """Return a test of a look-up's result: whether its first honest peer is the closest one."""

    def is_right(found: Sequence[PeerId]) -> bool:
        honest = (each for each in found if not world.is_liar(each))
        return next(honest, None) == closest.peer_id

    return is_right
