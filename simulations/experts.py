"""Experts on a grid, announced by the nodes of a simulation, and looked for by others.

Expert number e is at row e // columns and column e % columns. Whatever is announced or found is the
work of the nodes' own code; who hosts what is known here, to judge it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio

from p2pnode.swarm.announce import ExpertsAnnounced
from p2pnode.swarm.beam import Scores, beam_search, list_experts
from p2pnode.swarm.places import Kind
from p2pnode.wire.uids import Uid
from simulations.node import Node
from simulations.parameters import Parameter
from simulations.probes import Probes
from simulations.simulation import Simulation

RUN: Final = "open:simulation"
BLOCK: Final = "ffn"

EXPERTS: Final[Mapping[str, Parameter]] = {
    "experts.each": Parameter(16, "that a node hosts", minimum=1, maximum=4096),
    "experts.columns": Parameter(128, "of the grid; its rows follow", minimum=1, maximum=4096),
    "experts.placement": Parameter(
        "rows",
        "whether a node hosts neighbours in a row, or experts all over the grid",
        choices=("rows", "scattered"),
    ),
    "experts.period": Parameter(30.0, "between two announcements of an expert", "s", minimum=1.0),
}


@dataclass(frozen=True, slots=True)
class Census:
    """What one node found when it looked for all experts.

    Attributes:
        at: when it began, in virtual seconds.
        seconds: how long it took.
        live: how many were announced, and their hosts up, from before it began until its end.
        found: how many of those it found at their hosts.
        dead: how many it found at hosts that had gone before it began.
    """

    at: float
    seconds: float
    live: int
    found: int
    dead: int

    @property
    def share(self) -> float:
        """How much of what lives was found, in per cent."""
        return 100 * self.found / self.live if self.live else float("nan")


class Experts:
    """The experts of a simulation.

    Args:
        sim: the simulation, whose parameters have the group `experts.`.
        nodes: how many nodes will host at once, at most.

    Attributes:
        columns: of the grid.
        rows: of the grid.
        announcements: records announced so far, by all nodes.
        failures: those of them that failed.
    """

    def __init__(self, sim: Simulation, nodes: int) -> None:
        self._sim = sim
        self._each: int = sim.parameters["experts.each"]
        self.columns: int = sim.parameters["experts.columns"]
        self.rows: int = -(-nodes * self._each // self.columns)
        self.announcements = 0
        self.failures = 0
        self._free = list(range(nodes * self._each))
        if sim.parameters["experts.placement"] == "scattered":
            sim.rng_for("placement").shuffle(self._free)
        self._hosts: dict[int, Node] = {}
        self._announced: set[int] = set()  # the numbers of nodes that have announced all
        self._gone: dict[str, float] = {}  # by node, when it went
        sim.world.on(ExpertsAnnounced, self._receive_announced)

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns there are."""
        return self.rows, self.columns

    @property
    def live(self) -> list[int]:
        """The experts whose hosts are up and have announced them."""
        return [number for number, node in self._hosts.items() if self._is_live(node)]

    def host_on(self, nodes: Iterable[Node]) -> None:
        """Let each node host as many experts as it may, of those that nobody hosts."""
        self._collect()
        for node in nodes:
            taken, self._free = self._free[: self._each], self._free[self._each :]
            self._hosts.update(dict.fromkeys(taken, node))
            self._sim.nursery.start_soon(self._announce, node, taken)

    def note_gone(self, nodes: Iterable[Node]) -> None:
        """Note that nodes go down now."""
        self._gone.update((each.name, trio.current_time()) for each in nodes)

    async def find(self, node: Node, number: int, probes: Probes) -> None:
        """Look for the hosts of one expert from a node."""
        host = self._hosts[number].peer_id
        uid = Uid(RUN, self._name(number))
        await probes.ask(
            node,
            lambda: node.directory.hosts(uid),
            lambda hosts: any(each.peer_id == host for each in hosts),
        )

    async def search(
        self, node: Node, scores: Sequence[Scores], k: int, probes: Probes
    ) -> float | None:
        """Search for the k best experts from a node; it is right to find so many.

        Returns:
            The share of those found that are among the k best of all that live, in per cent; None
            if it failed.
        """
        best = set(self._best(scores, k))
        found: list[str] = []

        async def search() -> int:
            (sample,) = await beam_search(node.directory, RUN, BLOCK, scores, k)
            found.extend(name for name, _ in sample)
            return len(sample)

        await probes.ask(node, search, lambda count: count == len(best))
        return 100 * len(best.intersection(found)) / len(best) if found and best else None

    async def take_census(self, node: Node) -> Census:
        """Look for all experts from a node, and judge what it finds."""
        at, then = trio.current_time(), {number: self._hosts[number] for number in self.live}
        names = set(await list_experts(node.directory, RUN, BLOCK, self.grid))
        hosts: dict[str, set[str]] = {}
        rows = sorted({name.rpartition(".")[0] for name in names})
        listings = await node.directory.listings(RUN, Kind.HOSTS, rows, self.columns)
        for row, listing in zip(rows, listings, strict=True):
            for column, entries in listing.items():
                found = {self._sim.world.name_of(each.peer_id) for each in entries}
                hosts[f"{row}.{column}"] = found
        live = [number for number, host in then.items() if self._stays(host)]
        census = Census(
            at=at,
            seconds=trio.current_time() - at,
            live=len(live),
            found=sum(then[n].name in hosts.get(self._name(n), ()) for n in live),
            dead=sum(any(self._was_gone(each, at) for each in found) for found in hosts.values()),
        )
        self._sim.log.record(
            "census", node=node.name, live=census.live, found=census.found, dead=census.dead
        )
        return census

    async def _announce(self, node: Node, numbers: Sequence[int]) -> None:
        if await node.wait_joined() and node.is_up:
            node.announce(Uid(RUN, self._name(number)) for number in numbers)

    def _receive_announced(self, node: Node, event: ExpertsAnnounced) -> None:
        self.announcements += event.records
        self.failures += len(event.failures)
        if not event.failures:
            self._announced.add(node.number)

    def _collect(self) -> None:
        """Free what nodes that have gone hosted."""
        freed = [number for number, node in self._hosts.items() if not node.is_up]
        for number in freed:
            del self._hosts[number]
        self._free = sorted(self._free + freed) if freed else self._free

    def _is_live(self, node: Node) -> bool:
        # By number, not by name: one that comes back has its name, and must announce again.
        return self._stays(node) and node.number in self._announced

    def _stays(self, node: Node) -> bool:
        """Whether a node is there, and is not about to take back what it announced and leave."""
        return self._sim.world.nodes.get(node.name) is node

    def _was_gone(self, name: str, at: float) -> bool:
        return self._gone.get(name, float("inf")) < at

    def _best(self, scores: Sequence[Scores], k: int) -> list[str]:
        """Name the live experts with the highest scores, those of equal scores by number."""
        live = np.array(sorted(self.live), dtype=np.int64)
        totals = scores[0][0][live // self.columns] + scores[1][0][live % self.columns]
        return [self._name(number) for number in live[np.argsort(-totals, kind="stable")[:k]]]

    def _name(self, number: int) -> str:
        row, column = divmod(int(number), self.columns)
        return f"{BLOCK}.{row}.{column}"
