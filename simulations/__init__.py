"""Simulations: the real node code on a virtual network, under virtual time, from a seed.

A scenario is a short Python file that holds a `Scenario`:

    async def run(sim: Simulation) -> None:
        nodes = await sim.world.add_nodes(sim.parameters["nodes"])
        …
        sim.report.figure("found", 99.9, "%", goal=at_least(99))

    SCENARIO = Scenario(
        name="mine", summary="…", parameters={"nodes": Parameter(100, "how many nodes")}, run=run
    )

`p2pnode simulate mine.py` runs it. docs/simulation.md tells all of it.
"""

from simulations.parameters import Parameter, Value
from simulations.report import at_least, at_most
from simulations.scenario import Scenario
from simulations.simulation import Simulation

__all__ = [
    "Parameter",
    "Scenario",
    "Simulation",
    "Value",
    "at_least",
    "at_most",
]
