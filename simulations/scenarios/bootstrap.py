"""Nodes join by a few well-known peers; then they look things up.

With several sizes, one network grows from each to the next: how look-ups get longer as it does is
the line that Kademlia promises to be log N.
"""

import math
import random
from functools import partial
from typing import Final

import trio

from simulations import Parameter, Scenario, Simulation, at_least, at_most
from simulations.conditions import LIARS, NETWORK
from simulations.hops import Hops
from simulations.node import Node
from simulations.probes import Probes, mean, percentile
from simulations.truth import begins_with, closest_to
from simulations.values import Values

# Hops grow as log N, told from a few hundred look-ups: their means err by some per cent.
_MOST_GROWTH: Final = 1.05


async def run(sim: Simulation) -> None:
    """Grow, measure, and let everybody look something up now and then."""
    sizes = sorted(set(sim.parameters["nodes"]))
    hops = Hops(sim.world)
    lines: dict[str, list[float]] = {}
    for size in sizes:
        sim.begin(f"joining, to {size}")
        fresh = await sim.world.add_nodes(
            size - len(sim.world.nodes), over=size / sim.parameters["join.rate"]
        )
        await trio.sleep(sim.parameters["settle"])
        sim.begin(f"looking up, at {size}")
        hops.clear()
        probes = await _look_up(sim, hops)
        joins = [each.took_to_join for each in fresh]
        tables = [len(each.dht.peers) for each in sim.world.nodes.values()]
        measured = {
            "hops": mean(hops.seen),
            "look-up, median": probes.milliseconds(0.5),
            "look-up, p99": probes.milliseconds(0.99),
            "right answers": probes.found,
            "time to join, median": 1000 * percentile(joins, 0.5),
            "time to join, p99": 1000 * percentile(joins, 0.99),
            "peers in tables": mean([float(each) for each in tables]),
        }
        sim.log.record("measured", nodes=size, **{k: round(v, 6) for k, v in measured.items()})
        for name, value in measured.items():
            lines.setdefault(name, []).append(value)
    await _idle_along(sim)
    _report(sim, sizes, lines)


async def _look_up(sim: Simulation, hops: Hops) -> Probes:
    """Ask random nodes for the peers closest to random keys; the truth is known here."""
    world, probes = sim.world, Probes()
    rng = sim.rng_for(f"look-ups/{len(world.nodes)}")

    async def look_up(node: Node, key: bytes) -> None:
        hops.watch(key)
        closest = closest_to(world, key, node)
        found = await probes.ask(
            node, partial(node.dht.closest_peers, key), begins_with(world, closest)
        )
        sim.log.record("looked-up", node=node.name, found=found, hops=sum(hops.seen))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for moment in sorted(rng.uniform(0, 60) for _ in range(sim.parameters["look-ups"])):
            await trio.sleep_until(start + moment)
            nursery.start_soon(look_up, rng.choice(world.honest), rng.randbytes(32))
    return probes


async def _idle_along(sim: Simulation) -> None:
    """Let each node look up one value a minute, for the sake of the harness's own speed."""
    duration = sim.parameters["idle"]
    if duration == 0:
        return
    sim.begin("storing values")
    values = Values(sim)
    await values.publish(sim.rng.choices(sim.world.joined, k=sim.parameters["values"]))
    sim.begin("one look-up a node and minute", until=sim.now + duration)
    # At this size, with this load and in light fidelity, a laptop should keep up ten times over.
    is_measured = sim.fidelity == "light" and len(sim.world.nodes) <= 1000
    sim.report_speed("speed of the simulation", goal=at_least(10) if is_measured else None)

    async def look_up_now_and_then(node: Node, rng: random.Random) -> None:
        await trio.sleep(rng.uniform(0, 60))
        while True:
            await values.look_up(rng.choice(values.stored), node)
            await trio.sleep(60)

    with trio.move_on_after(duration):
        async with trio.open_nursery() as nursery:
            for node in sim.world.joined:
                rng = sim.rng_for(f"idle/{node.name}")
                nursery.start_soon(look_up_now_and_then, node, rng)
    sim.report.figure(
        "values found", values.probes.found, "%", detail="of those that every node looks up"
    )
    sim.report.figure("value found in, median", values.probes.milliseconds(0.5), "ms")
    sim.report.figure("value found in, p99", values.probes.milliseconds(0.99), "ms")


def _report(sim: Simulation, sizes: list[int], lines: dict[str, list[float]]) -> None:
    report, last = sim.report, {name: values[-1] for name, values in lines.items()}
    report.figure(
        "right answers",
        last["right answers"],
        "%",
        goal=at_least(99),
        detail="look-ups of a random key that end at the closest node of all",
    )
    report.figure("hops", last["hops"], detail="from the asker to the closest node, on average")
    report.figure("look-up, median", last["look-up, median"], "ms")
    report.figure("look-up, p99", last["look-up, p99"], "ms")
    report.figure("time to join, median", last["time to join, median"], "ms")
    report.figure("time to join, p99", last["time to join, p99"], "ms")
    report.figure("peers in tables", last["peers in tables"])
    if len(sizes) == 1:
        return
    report.table(
        "By size",
        ["nodes", *lines],
        [(size, *(values[i] for values in lines.values())) for i, size in enumerate(sizes)],
    )
    # Kademlia with k-buckets halves the distance at least once a hop, and more the larger k is.
    first, hops = lines["hops"][0], lines["hops"][-1]
    slope = first / math.log2(sizes[0])
    bound = [slope * math.log2(size) for size in sizes]
    report.series("hops", sizes, lines["hops"], x_label="nodes", y_label="hops")
    report.series("log N", sizes, bound, x_label="nodes", y_label="hops", style="bound")
    report.plot("Hops of a look-up", ["hops", "log N"], log_x=True, y_from=0)
    report.figure(
        "growth of hops",
        hops / first / math.log(sizes[-1], sizes[0]) if first else math.nan,
        goal=at_most(_MOST_GROWTH),
        detail="from the smallest to the largest size, over that of log N",
    )


SCENARIO = Scenario(
    name="bootstrap",
    summary="nodes join through a few peers; how long that takes, and how look-ups scale",
    parameters={
        "nodes": Parameter(
            (100,), "how many; several sizes are reached one after the other", minimum=2
        ),
        "join.rate": Parameter(10.0, "nodes that start in a second", "1/s", minimum=0.001),
        "settle": Parameter(60.0, "until look-ups begin", "s", minimum=0.0),
        "look-ups": Parameter(200, "at each size", minimum=1),
        "idle": Parameter(
            120.0, "in the end, in which each node looks up one value a minute", "s", minimum=0.0
        ),
        "values": Parameter(200, "to be looked up then", minimum=1),
        **NETWORK,
        **LIARS,
    },
    run=run,
)
