"""How many samples pass through a deep network whose layers are far apart: a queueing simulation.

Learning@home's synthetic experiment: identical blocks lie on some devices, one after the other in
turn, and each batch passes all of them, forward only. A device computes one batch at a time, the
first come first, for a modelled duration; no tensor is computed. After every block a batch is on
its way for Exp(ping) seconds.

*Synchronous* model parallelism has one batch under way. *Asynchronous* training has as many as
there are jobs, and while one is on its way, others are computed.

With batches of B samples, n blocks, c seconds for a block, a mean ping of p seconds, G devices and
J jobs, no schedule can pass on average more than

    synchronous    B / (n (c + p))
    asynchronous   min(J B / (n (c + p)), G B / (n c))

samples per second. The second is bent where the devices are never idle: at p = c (J / G - 1).
"""

import random
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What is simulated.

    Attributes:
        blocks: of the network.
        devices: block i lies on device i modulo their number.
        batch: samples that travel together.
        compute: seconds that a device computes one block of one batch.
    """

    blocks: int
    devices: int
    batch: int
    compute: float

    def synchronous_bound(self, ping: float) -> float:
        """Return the most samples per second with one batch under way."""
        return self.batch / (self.blocks * (self.compute + ping))

    def asynchronous_bound(self, jobs: int, ping: float) -> float:
        """Return the most samples per second with `jobs` batches under way."""
        devices = self.devices * self.batch / (self.blocks * self.compute)
        return min(jobs * self.synchronous_bound(ping), devices)

    def knee(self, jobs: int) -> float:
        """Return the ping from which `jobs` batches no longer keep all devices busy."""
        return self.compute * (jobs / self.devices - 1)


async def throughput(
    pipeline: Pipeline, *, jobs: int, batches: int, ping: float, rng: random.Random
) -> float:
    """Pass batches through the network, on trio's clock.

    Args:
        pipeline: the network.
        jobs: how many batches are under way at a time.
        batches: of each job, one after the other.
        ping: mean seconds on the way after each block.
        rng: decides how long each way takes.

    Returns:
        Samples per second, from the start of the first batch to the end of the last one.
    """
    devices = [trio.StrictFIFOLock() for _ in range(pipeline.devices)]
    began = trio.current_time()

    async def work() -> None:
        for _ in range(batches):
            for number in range(pipeline.blocks):
                async with devices[number % len(devices)]:
                    await trio.sleep(pipeline.compute)
                await trio.sleep(rng.expovariate(1 / ping) if ping else 0.0)

    async with trio.open_nursery() as nursery:
        for _ in range(jobs):
            nursery.start_soon(work)
    return jobs * batches * pipeline.batch / (trio.current_time() - began)
