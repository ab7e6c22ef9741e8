"""Values in the DHT that can be told from forgeries: public keys, under their own `/pk/` names.

Each has a publisher, whose DHT stores it again every `republish_interval` while it is up.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.wire.keys import PrivateKey
from simulations.errors import SimulationFailedError
from simulations.hops import Hops
from simulations.node import Node
from simulations.probes import Probes
from simulations.simulation import Simulation
from simulations.world import PATIENCE

_RETRY: Final = 10.0  # seconds until a publisher that could not store its value tries again


@dataclass(frozen=True, slots=True)
class Value:
    """One value, its key in the DHT, and the name of who publishes it."""

    key: bytes
    value: bytes
    publisher: str


class Values:
    """The values of a simulation.

    Args:
        sim: the simulation.
    """

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.rng_for("values")
        self._stored: list[Value] = []
        self._publishers: dict[Value, Node] = {}  # of those stored; who is down is forgotten
        self.probes = Probes()
        self.hops = Hops(sim.world)

    @property
    def stored(self) -> list[Value]:
        """Those that were stored at least once."""
        return list(self._stored)

    @property
    def live(self) -> list[Value]:
        """Those of them whose publisher is up."""
        for value in [each for each, node in self._publishers.items() if not node.is_up]:
            del self._publishers[value]  # a node that is down takes as much memory as any
        return list(self._publishers)

    @property
    def orphaned(self) -> list[Value]:
        """The others."""
        live = set(self.live)
        return [each for each in self._stored if each not in live]

    async def publish(self, nodes: Iterable[Node]) -> None:
        """Let each of these nodes publish a value; returns when all are stored.

        Raises:
            SimulationFailedError: some cannot be, within `PATIENCE`.
        """
        waiting = [self.publish_soon(node) for node in nodes]
        with trio.move_on_after(PATIENCE):
            for stored in waiting:
                await stored.wait()
        if missing := sum(not stored.is_set() for stored in waiting):
            raise SimulationFailedError(
                f"{missing} of {len(waiting)} values could not be stored within {PATIENCE:g}"
                " virtual seconds; is the network too bad for that?"
            )

    def publish_soon(self, node: Node) -> trio.Event:
        """Let a node publish a value as soon as it has joined, and while it is up.

        Returns:
            What is set when the value is stored, or never will be.
        """
        stored = trio.Event()
        key = PrivateKey.from_seed(self._rng.randbytes(32)).public_key
        name = f"/{PublicKeyValidator.NAMESPACE}/".encode() + bytes(key.peer_id)
        value = Value(name, key.protobuf, node.name)
        self._sim.nursery.start_soon(self._publish, value, node, stored)
        return stored

    async def _publish(self, value: Value, node: Node, stored: trio.Event) -> None:
        await node.wait_joined()
        while node.is_up and not stored.is_set():
            try:
                await node.dht.put_value(value.key, value.value, publish=True)
            except P2PNodeError:
                await trio.sleep(_RETRY)
            else:
                self._stored.append(value)
                self._publishers[value] = node
                self.hops.watch(value.key)
                stored.set()
        stored.set()  # or it went down before it could store anything

    async def look_up(self, value: Value, node: Node) -> bool | None:
        """Look a value up from a node; see `Probes.ask`."""
        found = await self.probes.ask(
            node, lambda: node.dht.get_value(value.key), lambda got: got == value.value
        )
        self._sim.log.record(
            "value-looked-up", node=node.name, publisher=value.publisher, found=found
        )
        return found

    async def look_up_some(
        self,
        count: int,
        rng: random.Random,
        *,
        over: float,
        among: Callable[[], Sequence[Value]],
        askers: Callable[[], Sequence[Node]] | None = None,
    ) -> None:
        """Look up some values from some nodes, at random moments; returns when all have ended.

        Args:
            count: how many look-ups.
            rng: draws who looks up what, and when.
            over: seconds in which the look-ups begin.
            among: gives the values to draw one from, at each look-up.
            askers: gives the nodes to draw one from; by default all honest ones that have joined.
        """
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for moment in sorted(rng.uniform(0, over) for _ in range(count)):
                await trio.sleep_until(start + moment)
                values, nodes = among(), (askers or self._honest)()
                if values and nodes:
                    nursery.start_soon(self.look_up, rng.choice(values), rng.choice(nodes))

    def _honest(self) -> Sequence[Node]:
        return self._sim.world.honest
