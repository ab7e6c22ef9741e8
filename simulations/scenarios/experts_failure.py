"""Hosts of experts fail at once; how soon others see what is left, and nothing else.

Some trainers look for all experts, again and again. What the hosts that survive offer should be
found all the time, although part of those who kept its records are gone; what the others offered
should be listed no longer than its records live, two update periods.
"""

import math
from dataclasses import dataclass
from functools import partial

import trio

from simulations import Parameter, Scenario, Simulation, at_least, at_most
from simulations.conditions import NETWORK, adapt
from simulations.experts import EXPERTS, Census, Experts
from simulations.node import Node
from simulations.probes import mean, percentile


@dataclass(frozen=True)
class _Seen:
    """What the trainers saw, and what had happened."""

    before: list[Census]
    after: list[Census]
    end: Census
    failed_at: float
    killed: int


async def run(sim: Simulation) -> None:
    """Announce, kill, and take censuses."""
    parameters, world = sim.parameters, sim.world
    period, count = parameters["experts.period"], parameters["nodes"]
    world.settings = world.settings.replace(hosting={"update_period": period})
    experts = Experts(sim, count)
    joining = count / parameters["join.rate"]
    watch = parameters["periods"] * period
    sim.begin("joining", until=joining + 5 * period + watch)
    hosts = await world.add_nodes(count, over=joining)
    sim.begin("announcing")
    for host in hosts:
        experts.host_on([host])
        await trio.sleep(period / count)
    settings = world.settings.replace(dht={"mode": "client"})
    trainers = [await world.add_node(settings=settings) for _ in range(parameters["trainers"])]
    await trio.sleep(2 * period)
    before = [await experts.take_census(each) for each in trainers]

    sim.begin("after the failure", until=sim.now + watch)
    mortal = [each for each in hosts if each not in world.bootstrap]
    rng = sim.rng_for("failure")
    wanted = round(count * parameters["killed"] / 100)
    killed = rng.sample(mortal, min(wanted, len(mortal)))
    failed_at = sim.now
    experts.note_gone(killed)
    for node in killed:
        world.crash(node)
    after: list[Census] = []
    with trio.move_on_at(failed_at + watch):
        async with trio.open_nursery() as nursery:
            for number, node in enumerate(trainers):
                # One after the other, so that the whole time is seen.
                offset = number * parameters["pause"] / len(trainers)
                nursery.start_soon(
                    partial(_keep_looking, experts, node, offset, parameters["pause"], after)
                )
    newcomer = await world.add_node(settings=settings)
    end = await experts.take_census(newcomer)
    _report(sim, _Seen(before, after, end, failed_at, len(killed)))


async def _keep_looking(
    experts: Experts, node: Node, offset: float, pause: float, found: list[Census]
) -> None:
    await trio.sleep(offset)
    while True:
        found.append(await experts.take_census(node))
        await trio.sleep(pause)


def _report(sim: Simulation, seen: _Seen) -> None:
    report, period = sim.report, sim.parameters["experts.period"]
    after = sorted(seen.after, key=lambda each: each.at)
    ends = [(each.at + each.seconds - seen.failed_at, each) for each in after]
    shares = [each.share for each in after]
    unseen = 0.0 if after else math.nan  # who never looked has not seen that all is well
    report.figure(
        "found before", mean([each.share for each in seen.before]), "%", goal=at_least(100)
    )
    report.figure(
        "found after",
        mean(shares),
        "%",
        goal=at_least(99),
        detail="of what the survivors host, in all censuses after the failure",
    )
    report.figure("found after, at worst", min(shares, default=math.nan), "%")
    report.figure(
        "last miss",
        max((at for at, each in ends if each.found < each.live), default=unseen),
        "s",
        goal=at_most(2 * period),
        detail="of an expert that lives, after the failure; 0 when nothing was missed",
    )
    report.figure(
        "last ghost",
        max((at for at, each in ends if each.dead), default=unseen),
        "s",
        goal=at_most(2 * period),
        detail="when an expert was last listed at a host that had failed",
    )
    report.figure(
        "found by a newcomer", seen.end.share, "%", goal=at_least(100), detail="in the end"
    )
    took = percentile([each.seconds for each in after], 0.5)
    report.figure("census, median", 1000 * took, "ms", detail="of a trainer that looks again")
    report.figure("experts left", seen.end.live)
    report.figure("nodes killed", seen.killed)
    marks = [(0.0, "failure"), (2 * period, "two periods")]
    lines = (
        ("living experts found", "%", shares),
        ("dead experts listed", "", [each.dead for each in after]),
    )
    for name, unit, values in lines:
        report.series(
            name,
            [each.at - seen.failed_at for each in after],
            values,
            x_label="time after the failure",
            x_unit="s",
            y_label=name,
            y_unit=unit,
        )
        report.plot(name.capitalize(), [name], marks=marks)


SCENARIO = Scenario(
    name="experts-failure",
    summary="hosts of experts fail at once; when the dead are gone and the living found again",
    parameters={
        "nodes": Parameter(200, "that host", minimum=20),
        "killed": Parameter(
            30.0, "nodes that fail, all at once; no bootstrap peers", "%", 0.0, 90.0
        ),
        "trainers": Parameter(5, "that look for all experts again and again", minimum=1),
        "pause": Parameter(5.0, "between two looks of a trainer", "s", minimum=0.1),
        "periods": Parameter(3.0, "of announcing that are watched", minimum=2.5),
        "join.rate": Parameter(10.0, "nodes that start in a second", "1/s", minimum=0.001),
        **EXPERTS,
        **adapt(NETWORK, {}),
    },
    run=run,
)
