"""Some hosts of experts are slow: what a training step takes, with and without a cut-off.

The trainer, the experts, their hosts and the DHT are the real ones; that a host computes for a
while is modelled by a duration, which is longer on slow hosts.
"""

from simulations import Parameter, Scenario, Simulation
from simulations.conditions import NETWORK, adapt


async def run(sim: Simulation) -> None:
    """Train three layers alike: without slow hosts, waiting for them, and cutting them off."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.learning.stragglers import compare  # noqa: PLC0415  # see above

    await compare(sim)


SCENARIO = Scenario(
    name="stragglers",
    summary="a quarter of the hosts compute slowly; the trainer cuts them off (half a minute)",
    parameters={
        "hosts": Parameter(16, "of experts", minimum=1),
        "grid": Parameter(4, "experts of a layer, in each of two dimensions", minimum=1),
        "steps": Parameter(40, "of each training", minimum=2),
        "batch": Parameter(16, "samples of a step", minimum=1),
        "compute": Parameter(0.05, "that a host needs for a call, modelled", "s", 0.0),
        "slow.share": Parameter(25.0, "hosts that are slow", "%", 0.0, 100.0),
        "slow.factor": Parameter(40.0, "how many times longer they need", minimum=1.0),
        "k_best": Parameter(4, "experts that a sample is sent to", minimum=1),
        "k_min": Parameter(
            1, "answers that a sample needs before the others are cut off", minimum=1
        ),
        "timeout_after_k_min": Parameter(0.3, "that the others get then", "s", 0.0),
        **adapt(NETWORK, {}),
    },
    run=run,
)
