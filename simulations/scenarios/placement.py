"""Volunteers of mixed speed come and go, and choose by themselves which layers they host.

A pipeline is as fast as its slowest layer. How fast that is, is compared with a bound that no
placement of the same machines can exceed; and the price is told, in moves. Halfway through, a part
of all volunteers fails at once, and is not replaced.
"""

import trio

from simulations import Parameter, Scenario, Simulation, at_most
from simulations.churn import Churn
from simulations.conditions import CHURN, NETWORK, adapt
from simulations.placement import PLACEMENT, Sample, Volunteers
from simulations.probes import mean

PAUSE = 10.0  # seconds between two samples


async def run(sim: Simulation) -> None:
    """Join, choose, churn, fail in part, and go on."""
    parameters, world = sim.parameters, sim.world
    count, duration = parameters["nodes"], parameters["duration"]
    world.settings = world.settings.replace(hosting={"update_period": parameters["experts.period"]})
    volunteers = Volunteers(sim)
    joining = count / parameters["join.rate"]
    settling = joining + parameters["settle"]
    sim.begin("joining", until=settling + duration)
    world_nodes = await world.add_nodes(count, over=joining)
    for node in world_nodes:
        volunteers.add(node)
    await trio.sleep(parameters["settle"])

    sim.begin("coming and going")
    begun, moved = sim.now, volunteers.moves
    churn = Churn(sim, on_start=volunteers.add)
    sim.nursery.start_soon(churn.run, world_nodes)
    before = await _watch(volunteers, begun + duration / 2)

    sim.begin("after the failure")
    mortal = [each for each in world.nodes.values() if each not in world.bootstrap]
    wanted = round(count * parameters["killed"] / 100)
    killed = sim.rng_for("failure").sample(mortal, min(wanted, len(mortal)))
    for node in killed:
        world.crash(node)
    failed = sim.now
    after = await _watch(volunteers, begun + duration)

    report = sim.report
    report.figure(
        "slowest layer before",
        mean([each.quality for each in before]),
        "%",
        detail="of what no placement can exceed, on average, while volunteers come and go",
    )
    report.figure(
        "slowest layer after",
        mean([each.quality for each in after]),
        "%",
        detail="the same, from the failure to the end",
    )
    report.figure(
        "slowest layer in the end",
        mean([each.quality for each in after[-(len(after) // 4) :]]),
        "%",
        detail="the same, in the last quarter of that",
    )
    report.figure(
        "all layers hosted",
        100 * mean([float(each.bare == 0) for each in (*before, *after)]),
        "%",
        detail="of the time",
    )
    hours = volunteers.hours(begun)
    report.figure("moves of a volunteer", (volunteers.moves - moved) / hours, "1/h")
    report.figure("layers loaded", volunteers.loads, detail="by all, the first ones included")
    report.figure(
        "layers loaded again",
        volunteers.reloads,
        goal=at_most(0),
        detail="although they were there",
    )
    report.figure("sessions ended", churn.ended)
    report.figure("nodes killed", len(killed))
    _draw(sim, [*before, *after], begun, failed)


async def _watch(volunteers: Volunteers, until: float) -> list[Sample]:
    samples = []
    while trio.current_time() < until:
        await trio.sleep(PAUSE)
        samples.append(volunteers.sample())
    return samples


def _draw(sim: Simulation, samples: list[Sample], begun: float, failed: float) -> None:
    times = [(each.at - begun) / 60 for each in samples]
    for name, values in (
        ("slowest layer", [each.rate for each in samples]),
        ("bound", [each.bound for each in samples]),
    ):
        sim.report.series(
            name, times, values, x_label="time", x_unit="min", y_label="rate", y_unit="rows/s"
        )
    sim.report.plot(
        "Slowest layer", ["slowest layer", "bound"], marks=[((failed - begun) / 60, "failure")]
    )


SCENARIO = Scenario(
    name="placement",
    summary="volunteers choose what they host: how fast the slowest layer is, and at what price",
    parameters={
        "nodes": Parameter(20, "that offer capacity", minimum=5),
        "duration": Parameter(1200.0, "of coming and going", "s", minimum=60.0),
        "killed": Parameter(30.0, "nodes that fail at once, halfway through", "%", 0.0, 90.0),
        "join.rate": Parameter(1.0, "nodes that start in a second", "1/s", minimum=0.001),
        "settle": Parameter(300.0, "between joining and the churn", "s", minimum=0.0),
        **PLACEMENT,
        **adapt(NETWORK, {}),
        **CHURN,
    },
    run=run,
)
