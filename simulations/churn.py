"""Nodes that come and go: each stays for a session, and its place is taken again."""

from collections.abc import Callable, Iterable

import trio

from simulations.conditions import sessions_of
from simulations.node import Node
from simulations.simulation import Simulation

OnStart = Callable[[Node], object]


class Churn:
    """Ends and replaces nodes, as the `churn.` parameters of a scenario say.

    The number of nodes stays about the same: when a session ends, a new node takes its place at
    once, or the same one after its downtime.

    Args:
        sim: the simulation, whose parameters have the group `churn.`.
        on_start: is told of each node that churn starts, before it has joined.
    """

    def __init__(self, sim: Simulation, *, on_start: OnStart | None = None) -> None:
        self._sim = sim
        self._rng = sim.rng_for("churn")
        self._sessions = sessions_of(sim.parameters)
        self._on_start = on_start
        self.ended = 0

    async def run(self, nodes: Iterable[Node]) -> None:
        """Let the sessions of these nodes, and of those that follow them, end; never returns.

        They are met in the midst of their sessions. Bootstrap peers are left out.
        """
        async with trio.open_nursery() as nursery:
            if self._sessions is not None:
                for node in nodes:
                    if node not in self._sim.world.bootstrap:
                        stay = self._sessions.residual(self._rng)
                        nursery.start_soon(self._live, node, stay)
            await trio.sleep_forever()

    async def _live(self, node: Node, stay: float) -> None:
        """Follow one place, from node to node."""
        assert self._sessions is not None
        parameters, world = self._sim.parameters, self._sim.world
        while True:
            # Drawn beforehand, so that who comes next does not depend on what happens meanwhile.
            crashes = self._rng.random() * 100 < parameters["churn.crash"]
            returns = self._rng.random() * 100 < parameters["churn.return"]
            downtime = self._rng.expovariate(1.0) * parameters["churn.downtime"]
            next_stay = self._sessions.draw(self._rng)
            await trio.sleep(stay)
            self.ended += 1
            if crashes:
                world.crash(node)
            else:
                await world.leave(node)
            if returns:
                await trio.sleep(downtime)
            node = await world.add_node(again=node if returns else None, wait=False)
            if self._on_start is not None:
                self._on_start(node)
            stay = next_stay
