"""Many seeds of one scenario: over the cores of this machine here, over many in `ray_engine`.

Each seed runs in a process of its own, as many at once as there are jobs. What fails in one does
not end the others. Cancelling the sweep ends its processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from simulations.pulse import Snapshot
from simulations.runner import Outcome, Plan
from simulations.worker import outcome_from_data

_COMMAND: Final = (sys.executable, "-P", "-m", "simulations.worker")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one seed of a sweep: an outcome, or why there is none."""

    plan: Plan
    outcome: Outcome | None
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it ended, and no figure misses its goal."""
        return self.outcome is not None and self.outcome.is_good


class SweepObserver:
    """Is told how a sweep goes on; does nothing by itself."""

    def receive_snapshot(self, plan: Plan, snapshot: Snapshot) -> None:
        """Take how far one seed is."""

    def receive_result(self, result: Result) -> None:
        """Take what came of one seed."""


def cores() -> int:
    """Return how many processes this machine runs at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_sweep(
    plans: Sequence[Plan],
    *,
    jobs: int,
    observer: SweepObserver,
    log_path: Callable[[Plan], Path] | None = None,
) -> list[Result]:
    """Run all plans in processes of this machine.

    Args:
        plans: one for each seed.
        jobs: how many run at once.
        observer: is told how it goes on.
        log_path: where the event log of a plan is kept; by default nowhere.

    Returns:
        A result for each plan, in their order.
    """
    return trio.run(_run_all, plans, jobs, observer, log_path)


async def _run_all(
    plans: Sequence[Plan],
    jobs: int,
    observer: SweepObserver,
    log_path: Callable[[Plan], Path] | None,
) -> list[Result]:
    results: dict[int, Result] = {}
    limiter = trio.CapacityLimiter(jobs)

    async def run_one(position: int, plan: Plan) -> None:
        async with limiter:
            result = await _run_one(plan, log_path(plan) if log_path else None, observer)
        results[position] = result
        observer.receive_result(result)

    async with trio.open_nursery() as nursery:
        for position, plan in enumerate(plans):
            nursery.start_soon(run_one, position, plan)
    return [results[position] for position in range(len(plans))]


async def _run_one(plan: Plan, log: Path | None, observer: SweepObserver) -> Result:
    request = {"plan": asdict(plan), "log": None if log is None else str(log)}
    last = Result(plan, None, "its process ended without a word")
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                _COMMAND,
                stdin=json.dumps(request).encode() + b"\n",
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                last = _receive(plan, line, observer) or last
    if last.outcome is None and process.returncode:
        last = Result(plan, None, f"{last.failure} (exit code {process.returncode})")
    return last


def _receive(plan: Plan, line: bytes, observer: SweepObserver) -> Result | None:
    message = json.loads(line)
    if "snapshot" in message:
        observer.receive_snapshot(plan, Snapshot(**message["snapshot"]))
        return None
    if "error" in message:
        return Result(plan, None, message["error"])
    return Result(plan, outcome_from_data(message["outcome"]))
