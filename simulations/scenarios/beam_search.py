"""Trainers that have just joined search for the best experts, among thousands.

Each trainer is a new client of the DHT. Its first search finds it without any knowledge of the
experts; before that it looks up one expert in another block, so that a search can be told in
look-ups. Then it searches again and again, as training does. Others come and look for all experts
at once. With several sizes, one network grows from each to the next.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import trio

from p2pnode.protocols.kad.queries import DhtLookupEnded
from p2pnode.swarm.beam import Scores
from simulations import Parameter, Scenario, Simulation, at_least, at_most
from simulations.churn import Churn
from simulations.conditions import CHURN, NETWORK, adapt
from simulations.experts import EXPERTS, Census, Experts
from simulations.node import Node
from simulations.probes import Probes, mean


@dataclass
class _Measured:
    """What the trainers of one size saw."""

    first: Probes = field(default_factory=Probes)  # searches of trainers that know nothing yet
    later: Probes = field(default_factory=Probes)
    single: Probes = field(default_factory=Probes)  # look-ups of one expert
    lookups: list[float] = field(default_factory=list)  # of each first search
    asked: list[float] = field(default_factory=list)  # peers asked by each first search
    best: list[float] = field(default_factory=list)  # per cent of the k best that were found
    censuses: list[Census] = field(default_factory=list)


async def run(sim: Simulation) -> None:
    """Grow, announce, search."""
    parameters, world = sim.parameters, sim.world
    world.settings = world.settings.replace(hosting={"update_period": parameters["experts.period"]})
    sizes = sorted(set(parameters["nodes"]))
    experts = Experts(sim, sizes[-1])
    searches = _Lookups(sim)
    hosts: list[Node] = []
    churn = Churn(sim, on_start=lambda node: experts.host_on([node]))
    lines: dict[str, list[float]] = {}
    for size in sizes:
        sim.begin(f"joining, to {size}")
        fresh = await world.add_nodes(size - len(hosts), over=size / parameters["join.rate"])
        hosts += fresh
        sim.begin(f"announcing, at {size}")
        period = parameters["experts.period"]
        await _spread(experts, fresh[: round(len(fresh) * parameters["hosting"] / 100)], period)
        await trio.sleep((parameters["announce.rounds"] - 1) * period + parameters["settle"])
        if size == sizes[-1]:
            sim.nursery.start_soon(churn.run, hosts)
        sim.begin(f"searching, at {size}")
        started, said = sim.now, experts.announcements
        measured = await _search(sim, experts, searches)
        minutes = (sim.now - started) / 60
        found = sum(each.found for each in measured.censuses)
        live = sum(each.live for each in measured.censuses)
        figures = {
            "experts": float(len(experts.live)),
            "experts found": 100 * found / live if live else math.nan,
            "best experts found": mean(measured.best),
            "first search, median": measured.first.milliseconds(0.5),
            "first search, p99": measured.first.milliseconds(0.99),
            "later search, median": measured.later.milliseconds(0.5),
            "later search, p99": measured.later.milliseconds(0.99),
            "one look-up, median": measured.single.milliseconds(0.5),
            "one look-up, p99": measured.single.milliseconds(0.99),
            "look-ups of a first search": mean(measured.lookups),
            "peers asked by a first search": mean(measured.asked),
            "records announced": (experts.announcements - said) / size / minutes,
        }
        sim.log.record("measured", nodes=size, **{k: round(v, 6) for k, v in figures.items()})
        for name, value in figures.items():
            lines.setdefault(name, []).append(value)
    _report(sim, sizes, lines, churn.ended)


async def _spread(experts: Experts, nodes: Sequence[Node], period: float) -> None:
    """Let nodes begin to host one after the other, over one period."""
    for node in nodes:
        experts.host_on([node])
        await trio.sleep(period / len(nodes))


async def _search(sim: Simulation, experts: Experts, lookups: "_Lookups") -> _Measured:
    """Let trainers come, search and go, one after the other over the duration."""
    parameters, world = sim.parameters, sim.world
    measured = _Measured()
    # Trainers take part in nothing but what they are asked for, so that is all that is measured.
    settings = world.settings.replace(dht={"mode": "client"})
    rng = sim.rng_for(f"trainers/{len(world.nodes)}")

    async def join() -> Node:
        node = await world.add_node(settings=settings)
        await trio.sleep(parameters["settle"])
        return node

    async def count_all() -> None:
        node = await join()
        measured.censuses.append(await experts.take_census(node))
        await world.leave(node)

    async def train(seed: int) -> None:
        scores, node = np.random.default_rng(seed), await join()
        if live := experts.live:
            await experts.find(node, live[seed % len(live)], measured.single)
        for position in range(parameters["searches"]):
            lookups.watch(node)
            drawn = _draw(scores, experts.grid)
            probes = measured.later if position else measured.first
            share = await experts.search(node, drawn, parameters["k"], probes)
            measured.best.append(share or 0.0)
            if not position:
                seen = lookups.of(node)
                measured.lookups.append(float(len(seen)))
                measured.asked.append(float(sum(each.asked for each in seen)))
            await trio.sleep(parameters["pause"])
        await world.leave(node)

    newcomers: list[Callable[[], Awaitable[None]]] = [count_all] * parameters["censuses"]
    newcomers += [partial(train, rng.randrange(2**32)) for _ in range(parameters["trainers"])]
    rng.shuffle(newcomers)
    async with trio.open_nursery() as nursery:
        for newcomer in newcomers:
            nursery.start_soon(newcomer)
            await trio.sleep(parameters["duration"] / len(newcomers))
    return measured


def _draw(rng: np.random.Generator, grid: Sequence[int]) -> list[Scores]:
    """Draw the scores of one sample for each coordinate, as an untrained gate would."""
    return [rng.normal(size=(1, size)).astype(np.float32) for size in grid]


class _Lookups:
    """The look-ups that certain nodes make."""

    def __init__(self, sim: Simulation) -> None:
        self._seen: dict[str, list[DhtLookupEnded]] = {}
        sim.world.on(DhtLookupEnded, self._receive)

    def watch(self, node: Node) -> None:
        """Note the look-ups of a node from now on."""
        self._seen[node.name] = []

    def of(self, node: Node) -> list[DhtLookupEnded]:
        """Return those noted."""
        return self._seen.pop(node.name)

    def _receive(self, node: Node, event: DhtLookupEnded) -> None:
        if node.name in self._seen and event.key.startswith(b"/"):
            self._seen[node.name].append(event)


def _report(
    sim: Simulation, sizes: Sequence[int], lines: dict[str, list[float]], ended: int
) -> None:
    report, last = sim.report, {name: values[-1] for name, values in lines.items()}
    single = last["one look-up, median"]
    calm = not ended and not sim.parameters["network.loss"]
    if sim.parameters["censuses"]:
        report.figure(
            "experts found",
            last["experts found"],
            "%",
            goal=at_least(100 if calm else 99.9),
            detail="of those whose hosts are up, by newcomers that look for all of them",
        )
    report.figure("experts", last["experts"])
    report.figure(
        "best experts found",
        last["best experts found"],
        "%",
        detail="of the k best of all that live, in each search",
    )
    for name in ("first search", "later search", "one look-up"):
        for part in ("median", "p99"):
            report.figure(f"{name}, {part}", last[f"{name}, {part}"], "ms")
    report.figure(
        "first search in look-ups",
        last["first search, median"] / single if single else math.nan,
        goal=at_most(3),
        detail="its median time, over that of one look-up by the same trainers",
    )
    report.figure("look-ups of a first search", last["look-ups of a first search"])
    report.figure("peers asked by a first search", last["peers asked by a first search"])
    report.figure(
        "records announced",
        last["records announced"],
        "1/min",
        detail="by each node, those of failed attempts included",
    )
    report.figure("sessions ended", ended)
    if len(sizes) == 1:
        return
    columns = ["nodes", *lines]
    rows = [(size, *(values[i] for values in lines.values())) for i, size in enumerate(sizes)]
    report.table("By size", columns, rows)
    slope = lines["first search, median"][0] / math.log2(sizes[0])
    bound = [slope * math.log2(size) for size in sizes]
    names = ["first search, median", "one look-up, median"]
    for name in names:
        report.series(
            name, sizes, lines[name], x_label="nodes", y_label="virtual time", y_unit="ms"
        )
    report.series(
        "log N", sizes, bound, x_label="nodes", y_label="virtual time", y_unit="ms", style="bound"
    )
    report.plot("Time of a search", [*names, "log N"], log_x=True, y_from=0)


SCENARIO = Scenario(
    name="beam-search",
    summary="new trainers search for the best of thousands of experts; how soon, and what is found",
    parameters={
        "nodes": Parameter(
            (100,), "of the DHT; several sizes are reached one after the other", minimum=4
        ),
        "hosting": Parameter(100.0, "of them host experts", "%", minimum=1.0, maximum=100.0),
        "announce.rounds": Parameter(
            3, "periods from the first announcement until the search", minimum=1
        ),
        "trainers": Parameter(50, "that come to search, at each size", minimum=1),
        "searches": Parameter(5, "of each trainer, for one sample each", minimum=1),
        "k": Parameter(4, "experts that a search wants", minimum=1, maximum=64),
        "censuses": Parameter(5, "newcomers that look for all experts", minimum=0),
        "duration": Parameter(300.0, "in which all of them come", "s", minimum=1.0),
        "pause": Parameter(2.0, "between two searches of a trainer", "s", minimum=0.0),
        "join.rate": Parameter(10.0, "nodes that start in a second", "1/s", minimum=0.001),
        "settle": Parameter(5.0, "between joining and what follows", "s", minimum=0.0),
        **EXPERTS,
        **adapt(NETWORK, {}),
        **adapt(CHURN, {"churn.median": 0.0}),
    },
    run=run,
)
