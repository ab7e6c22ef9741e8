"""Hosting what a run needs most: looks at the index from time to time, decides, and moves.

A node that joins takes its place at once, and others see so before it has loaded anything. Later it
looks every `placement.period`, and where a move would be worth it waits for a time drawn by chance
and looks again: of several nodes that see the same need one moves first, and the others find it
met. What a node keeps stays loaded.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import trio

from p2pnode.config import PlacementSettings
from p2pnode.errors import ConfigError, NoPeersError, P2PNodeError
from p2pnode.events import Event, EventBus
from p2pnode.swarm.entries import told
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.placement.core import Decision, Offer, Server, decide
from p2pnode.swarm.placement.units import MAX_UNITS, Units
from p2pnode.swarm.places import SPAN, Kind
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

JITTER: Final = 0.2  # of the period, by which a look comes early or late


class PlacedHost(ABC):
    """What is placed: the part of a node that serves layers or experts."""

    @property
    @abstractmethod
    def uids(self) -> Sequence[Uid]:
        """What is served now, runs named by id."""

    @property
    @abstractmethod
    def throughput(self) -> float:
        """Rows a second through each of them when all are in use; 0 when not known."""

    async def sizes(self, units: Sequence[Uid]) -> Sequence[int]:
        """Return the room that each of them takes here; 1 each by default.

        Raises:
            P2PNodeError: one of them cannot be built.
        """
        await trio.lowlevel.checkpoint()
        return [1] * len(units)

    def costs(self, units: Sequence[Uid]) -> Sequence[float]:
        """Return what a row through each costs here, in any measure; 1 each by default."""
        return [1.0] * len(units)

    async def kept(self, units: Sequence[Uid]) -> list[Uid]:
        """Return those of `units` whose states are here from an earlier time; none by default."""
        del units
        await trio.lowlevel.checkpoint()
        return []

    @property
    def is_movable(self) -> bool:
        """Whether `place` may be called now."""
        return True

    @abstractmethod
    async def place(self, add: Sequence[Uid], remove: Sequence[Uid]) -> None:
        """Stop serving some, and serve others; those in neither list are left alone.

        What is to be served is announced as loading first: that may take long, and others who see
        the same need should find it met.

        Raises:
            P2PNodeError: it could not be done, or not all of it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementChanged(Event):
    """This node has chosen what it hosts, or has moved."""

    level = "info"

    run_id: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    reason: str
    before: float  # rows a second through the run's slowest layer or expert
    after: float  # what is expected


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementFailed(Event):
    """This node could not look at the run, or could not move; it tries again."""

    level = "warning"

    run_id: str
    reason: str


class Placement:
    """Keeps a node where a run needs it.

    Args:
        directory: who hosts what.
        own: this node.
        units: the run's layers in order, or its experts, the run named by its id.
        is_pipeline: whether they are layers.
        room: for them, in the measure of the host's `sizes`.
        settings: when to look, and what a move is worth.
        host: what serves them.
        events: where `PlacementChanged` goes.
        rng: the source of chance.
    """

    def __init__(
        self,
        directory: ExpertDirectory,
        own: PeerId,
        units: Sequence[Uid],
        *,
        is_pipeline: bool,
        room: int,
        settings: PlacementSettings,
        host: PlacedHost,
        events: EventBus,
        rng: random.Random,
    ) -> None:
        self.run_id = units[0].run
        self.moves = 0
        self._directory = directory
        self._own = own
        self._units = list(units)
        self._numbers = {uid: number for number, uid in enumerate(self._units)}
        self._is_pipeline = is_pipeline
        self._room = room
        self._sizes: Sequence[int] = ()  # until `run` knows them
        self._loading = 0.0  # seconds for a room of 1, as it took the last time
        self._settings = settings
        self._host = host
        self._events = events
        self._rng = rng
        self._reasons: dict[Uid, str] = {}
        self._last: Decision | None = None
        self._renewed = self._units  # what they are from the next look on

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take a place, then look for a better one again and again; never returns.

        Raises:
            ConfigError: not even one of the units fits here.
            P2PNodeError: nothing can be hosted at the start.
        """
        self._sizes = await self._host.sizes(self._units)
        if min(self._sizes) > self._room:
            raise ConfigError(
                f"there is no memory for even one expert such as {self._units[0].name}; free some,"
                " or allow more with --max-memory or --max-vram"
            )
        try:
            servers = await self._look()
        except NoPeersError:  # this node is the first one
            servers = []
        kept = [self._numbers[uid] for uid in await self._host.kept(self._units)]
        await self._follow(servers, self._decide(servers, kept), kept)
        task_status.started()
        while True:
            period = self._settings.period * self._rng.uniform(1 - JITTER, 1 + JITTER)
            await trio.sleep(period)
            try:
                await self._reconsider()
            except P2PNodeError as error:
                self._events.emit(PlacementFailed(run_id=self.run_id, reason=str(error)))

    def renew(self, units: Sequence[Uid], *, is_pipeline: bool) -> bool:
        """Choose among other units from the next look on; those that are none any more are left.

        Args:
            units: as for the constructor.
            is_pipeline: likewise; it cannot change.

        Returns:
            Whether they are others than before.

        Raises:
            ConfigError: layers have become experts, or experts layers.
        """
        if is_pipeline != self._is_pipeline:
            raise ConfigError(
                "the run's layers have become experts, or its experts layers; start the node again"
                " to choose among them"
            )
        self._renewed = list(units)
        return self._renewed != self._units

    def describe(self) -> dict[str, Any]:
        """Tell what is hosted and why, ready for JSON."""
        last = self._last
        return {
            "units": len(self._units),
            "capacity": self._offer().length,
            "moves": self.moves,
            "slowest": None if last is None else last.before,
            "why": self._why(self._host.uids),
        }

    async def _reconsider(self) -> None:
        if not self._host.is_movable:
            return
        await self._leave_out()
        if not self._decide(await self._look()).moves:
            return
        await trio.sleep(self._rng.uniform(0, self._settings.back_off))
        servers = await self._look()
        decision = self._decide(servers)
        if decision.moves and self._host.is_movable:
            await self._follow(servers, decision)
            self.moves += 1

    async def _leave_out(self) -> None:
        """Stop serving what is no unit of the run any more, and take up those there are now."""
        if self._renewed == self._units:
            return
        units = self._renewed
        sizes = await self._host.sizes(units)
        numbers = {uid: number for number, uid in enumerate(units)}
        if gone := [uid for uid in self._host.uids if uid in self._numbers and uid not in numbers]:
            await self._host.place((), gone)
        self._units, self._numbers, self._sizes = units, numbers, sizes
        self._reasons = {uid: why for uid, why in self._reasons.items() if uid in numbers}

    async def _look(self) -> list[Server]:
        """Return who else hosts what, as the index says now.

        Raises:
            NoPeersError: there is nobody to ask.
        """
        widths: dict[str, int] = {}
        for uid in self._units:
            widths[uid.prefix] = max(widths.get(uid.prefix, 0), uid.coordinate + 1)
        prefixes: dict[int, list[str]] = {}
        for prefix, width in widths.items():
            prefixes.setdefault(-(-width // SPAN) * SPAN, []).append(prefix)
        rates: dict[PeerId, dict[int, float]] = {}
        for width, members in prefixes.items():
            for kind in (Kind.HOSTS, Kind.LOADING):
                listings = await self._directory.listings(
                    self.run_id, kind, members, width, fresh=True
                )
                for prefix, listing in zip(members, listings, strict=True):
                    for coordinate, hosts in listing.items():
                        number = self._numbers.get(Uid(self.run_id, f"{prefix}.{coordinate}"))
                        if number is not None:
                            for host in hosts:
                                rates.setdefault(host.peer_id, {})[number] = host.throughput
        rates.pop(self._own, None)
        costs = self._costs()
        return [
            Server(
                str(peer_id),
                tuple(sorted(units)),
                sum(rate * costs[number] for number, rate in units.items()),
            )
            for peer_id, units in sorted(rates.items())
        ]

    def _costs(self) -> list[float]:
        """Return what the units cost, 1 on average, so that a speed is that through a usual one."""
        costs = self._host.costs(self._units)
        usual = sum(costs) / len(costs)
        return [each / usual for each in costs]

    def _offer(self) -> Offer:
        return Offer(
            units=Units(self._costs(), self._sizes),
            room=self._room,
            most=self._settings.max_layers or MAX_UNITS,
            is_pipeline=self._is_pipeline,
            min_gain=self._settings.min_gain,
            loading=self._loading,
            pay_back=self._settings.pay_back,
        )

    def _decide(self, servers: Sequence[Server], kept: Sequence[int] = ()) -> Decision:
        hosted = tuple(
            sorted(self._numbers[uid] for uid in self._host.uids if uid in self._numbers)
        )
        offer = self._offer()
        # As others see it: so all come to the same figures.
        speed = told(self._host.throughput) * offer.units.cost(hosted)
        own = Server(str(self._own), hosted, speed)
        self._last = decide(offer, servers, own, self._rng.random(), kept=kept)
        return self._last

    async def _follow(
        self, servers: Sequence[Server], decision: Decision, kept: Sequence[int] = ()
    ) -> None:
        hosted = [uid for uid in self._host.uids if uid in self._numbers]
        wanted = [self._units[number] for number in decision.units]
        add = [uid for uid in wanted if uid not in hosted]
        remove = [uid for uid in hosted if uid not in wanted]
        others = {uid: sum(self._numbers[uid] in each.units for each in servers) for uid in add}
        bare = [uid for uid in add if not others[uid]]
        rest = [uid for uid in add if others[uid]]
        began = trio.current_time()
        if bare and rest:  # what nobody hosts is served before the rest is loaded
            await self._host.place(bare, remove)
            await self._host.place(rest, ())
        else:
            await self._host.place(add, remove)
        if added := sum(self._sizes[self._numbers[uid]] for uid in add):
            self._loading = (trio.current_time() - began) / added
        for uid in remove:
            self._reasons.pop(uid, None)
        for uid in add:
            was_here = self._numbers[uid] in kept
            self._reasons[uid] = self._reason(others[uid], was_here=was_here)
        self._events.emit(
            PlacementChanged(
                run_id=self.run_id,
                added=tuple(uid.name for uid in add),
                removed=tuple(uid.name for uid in remove),
                reason="; ".join(self._why(add)),
                before=decision.before,
                after=decision.after,
            )
        )

    def _reason(self, others: int, *, was_here: bool) -> str:
        if self._offer().length == len(self._units):
            return "all there is"
        if not others:
            return "its state is here" if was_here else "nobody hosted it"
        hosts = f"{others} {'host' if others == 1 else 'hosts'}"
        return f"its state is here, {hosts}" if was_here else f"slowest, {hosts}"

    def _why(self, uids: Sequence[Uid]) -> list[str]:
        """Say why some are hosted, neighbours with the same reason together."""
        numbers = sorted(self._numbers[uid] for uid in uids if uid in self._reasons)
        lines = []
        for _, group in groupby(enumerate(numbers), lambda each: self._group(*each)):
            members = [self._units[number] for _, number in group]
            name = members[0].name
            if len(members) > 1:
                name += f"-{members[-1].coordinate}"
            lines.append(f"{name}: {self._reasons[members[0]]}")
        return lines

    def _group(self, position: int, number: int) -> tuple[int, str, str]:
        uid = self._units[number]
        return number - position, uid.prefix, self._reasons[uid]
