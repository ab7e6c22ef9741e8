"""A network whose layers' batches are split by rows over their swarms, against one process.

All peers take each step together, so the network learns what it learns in one process, up to the
rounding of floats, and only time differs. The network, the images and what computing costs are
those of `layer-parallel`. Links are those of one city: a round trip takes 0.8 ms between machines
on one local network, 8.4 ms by fibre and 40.4 ms by dsl. How peers host the layers is compared,
too: one layer each, so that half of the peers wait while the other layer computes, or both.
"""

from simulations import Parameter, Scenario, Simulation
from simulations.conditions import NETWORK, adapt
from simulations.swarms.parameters import COMPUTE


async def run(sim: Simulation) -> None:
    """Train in one process, and by splitting each batch over swarms, in each way."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.splitting import compare  # noqa: PLC0415  # see above

    await compare(sim)


SCENARIO = Scenario(
    name="layer-split",
    summary="each batch split over the layers' swarms against one process, at equal accuracy",
    parameters={
        "peers": Parameter(8, "that host layers; another one trains", minimum=1, maximum=16),
        "hosting": Parameter(
            ("one", "all"), "how many of the two layers each peer hosts", choices=("one", "all")
        ),
        "links": Parameter(
            ("lan", "fibre", "dsl"),
            "of each machine, tried one after the other",
            choices=("lan", "fibre", "dsl", "mobile"),
        ),
        "threshold": Parameter(0.9, "accuracy on the hold-out that ends it", minimum=0, maximum=1),
        "rounds": Parameter(40, "looks at the hold-out at most, for each peer", minimum=1),
        "samples": Parameter(256, "to train on between two looks", minimum=1),
        "held_out": Parameter(200, "images that none trains on", minimum=100, maximum=2000),
        "batch": Parameter(16, "examples of a step", minimum=1),
        "in_flight": Parameter(
            1, "batches on their way; with more, steps are no more those of one process", minimum=1
        ),
        "hidden": Parameter(128, "units between the layers", minimum=1),
        "learning_rate": Parameter(4e-3, "of Adam", "", 0.0),
        "codec": Parameter(
            "none",
            "how activations and their gradients travel",
            choices=("none", "float16", "bfloat16", "blockwise-int8"),
        ),
        "sums": Parameter(
            "none",
            "how the weights' gradients travel to be added up",
            choices=("none", "float16", "bfloat16", "blockwise-int8"),
        ),
        **COMPUTE,
        **adapt(
            {name: NETWORK[name] for name in ("network.latency", "network.delay")},
            {"network.latency": "fixed", "network.delay": 0.0002},
        ),
    },
    run=run,
    fidelities=("light", "full"),
)
