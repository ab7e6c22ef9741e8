"""Participants of a swarm leave, others take their places: what it costs, how they catch up.

A swarm trains in rounds of the mode `best` twice from the same weights: once with the same
participants all along, once with some that crash or leave in the midst of it. Each one's share of
the data is taken over by a participant that is new to the network.
"""

from simulations import Parameter, Scenario, Simulation
from simulations.swarms.parameters import SWARM


async def run(sim: Simulation) -> None:
    """Train with the same participants all along, and with some replaced."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.comparison import compare_with_churn  # noqa: PLC0415  # see above

    await compare_with_churn(sim)


SCENARIO = Scenario(
    name="swarm-churn",
    summary="peers of a swarm are replaced while it trains in rounds (a minute)",
    parameters={
        **SWARM,
        "replaced": Parameter(30.0, "peers that are replaced, half of them by a crash", "%", 0, 90),
    },
    run=run,
    fidelities=("light", "full"),
)
