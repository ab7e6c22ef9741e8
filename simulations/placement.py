"""Volunteers of mixed speed that choose which layers of a model they host.

They decide and announce with the nodes' own code. What a simulated volunteer lacks is the model:
loading a layer takes a time, and speed is a number that it tells.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import PlacementSettings
from p2pnode.swarm.placement.service import PlacedHost, Placement
from p2pnode.swarm.placement.units import MAX_UNITS, Units, bound
from p2pnode.wire.uids import Uid, expand
from simulations.node import Node
from simulations.parameters import Parameter
from simulations.simulation import Simulation

RUN: Final = "open:simulation"

PLACEMENT: Final[Mapping[str, Parameter]] = {
    "layers": Parameter(24, "of the model", minimum=1, maximum=4096),
    "wide.every": Parameter(0, "layers, one is wide; 0 for none", minimum=0),
    "wide.factor": Parameter(
        8, "by which a wide layer costs more time and room than others", minimum=1, maximum=1024
    ),
    "speeds": Parameter(
        (10.0, 20.0, 40.0, 80.0),
        "of volunteers, drawn for each: rows a second through a usual layer",
    ),
    "capacities": Parameter((2, 3, 4, 6, 8), "of volunteers, drawn for each: usual layers"),
    "loading": Parameter(5.0, "that a volunteer takes to load a usual layer", "s", 0.0),
    "placement.period": Parameter(60.0, "between two looks at the index", "s", minimum=1.0),
    "placement.back_off": Parameter(15.0, "at most, before a move", "s", minimum=0.001),
    "placement.min_gain": Parameter(
        1.2, "factor that a move has to promise; a large one forbids moves", minimum=1.001
    ),
    "experts.period": Parameter(30.0, "between two announcements", "s", minimum=1.0),
}


class _Served(PlacedHost):
    """The layers of one volunteer."""

    def __init__(self, node: Node, speed: float, loading: float, widths: Mapping[Uid, int]) -> None:
        self._speed = speed
        self._loading = loading
        self._widths = widths
        self._usual = sum(widths.values()) / len(widths)
        self._announcer = node.announcer(lambda: self.throughput)
        self._loading_now: Sequence[Uid] = ()
        self.loads: Counter[Uid] = Counter()
        self.drops: Counter[Uid] = Counter()

    @property
    def uids(self) -> Sequence[Uid]:
        return sorted(self._announcer.uids, key=lambda uid: uid.coordinates)

    @property
    def throughput(self) -> float:
        cost = sum(self.costs([*self._announcer.uids, *self._loading_now]))
        return self._speed / cost if cost else 0.0

    async def sizes(self, units: Sequence[Uid]) -> Sequence[int]:
        await trio.lowlevel.checkpoint()
        return [self._widths[uid] for uid in units]

    def costs(self, units: Sequence[Uid]) -> Sequence[float]:
        return [self._widths[uid] / self._usual for uid in units]

    @property
    def reloads(self) -> int:
        """How often a layer was loaded that was there."""
        return sum(max(0, times - self.drops[uid] - 1) for uid, times in self.loads.items())

    async def place(self, add: Sequence[Uid], remove: Sequence[Uid]) -> None:
        self._loading_now = add
        self._announcer.set_loading(add)
        self._announcer.remove(remove)
        self.drops.update(remove)
        await trio.sleep(self._loading * sum(self.costs(add)))
        self.loads.update(add)
        self._loading_now = ()
        self._announcer.add(add)
        self._announcer.set_loading(())


@dataclass(slots=True)
class _Volunteer:
    node: Node
    speed: float
    capacity: int
    served: _Served
    placement: Placement
    since: float
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """How the run was placed at one moment.

    Attributes:
        at: in virtual seconds.
        rate: of the slowest layer, in rows a second.
        bound: what no placement of the same volunteers can exceed.
        bare: layers that nobody hosts.
    """

    at: float
    rate: float
    bound: float
    bare: int

    @property
    def quality(self) -> float:
        """The slowest layer's rate, in per cent of the bound."""
        return 100 * self.rate / self.bound if self.bound > 0 else 100.0


class Volunteers:
    """Lets nodes place themselves, and knows what came of it.

    Args:
        sim: the simulation, whose parameters have the group `PLACEMENT`.
    """

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.rng_for("volunteers")
        self._layers = expand(f"blocks.[0:{sim.parameters['layers']}]", RUN)
        every, factor = sim.parameters["wide.every"], sim.parameters["wide.factor"]
        self._widths = {
            uid: factor if every and number % every == every // 2 else 1
            for number, uid in enumerate(self._layers)
        }
        widths = list(self._widths.values())
        self._usual = sum(widths) / len(widths)
        self._units = Units([each / self._usual for each in widths], widths)
        self._all: list[_Volunteer] = []

    @property
    def moves(self) -> int:
        """Moves so far, of all."""
        return sum(each.placement.moves for each in self._all)

    @property
    def loads(self) -> int:
        """Layers loaded so far, by all."""
        return sum(each.served.loads.total() for each in self._all)

    @property
    def reloads(self) -> int:
        """Layers loaded so far where they were there, by all."""
        return sum(each.served.reloads for each in self._all)

    def hours(self, since: float) -> float:
        """Return how long volunteers have been up since then, added up."""
        self._note_gone()
        now = trio.current_time()
        spans = ((each.until or now) - max(each.since, since) for each in self._all)
        return sum(max(0.0, span) for span in spans) / 3600

    def add(self, node: Node) -> None:
        """Let a node help as soon as it has joined."""
        parameters = self._sim.parameters
        speed = self._rng.choice(parameters["speeds"])
        capacity = self._rng.choice(parameters["capacities"])

        async def help_out() -> None:
            if await node.wait_joined() and node.is_up:
                await self._help(node, speed, capacity)

        self._sim.nursery.start_soon(help_out)

    def sample(self) -> Sample:
        """Say how the run is placed now, in truth and not as the index tells."""
        self._note_gone()
        up = [each for each in self._all if each.until is None]
        rates = dict.fromkeys(self._layers, 0.0)
        for each in up:
            for uid in each.served.uids:
                rates[uid] += each.served.throughput
        offered = [
            (each.speed, self._units.most_cost(self._room(each.capacity), MAX_UNITS)) for each in up
        ]
        return Sample(
            at=trio.current_time(),
            rate=min(rates.values()),
            bound=bound(len(self._layers), offered),
            bare=sum(rate == 0 for rate in rates.values()),
        )

    async def _help(self, node: Node, speed: float, capacity: int) -> None:
        parameters = self._sim.parameters
        served = _Served(node, speed, parameters["loading"], self._widths)
        settings = PlacementSettings(
            period=parameters["placement.period"],
            back_off=parameters["placement.back_off"],
            min_gain=parameters["placement.min_gain"],
        )
        placement = Placement(
            node.directory,
            node.peer_id,
            self._layers,
            is_pipeline=True,
            room=self._room(capacity),
            settings=settings,
            host=served,
            events=node.host.events,
            rng=node.rng,
        )
        since = trio.current_time()
        self._all.append(_Volunteer(node, speed, capacity, served, placement, since))
        node.start_soon(placement.run)

    def _room(self, capacity: int) -> int:
        """Return the room for so many usual layers, or for the widest one."""
        return max(round(capacity * self._usual), *self._widths.values())

    def _note_gone(self) -> None:
        for each in self._all:
            if each.until is None and not each.node.is_up:
                each.until = trio.current_time()
