"""Running one seed of a scenario: real node code, virtual time, one order of events.

`run_seed` gives an `Outcome`: what was run, what came out, and the digest of the event log. The
same plan gives the same digest in any process.
"""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import IO, Any, Final

import trio

from p2pnode import __version__
from p2pnode.clock import bind_wall_time_to_trio
from simulations.catalogue import find
from simulations.determinism import EPOCH, seeded_scheduler, virtual_clock
from simulations.errors import ScenarioError, suggest
from simulations.event_log import EventLog
from simulations.parameters import Value, as_text
from simulations.pulse import Observer, Pulse
from simulations.report import Axis, Report, RunFacts
from simulations.scenario import Scenario
from simulations.simulation import Simulation
from simulations.world import open_world

_LIBRARIES: Final = ("trio", "cryptography", "torch")  # of those that decide what a run does


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run; plain data, so that it can be sent to another process or machine.

    Args:
        scenario: its name, or the path of its file.
        chosen: parameters that differ from the scenario's own, as texts or plain values.
        seed: what all chance comes from.
        fidelity: `light` or `full`; by default the scenario's first.
        trace: whether the log tells what each node does, too.
    """

    scenario: str
    chosen: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    fidelity: str = ""
    trace: bool = False

    @property
    def command(self) -> str:
        """What to type to run it again."""
        words = ["p2pnode", "simulate", self.scenario, "--seed", str(self.seed)]
        if self.fidelity:
            words += ["--fidelity", self.fidelity]
        for name, value in self.chosen.items():
            words += ["--set", f"{name}={as_text(value)}"]
        if self.trace:
            words.append("--trace")
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one seed.

    Attributes:
        facts: what was run, and how long it took.
        report: what it found out.
        steps: how often a task ran until it had to wait.
    """

    facts: RunFacts
    report: Report
    steps: int

    @property
    def is_good(self) -> bool:
        """Whether no figure misses its goal."""
        return not self.report.missed


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan whose scenario was found and whose parameters are all known."""

    plan: Plan
    scenario: Scenario
    parameters: dict[str, Value]
    fidelity: str


def check(plan: Plan) -> Checked:
    """Find what a plan names.

    Raises:
        ScenarioError: there is no such scenario, or it does not run in that fidelity.
        ParameterError: a parameter does not exist, or its value does not fit.
    """
    scenario = find(plan.scenario)
    parameters = scenario.resolve(plan.chosen)
    fidelity = plan.fidelity or scenario.fidelities[0]
    if fidelity not in scenario.fidelities:
        raise ScenarioError(
            f"{scenario.name} runs in {' or '.join(scenario.fidelities)}, not in {fidelity!r}"
            f"{suggest(fidelity, scenario.fidelities)}"
        )
    return Checked(plan, scenario, parameters, fidelity)


def run_seed(
    plan: Plan,
    *,
    log_file: IO[bytes] | None = None,
    observer: Observer | None = None,
    ends_process: bool = False,
) -> Outcome:
    """Run a scenario from one seed to its end.

    Args:
        plan: what to run.
        log_file: takes the event log, if anybody wants it.
        observer: is shown how far the run is, a few times a second.
        ends_process: whether this process will not do much more, and need not tidy up.

    Raises:
        ScenarioError, ParameterError: see `check`.
        P2PNodeError: the scenario failed as a node can.
    """
    checked = check(plan)
    log = EventLog(log_file)
    pulse = Pulse(observer)
    with seeded_scheduler(plan.seed, ends_process=ends_process):
        try:
            sim = trio.run(_tell, checked, log, pulse, clock=virtual_clock(), instruments=[pulse])
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # it is raised again
            cause = _only_leaf(error)  # the nurseries around a scenario tell its author nothing
            cause.add_note(f"to see it again: {plan.command}")
            raise cause from cause.__cause__
    _add_speeds(sim, pulse)
    return Outcome(facts=_facts(checked, sim, log, pulse), report=sim.report, steps=pulse.steps)


async def _tell(checked: Checked, log: EventLog, pulse: Pulse) -> Simulation:
    """Make the world, tell the story in it, and end everything that was started."""
    bind_wall_time_to_trio(EPOCH)
    async with trio.open_nursery() as nursery:
        sim = Simulation(
            parameters=checked.parameters,
            seed=checked.plan.seed,
            fidelity=checked.fidelity,
            nursery=nursery,
            log=log,
            on_phase=pulse.begin,
        )
        async with open_world(sim, trace=checked.plan.trace):
            pulse.sim = sim
            sim.begin("starting")
            await checked.scenario.run(sim)
            sim.begin("done")
            sim.ended_at = trio.current_time()
            nursery.cancel_scope.cancel()
    return sim


def _only_leaf(error: BaseException) -> BaseException:
    """Return what nested groups hold, if that is one exception; else the error itself."""
    found = error
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return error if isinstance(found, BaseExceptionGroup) else found


def _add_speeds(sim: Simulation, pulse: Pulse) -> None:
    """Add what only the real clock knows: how fast each phase was."""
    phases = [each for each in pulse.phases if each.virtual > 0]
    ratios = {each: each.virtual / each.real for each in phases}
    by_name = {each.name: ratio for each, ratio in ratios.items()}
    for speed in sim.speeds:
        detail = f"virtual seconds a real one, while: {speed.phase}"
        sim.report.figure(speed.name, by_name.get(speed.phase), "x", goal=speed.goal, detail=detail)
    sim.report.table(
        "Speed of the simulation",
        ["phase", Axis("simulated", "s"), Axis("took", "s"), "x real time", "events"],
        [
            (each.name, round(each.virtual, 3), round(each.real, 3), ratios[each], each.steps)
            for each in phases
        ],
    )


def _facts(checked: Checked, sim: Simulation, log: EventLog, pulse: Pulse) -> RunFacts:
    defaults = checked.scenario.resolve({})
    return RunFacts(
        scenario=checked.scenario.name,
        summary=checked.scenario.summary,
        parameters=checked.parameters,
        changed=tuple(
            name for name, value in checked.parameters.items() if value != defaults[name]
        ),
        seeds=(checked.plan.seed,),
        fidelity=checked.fidelity,
        command=checked.plan.command,
        versions={"p2pnode": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in _LIBRARIES},
        log_digest=(log.digest,),
        events=log.lines,
        virtual_seconds=sim.ended_at,
        real_seconds=pulse.real_seconds,
    )
