"""A batch through stages on machines of their own, whole and in micro-batches, against theory."""

from simulations import Parameter, Scenario, Simulation
from simulations.conditions import NETWORK, adapt


async def run(sim: Simulation) -> None:
    """Measure each number of stages with each number of micro-batches."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.swarms.pipelining import measure  # noqa: PLC0415  # see above

    await measure(sim)


SCENARIO = Scenario(
    name="pipelining",
    summary="what micro-batches through a chain of hosts gain, against what theory allows",
    parameters={
        "stages": Parameter((2, 3, 4), "hosts, of one block each", minimum=1, maximum=32),
        "micro_batches": Parameter((2, 4, 8), "into which a batch is split", minimum=1),
        "rows": Parameter(32, "of a batch", minimum=1),
        "forward": Parameter(50.0, "that a stage takes for each row", "ms", 0.0),
        "step": Parameter(100.0, "the same of a backward call", "ms", 0.0),
        "call": Parameter(0.5, "that a stage takes for each batch besides", "ms", 0.0),
        "at_one_host": Parameter(8, "micro-batches under way to one host, at most", minimum=1),
        **adapt(
            {name: NETWORK[name] for name in ("network.latency", "network.delay")},
            {"network.latency": "fixed", "network.delay": 0.025},
        ),
    },
    run=run,
    fidelities=("light", "full"),
)
