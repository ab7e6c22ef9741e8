"""What a scenario gets: parameters, chance, a world of nodes, a log and a report."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from simulations.event_log import EventLog
from simulations.report import Goal, Report

if TYPE_CHECKING:
    from simulations.world import World


@dataclass(frozen=True, slots=True)
class Speed:
    """A figure that tells how fast a phase was simulated."""

    name: str
    phase: str
    goal: Goal | None


class Simulation:
    """One run of a scenario.

    Attributes:
        parameters: the value of each parameter the scenario declares.
        seed: what all chance of this run comes from.
        fidelity: `light` or `full`.
        rng: the scenario's own source of chance; `rng_for` makes more.
        world: the nodes, on their virtual network; empty at first.
        nursery: for tasks beside the story, which are cancelled when it ends.
        log: what happened.
        report: what came out.
        phase: what is going on now, for the display.
        horizon: the virtual second at which the story should end, if it has said so.
        ended_at: the virtual second at which it did end.
        speeds: figures to be added when the run has ended.
    """

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any],
        seed: int,
        fidelity: str,
        nursery: trio.Nursery,
        log: EventLog,
        on_phase: Callable[[str], None],
    ) -> None:
        self.parameters = dict(parameters)
        self.seed = seed
        self.fidelity = fidelity
        self.nursery = nursery
        self.log = log
        self.report = Report()
        self.rng = self.rng_for("scenario")
        self.phase = "starting"
        self.horizon: float | None = None
        self.ended_at = 0.0
        self.speeds: list[Speed] = []
        self._on_phase = on_phase
        self._world: World | None = None

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the start."""
        return trio.current_time()

    @property
    def world(self) -> "World":
        """The nodes and their network."""
        assert self._world is not None, "the runner makes the world before it starts the story"
        return self._world

    @world.setter
    def world(self, world: "World") -> None:
        self._world = world

    def rng_for(self, purpose: str) -> random.Random:
        """Return a source of chance for one purpose, which draws elsewhere do not disturb."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return random.Random(int.from_bytes(digest))

    def report_speed(self, name: str, *, goal: Goal | None = None) -> None:
        """Report how fast the simulation runs while the present phase lasts.

        The figure depends on the machine, unlike all others, and is added when the run has ended.

        Args:
            name: of the figure, which counts virtual seconds a real one.
            goal: what it is to reach.
        """
        self.speeds.append(Speed(name, self.phase, goal))

    def begin(self, phase: str, *, until: float | None = None) -> None:
        """Tell the display, and the log, what comes now.

        Args:
            phase: a few words, such as `joining`.
            until: the virtual second at which the whole story should end, when that is known.
        """
        self.phase = phase
        self._on_phase(phase)
        if until is not None:
            self.horizon = until
        self.log.record("phase", name=phase)
