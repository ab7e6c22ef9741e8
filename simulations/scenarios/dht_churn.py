"""Values are stored and looked for while nodes come and go, on a network such as volunteers have.

Each node publishes one value and stores it again every `values.period`. A value is looked for while
its publisher is up: it should be found always. How long the values of dead publishers can be found
is told beside it.
"""

import trio

from simulations import Parameter, Scenario, Simulation, at_least
from simulations.churn import Churn
from simulations.conditions import CHURN, LIARS, NETWORK, adapt
from simulations.probes import mean, percentile, report_over_time
from simulations.values import Values


async def run(sim: Simulation) -> None:
    """Join, publish, and look up under churn."""
    parameters, world = sim.parameters, sim.world
    world.settings = world.settings.replace(dht={"republish_interval": parameters["values.period"]})
    values = Values(sim)
    joining = parameters["nodes"] / parameters["join.rate"]
    sim.begin("joining", until=joining + parameters["settle"] + parameters["duration"])
    nodes = await world.add_nodes(parameters["nodes"], over=joining)
    await trio.sleep(parameters["settle"] / 2)
    sim.begin("storing values")
    await values.publish(nodes)
    await trio.sleep(parameters["settle"] / 2)

    sim.begin("looking up under churn", until=sim.now + parameters["duration"])
    values.hops.clear()
    churn = Churn(sim, on_start=values.publish_soon)
    sim.nursery.start_soon(churn.run, nodes)
    rng = sim.rng_for("look-ups")
    minutes, up = [0.0], [float(world.nodes_up)]
    begun = sim.now
    while sim.now < begun + parameters["duration"]:
        await values.look_up_some(parameters["look-ups"], rng, over=60.0, among=lambda: values.live)
        minutes.append((sim.now - begun) / 60)
        up.append(world.nodes_up)
    sim.begin("looking for what dead nodes left")
    orphans = Values(sim)
    await orphans.look_up_some(
        parameters["look-ups"],
        rng,
        over=60.0,
        among=lambda: values.orphaned,
    )
    joins = [each.took_to_join for each in world.joined]
    report = sim.report
    report.figure(
        "values found",
        values.probes.found,
        "%",
        goal=at_least(99.9),
        detail="of those whose publisher is up, by nodes that have joined",
    )
    report.figure("look-up, median", values.probes.milliseconds(0.5), "ms")
    report.figure("look-up, p99", values.probes.milliseconds(0.99), "ms")
    report.figure("hops", mean(values.hops.seen), detail="of all look-ups, on average")
    report.figure("look-ups", len(values.probes.all))
    report.figure(
        "values of dead nodes found",
        orphans.probes.found,
        "%",
        detail="when the churn has gone on for its whole duration; nobody stores them again",
    )
    report.figure("time to join, median", 1000 * percentile(joins, 0.5), "ms")
    report.figure("sessions ended", churn.ended)
    report_over_time(report, values.probes, zero=begun, x_label="time")
    report.series("nodes up", minutes, up, x_label="time", x_unit="min", y_label="nodes up")


SCENARIO = Scenario(
    name="dht-churn",
    summary="values are stored and found while nodes come and go, on links that lose packets",
    parameters={
        "nodes": Parameter(200, "how many are up at any time", minimum=8),
        "duration": Parameter(3600.0, "of the churn", "s", minimum=60.0),
        "look-ups": Parameter(50, "a minute, by nodes drawn at random", "1/min", minimum=1),
        "values.period": Parameter(
            600.0, "between two times a publisher stores its value", "s", minimum=1.0
        ),
        "join.rate": Parameter(10.0, "nodes that start in a second, at first", "1/s", 0.001),
        "settle": Parameter(60.0, "between joining and the churn", "s", minimum=0.0),
        **adapt(NETWORK, {"network.loss": 5.0, "network.nats": 20.0}),
        **CHURN,
        **LIARS,
    },
    run=run,
)
