"""Some participants of a swarm lie about their scores: what becomes of it.

A swarm trains in rounds of the mode `best` twice from the same weights: once without liars, once
with them beside the same honest participants. Liars announce a perfect score in every round.
"""

from simulations import Parameter, Scenario, Simulation
from simulations.swarms.parameters import SWARM


async def run(sim: Simulation) -> None:
    """Train without liars and with them."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.comparison import compare_with_liars  # noqa: PLC0415  # see above

    await compare_with_liars(sim)


SCENARIO = Scenario(
    name="swarm-liars",
    summary="peers of a swarm claim scores that their weights do not have (a minute)",
    parameters={
        **SWARM,
        "lies.share": Parameter(30.0, "peers that lie", "%", 0.0, 90.0),
        "lies.kind": Parameter(
            "mixed",
            "what liars announce",
            choices=("mixed", "random", "nan", "poisoned", "stolen"),
        ),
        "lies.scored_on": Parameter(
            1000, "size of the hold-outs that liars pretend to have", minimum=1
        ),
    },
    run=run,
    fidelities=("light", "full"),
)
