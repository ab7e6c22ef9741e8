"""A group averages whose links are not alike: equal parts, or parts by what each member sends."""

from p2pnode.testing.network import GRADES
from simulations import Parameter, Scenario, Simulation
from simulations.conditions import NETWORK, adapt


async def run(sim: Simulation) -> None:
    """Average with equal parts, and with parts by the bandwidth that members measured meanwhile."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.averaging import measure  # noqa: PLC0415  # see above

    await measure(sim)


SCENARIO = Scenario(
    name="averaging-links",
    summary="what parts by bandwidth gain where the links of those that average differ",
    parameters={
        "peers": Parameter(8, "that average", minimum=2, maximum=64),
        "slow": Parameter(50.0, "of them have the slower link", "%", 0, 100),
        "slow_link": Parameter("dsl", "the slower link", choices=tuple(GRADES)),
        "fast_link": Parameter("fibre", "the faster one", choices=tuple(GRADES)),
        "size": Parameter(32.0, "of what each averages", "MiB", 0.01),
        **adapt(
            {name: NETWORK[name] for name in ("network.latency", "network.delay")},
            {"network.latency": "fixed", "network.delay": 0.01},
        ),
    },
    run=run,
    fidelities=("light", "full"),
)
