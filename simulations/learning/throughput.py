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
from functools import partial
from typing import Final

import trio

from simulations.report import Axis, Report, at_least
from simulations.simulation import Simulation

_LEAST_OF_BOUND: Final = 75.0  # %; random ways leave a device idle now and then, most at the knee
_RATIO_PING: Final = 0.1  # seconds; the two are compared at the ping nearest to this


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured at one ping, in seconds: samples per second in both ways."""

    ping: float
    synchronous: float
    asynchronous: float


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


async def measure(sim: Simulation) -> None:
    """Run the scenario `learning-throughput`."""
    chosen = sim.parameters
    pipeline = Pipeline(
        blocks=chosen["blocks"],
        devices=chosen["devices"],
        batch=chosen["batch"],
        compute=chosen["compute"] / 1000,
    )
    points: list[Point] = []
    last = chosen["pings"] - 1
    for number in range(chosen["pings"]):
        ping = chosen["ping"] / 1000 * number / last
        sim.begin(f"{number + 1} of {chosen['pings']}: ping {1000 * ping:.0f} ms")
        # The same chance at each ping: the points differ in what is compared, and in nothing else.
        synchronous = await throughput(
            pipeline, jobs=1, batches=chosen["synchronous"], ping=ping, rng=sim.rng_for("alone")
        )
        asynchronous = await throughput(
            pipeline,
            jobs=chosen["jobs"],
            batches=chosen["batches"],
            ping=ping,
            rng=sim.rng_for("jobs"),
        )
        points.append(Point(ping=ping, synchronous=synchronous, asynchronous=asynchronous))
        sim.log.record(
            "measured",
            ping=round(ping, 6),
            synchronous=round(synchronous, 6),
            asynchronous=round(asynchronous, 6),
        )
    _report(sim.report, pipeline, chosen["jobs"], points)


def _report(report: Report, pipeline: Pipeline, jobs: int, points: list[Point]) -> None:
    pings = [1000 * each.ping for each in points]
    draw = partial(
        report.series,
        x_label="mean ping after each block",
        x_unit="ms",
        y_label="throughput",
        y_unit="samples/s",
    )
    lines = {
        "asynchronous": [each.asynchronous for each in points],
        "synchronous": [each.synchronous for each in points],
    }
    bounds = {
        "asynchronous": [pipeline.asynchronous_bound(jobs, each.ping) for each in points],
        "synchronous": [pipeline.synchronous_bound(each.ping) for each in points],
    }
    for label, values in lines.items():
        told = f"{label}, {jobs} jobs" if label == "asynchronous" else label
        draw(label, pings, values, label=told)
        name = f"{label} bound"
        draw(name, pings, bounds[label], label=name, style="bound", of=told)
    report.plot(
        "throughput against latency",
        ["asynchronous", "asynchronous bound", "synchronous", "synchronous bound"],
        caption="Dashed: what no schedule can exceed on average. The synchronous bound is reached"
        " by definition, as nothing ever waits; with few batches chance puts it a little off.",
        log_y=True,
        marks=[(1000 * knee, "knee")]
        if 0 < (knee := pipeline.knee(jobs)) <= points[-1].ping
        else [],
    )
    shares = {
        label: [100 * value / bound for value, bound in zip(values, bounds[label], strict=True)]
        for label, values in lines.items()
    }
    lowest = min(range(len(points)), key=shares["asynchronous"].__getitem__)
    report.figure(
        "asynchronous, of its bound",
        shares["asynchronous"][lowest],
        "%",
        goal=at_least(_LEAST_OF_BOUND),
        detail=f"the lowest of all pings, at {pings[lowest]:.0f} ms",
    )
    report.figure(
        "synchronous, of its bound",
        min(shares["synchronous"]),
        "%",
        goal=at_least(_LEAST_OF_BOUND),
        detail="the lowest of all pings",
    )
    near = min(points, key=lambda each: abs(each.ping - _RATIO_PING))
    most = pipeline.asynchronous_bound(jobs, near.ping) / pipeline.synchronous_bound(near.ping)
    report.figure(
        f"asynchronous over synchronous at {1000 * near.ping:.0f} ms",
        near.asynchronous / near.synchronous,
        "times",
        goal=at_least(_LEAST_OF_BOUND / 100 * most),
        detail=f"{near.asynchronous:,.0f} against {near.synchronous:,.1f} samples/s; the bounds"
        f" allow {most:.3g} times",
    )
    report.figure(
        "kept at the longest ping, asynchronous",
        100 * points[-1].asynchronous / points[0].asynchronous,
        "%",
        detail=f"of what passes without latency; synchronous"
        f" {100 * points[-1].synchronous / points[0].synchronous:.1f} %",
    )
    report.table(
        "throughput",
        [
            Axis("mean ping", "ms"),
            Axis("asynchronous", "samples/s"),
            Axis("of that bound", "%"),
            Axis("synchronous", "samples/s"),
            Axis("of this bound", "%"),
            Axis("ratio"),
        ],
        [
            (
                1000 * each.ping,
                each.asynchronous,
                shares["asynchronous"][number],
                each.synchronous,
                shares["synchronous"][number],
                each.asynchronous / each.synchronous,
            )
            for number, each in enumerate(points)
        ],
    )
    report.note(
        "A queueing simulation on a virtual clock: devices are locks, a computation is a duration,"
        " and no tensor is computed. Sending costs no time but the ping, calls of different jobs"
        " are never joined to larger batches, and nothing fails."
    )
