"""A part of all nodes fails at once; how much is still found, and how soon all of it is.

The publishers that live do not store their values again meanwhile: the DHT's own period for that is
most of a day. What is found is what the copies, and the survivors' care for them, still hold.
"""

import math

import trio

from simulations import Parameter, Scenario, Simulation, at_least, at_most
from simulations.conditions import NETWORK
from simulations.probes import Probes, report_over_time
from simulations.values import Values


async def run(sim: Simulation) -> None:
    """Join, publish, kill, and look up."""
    parameters, world = sim.parameters, sim.world
    period = parameters["refresh"]
    world.settings = world.settings.replace(dht={"refresh_interval": period})
    values = Values(sim)
    joining = parameters["nodes"] / parameters["join.rate"]
    sim.begin("joining", until=joining + parameters["settle"] + 60 + 2 * period)
    nodes = await world.add_nodes(parameters["nodes"], over=joining)
    await trio.sleep(parameters["settle"] / 2)
    sim.begin("storing values")
    await values.publish(nodes)
    await trio.sleep(parameters["settle"] / 2)
    rng, count = sim.rng_for("look-ups"), parameters["look-ups"]
    everything = values.stored
    await values.look_up_some(count, rng, over=60.0, among=lambda: everything)
    before = Probes(list(values.probes.all))

    sim.begin("after the failure")
    mortal = [each for each in world.nodes.values() if each not in world.bootstrap]
    wanted = round(len(world.nodes) * parameters["killed"] / 100)
    killed = rng.sample(mortal, min(wanted, len(mortal)))
    failed_at = sim.now
    for node in killed:
        world.crash(node)
    while sim.now < failed_at + 2 * period:
        await values.look_up_some(count, rng, over=60.0, among=lambda: everything)
    sim.begin("looking for everything")
    checked_at = sim.now
    await _look_up_all(sim, values)

    report = sim.report
    report.figure("found before", before.found, "%", detail="look-ups in the minute before")
    after = values.probes.since(failed_at)
    first = Probes([each for each in after.all if each.at < failed_at + 60])
    report.figure("found in the first minute", first.found, "%")
    report.figure(
        "found in the end",
        values.probes.since(checked_at).found,
        "%",
        goal=at_least(99),
        detail="every value, its publisher dead or alive, after two refresh periods",
    )
    missed = [each.at - failed_at for each in after.all if not each.found]
    report.figure(
        "last miss",
        max(missed, default=0.0 if after.all else math.nan),
        "s",
        goal=at_most(2 * period),
        detail="after the failure; 0 when nothing was missed",
    )
    report.figure("look-up before, median", before.milliseconds(0.5), "ms")
    report.figure("look-up in the first minute, median", first.milliseconds(0.5), "ms")
    report.figure("look-up in the first minute, p99", first.milliseconds(0.99), "ms")
    report.figure("nodes killed", len(killed))
    report_over_time(
        report,
        values.probes,
        zero=failed_at,
        x_label="time after the failure",
        marks=[(0.0, "failure"), (2 * period / 60, "two refreshes")],
    )


async def _look_up_all(sim: Simulation, values: Values) -> None:
    """Look up every value once, from nodes drawn at random, ten a second."""
    rng = sim.rng_for("all")
    async with trio.open_nursery() as nursery:
        for value in values.stored:
            nursery.start_soon(values.look_up, value, rng.choice(sim.world.joined))
            await trio.sleep(0.1)


SCENARIO = Scenario(
    name="mass-failure",
    summary="a third of all nodes fails at once; what is lost, and when the rest is found again",
    parameters={
        "nodes": Parameter(200, "how many", minimum=20),
        "killed": Parameter(
            30.0, "nodes that fail, all at once; no bootstrap peers", "%", 0.0, 90.0
        ),
        "look-ups": Parameter(50, "a minute, by nodes drawn at random", "1/min", minimum=1),
        "refresh": Parameter(600.0, "the refresh period of the DHT's tables", "s", minimum=60.0),
        "join.rate": Parameter(10.0, "nodes that start in a second", "1/s", minimum=0.001),
        "settle": Parameter(120.0, "between joining and the failure", "s", minimum=0.0),
        **NETWORK,
    },
    run=run,
)
