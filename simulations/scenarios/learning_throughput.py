"""Samples per second against latency: one batch under way at a time, or many.

The defaults are the published setting: 224 blocks on 4 GPUs, 64 jobs, batches of 2,048 samples. A
block of 1,024, 4,096, 4,096 and 1,024 units costs 103 billion operations for such a batch, and a
GTX 1080 does 8.2 trillion a second at best: 12.6 ms. (The published transformer blocks: `batch` 4,
`compute` 4.7.)
"""

from simulations import Parameter, Scenario, Simulation


async def run(sim: Simulation) -> None:
    """Measure at one latency after the other."""
    from simulations.learning.throughput import measure  # noqa: PLC0415  # as its neighbours do

    await measure(sim)


SCENARIO = Scenario(
    name="learning-throughput",
    summary="Learning@home's layers far apart: samples/s against latency (half a minute)",
    parameters={
        "blocks": Parameter(224, "of the network, one after the other", minimum=1),
        "devices": Parameter(4, "that the blocks lie on, in turn", minimum=1),
        "jobs": Parameter(64, "batches under way at once, if asynchronous", minimum=1),
        "batch": Parameter(2048, "samples of a batch", minimum=1),
        "compute": Parameter(12.6, "of a batch in a block, modelled", "ms", 0.001),
        "pings": Parameter(10, "latencies that are measured, from 0 to the longest", minimum=2),
        "ping": Parameter(200.0, "the longest mean latency after a block, exponential", "ms", 0.0),
        "batches": Parameter(3, "of each job", minimum=1),
        "synchronous": Parameter(10, "batches, where one is under way at a time", minimum=1),
    },
    run=run,
    fidelities=("light",),
)
