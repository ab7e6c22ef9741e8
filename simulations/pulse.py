"""Watching a simulation from beside it, by the real clock, without touching it.

The observer is called between two steps of trio's tasks. It sees the simulation's state and must
change nothing of it: what it does depends on how fast the machine is.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from simulations.simulation import Simulation

INTERVAL: Final = 0.25  # real seconds between two calls of the observer
_STEPS_BETWEEN_LOOKS: Final = 512  # at the real clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a run is.

    Attributes:
        phase: what the scenario does now.
        virtual: seconds passed in the simulation.
        real: seconds it took.
        horizon: when it will end, in virtual seconds, if the scenario has said so.
        ratio: virtual seconds a real one, in this phase so far.
        rate: events a real second, in this phase so far; an event is one step of a task.
        nodes_up: how many nodes run.
    """

    phase: str
    virtual: float
    real: float
    horizon: float | None
    ratio: float
    rate: float
    nodes_up: int


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a story, and what it took."""

    name: str
    virtual: float
    real: float
    steps: int


Observer = Callable[[Snapshot], None]


class Pulse(trio.abc.Instrument):
    """Counts the steps of tasks, and shows the state of `sim` to the observer now and then."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.steps = 0
        self.sim: Simulation | None = None
        self._observer = observer
        self._begun: list[Phase] = []  # with the moments at which they began
        self._started = time.perf_counter()
        self._next = self._started

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # trio's signature
        """See `trio.abc.Instrument`."""
        self.steps += 1
        if self._observer is None or self.steps % _STEPS_BETWEEN_LOOKS or self.sim is None:
            return
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + INTERVAL
            self._observer(self.snapshot(self.sim))

    def begin(self, phase: str) -> None:
        """Note that a phase begins, and the one before it ends."""
        self._begun.append(Phase(phase, trio.current_time(), self.real_seconds, self.steps))

    @property
    def phases(self) -> list[Phase]:
        """What each phase that has ended took."""
        return [
            Phase(
                each.name,
                after.virtual - each.virtual,
                after.real - each.real,
                after.steps - each.steps,
            )
            for each, after in itertools.pairwise(self._begun)
        ]

    @property
    def real_seconds(self) -> float:
        """How long this pulse has been beating."""
        return time.perf_counter() - self._started

    def snapshot(self, sim: "Simulation") -> Snapshot:
        """Describe the state of `sim` now."""
        real, begun = self.real_seconds, self._begun[-1]
        spent = real - begun.real
        return Snapshot(
            phase=sim.phase,
            virtual=sim.now,
            real=real,
            horizon=sim.horizon,
            ratio=(sim.now - begun.virtual) / spent if spent else 0.0,
            rate=(self.steps - begun.steps) / spent if spent else 0.0,
            nodes_up=sim.world.nodes_up,
        )
