"""The network falls into two halves and heals; or two DHTs that never met are joined.

In the first story one DHT is cut in two for a while; both halves go on, and store values of their
own. In the second, two DHTs have grown apart from the start: everybody has one list of bootstrap
addresses, of which each half reaches only its own. Then the network is whole. It is one DHT again
when look-ups from both sides end at the node that is closest of all, and find what the other side
has stored meanwhile.
"""

import math
from functools import partial

import trio

from p2pnode.errors import NoPeersError
from simulations import Parameter, Scenario, Simulation, at_least, at_most
from simulations.conditions import NETWORK
from simulations.node import Node
from simulations.probes import Probes, report_over_time
from simulations.truth import begins_with, closest_to
from simulations.values import Values

_ROUND = 30.0  # seconds between two looks at whether the halves have found together
_ASKERS = 10  # on each side, at each look


async def run(sim: Simulation) -> None:
    """Join, part, heal, and look whether it is one DHT again."""
    parameters, world = sim.parameters, sim.world
    period = parameters["refresh"]
    world.settings = world.settings.replace(
        dht={"refresh_interval": period, "republish_interval": parameters["values.period"]}
    )
    joining = parameters["nodes"] / parameters["join.rate"]
    cut = parameters["partition"]
    sim.begin("joining", until=joining + parameters["settle"] + cut + 2 * period)
    left, right = await (_join_apart if parameters["strangers"] else _join_together)(sim)
    await trio.sleep(parameters["settle"])

    sim.begin("parted")
    if not parameters["strangers"]:
        world.partition(*([each.machine for each in side] for side in (left, right)))
    parted_at = sim.now
    values = Values(sim)
    await trio.sleep(cut / 2)
    await values.publish((*left, *right))
    await trio.sleep(max(0.0, parted_at + cut - sim.now))

    sim.begin("healed")
    world.heal()
    healed_at = sim.now
    closest = Probes()
    rng, of_left = sim.rng_for("look-ups"), {each.name for each in left}
    askers = min(_ASKERS, len(left), len(right))
    while sim.now < healed_at + 2 * period:
        start = sim.now
        async with trio.open_nursery() as nursery:
            for node in (*rng.sample(left, askers), *rng.sample(right, askers)):
                nursery.start_soon(_look_for_closest, sim, node, rng.randbytes(32), closest)
                theirs = [
                    each
                    for each in values.stored
                    if (each.publisher in of_left) != (node.name in of_left)
                ]
                nursery.start_soon(values.look_up, rng.choice(theirs), node)
        await trio.sleep(max(0.0, start + _ROUND - sim.now))
    sim.begin("done looking")
    both = Probes(sorted(closest.all + values.probes.all, key=lambda each: each.at))
    misses = [each.at - healed_at + _ROUND for each in both.all if not each.found]
    last = both.since(healed_at + 2 * period - 4 * _ROUND)
    report = sim.report
    report.figure(
        "one DHT again after",
        max(misses, default=0.0 if both.all else math.nan),
        "s",
        goal=at_most(2 * period),
        detail="of the healing, the first round from which on nothing was missed",
    )
    report.figure(
        "found in the end",
        last.found,
        "%",
        goal=at_least(99),
        detail="closest nodes, and values of the other side, in the last two minutes",
    )
    first = [each for each in both.all if each.at < healed_at + _ROUND]
    report.figure("found in the first half minute", Probes(first).found, "%")
    report.figure("look-up, median", both.milliseconds(0.5), "ms")
    report_over_time(
        report,
        both,
        zero=healed_at,
        x_label="time after the healing",
        marks=[(period / 60, "one refresh"), (2 * period / 60, "two")],
    )


async def _join_together(sim: Simulation) -> tuple[list[Node], list[Node]]:
    """Let all join one DHT; returns two halves of it, drawn at random, bootstrap peers in both."""
    count, rate = sim.parameters["nodes"], sim.parameters["join.rate"]
    nodes = await sim.world.add_nodes(count, over=count / rate)
    bootstrap = len(sim.world.bootstrap)  # they were the first to start
    early, late = nodes[:bootstrap], nodes[bootstrap:]
    sim.rng.shuffle(late)
    return early[::2] + late[::2], early[1::2] + late[1::2]


async def _join_apart(sim: Simulation) -> tuple[list[Node], list[Node]]:
    """Let two DHTs grow, each on its side of a network that is cut; the bootstrap list is one."""
    world, count = sim.world, sim.parameters["nodes"]
    machines = [world.draw_machine(good=number < 4) for number in range(count)]
    world.partition(machines[::2], machines[1::2])
    halves: tuple[list[Node], list[Node]] = ([], [])
    for number in range(4):
        halves[number % 2].append(await world.add_node(machine=machines[number], peers=()))
    everyone = world.addresses_of((*halves[0], *halves[1]))
    for node in (*halves[0], *halves[1]):
        try:
            await node.dht.bootstrap(everyone)
        except NoPeersError:
            sim.log.record("alone", node=node.name)
    for number in range(4, count):
        node = await world.add_node(machine=machines[number], peers=everyone, wait=False)
        halves[number % 2].append(node)
        await trio.sleep(1 / sim.parameters["join.rate"])
    for node in (*halves[0], *halves[1]):
        await node.wait_joined()
    return halves


async def _look_for_closest(sim: Simulation, node: Node, key: bytes, probes: Probes) -> None:
    closest = closest_to(sim.world, key, node)
    found = await probes.ask(
        node, partial(node.dht.closest_peers, key), begins_with(sim.world, closest)
    )
    sim.log.record("closest-looked-up", node=node.name, closest=closest.name, found=found)


SCENARIO = Scenario(
    name="partition-heal",
    summary="two halves of the network, cut or strangers from the start, become one DHT again",
    parameters={
        "nodes": Parameter(200, "how many, half on each side", minimum=8),
        "strangers": Parameter(
            default=False, help="whether the halves are two DHTs that never met before"
        ),
        "partition": Parameter(600.0, "how long the halves are apart", "s", minimum=0.0),
        "values.period": Parameter(
            3600.0, "between two times a publisher stores its value", "s", minimum=1.0
        ),
        "refresh": Parameter(600.0, "the refresh period of the DHT's tables", "s", minimum=60.0),
        "join.rate": Parameter(10.0, "nodes that start in a second", "1/s", minimum=0.001),
        "settle": Parameter(120.0, "between joining and the partition", "s", minimum=0.0),
        **NETWORK,
    },
    run=run,
)
