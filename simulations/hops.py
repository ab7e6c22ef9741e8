"""How many steps look-ups take, as the nodes themselves tell."""

from p2pnode.protocols.kad.queries import DhtLookupEnded
from simulations.node import Node
from simulations.world import World


class Hops:
    """Collects the hops of look-ups of certain keys, whichever node makes them.

    Nodes look up much on their own account, to keep their tables full; such look-ups are shorter,
    and not counted.
    """

    def __init__(self, world: World) -> None:
        self.seen: list[float] = []
        self._wanted: set[bytes] = set()
        world.on(DhtLookupEnded, self._receive)

    def watch(self, key: bytes) -> None:
        """Count the look-ups of `key` from now on."""
        self._wanted.add(key)

    def clear(self) -> None:
        """Forget what was collected; the keys are still watched."""
        self.seen.clear()

    def _receive(self, node: Node, event: DhtLookupEnded) -> None:  # noqa: ARG002  # all count
        if event.key in self._wanted and event.answered:
            self.seen.append(float(event.hops))
