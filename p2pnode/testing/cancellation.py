"""Cancelling an async function at each of its await points in turn, to see what it leaves behind.

`walk` runs a scenario again and again. Trio tells an instrument of every step of every task, so
the first run is cancelled when the scenario's tasks have made one step, the next after two, and so
on, until a run comes to its own end before its turn.

A task can meet its cancellation in two ways. It waits, and the wait is aborted; or what it waited
for has just happened, and it goes on with that before the next wait raises. Both are walked.
"""

import itertools
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from typing import Final

import trio

MAX_STEPS: Final = 5000  # a scenario that takes more never ends

Scenario = Callable[[], Awaitable[None]]
Settled = Callable[[], Awaitable[Mapping[str, int]]]  # what is left behind, once all is quiet


class Moment(Enum):
    """When within a step the scenario is cancelled."""

    WAITING = auto()  # the task has just begun to wait
    WAKING = auto()  # what the task waited for has happened


class LeakError(AssertionError):
    """Something was left behind by a cancelled scenario."""


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` at a step of the tasks within it, counted from 1."""

    def __init__(self, task: trio.lowlevel.Task, step: int, moment: Moment) -> None:
        self.scope = trio.CancelScope()
        self.place = "it was not cancelled"
        self._root = task
        self._left = step
        self._moment = moment

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._moment is Moment.WAKING:
            self._count(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._moment is Moment.WAITING:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if self._left and self._is_within(task):
            self._left -= 1
            if not self._left:
                self.place = f"{task.name} was {self._moment.name.lower()} in {_place(task)}"
                self.scope.cancel()

    def _is_within(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self._root:
            task = task.parent_nursery.parent_task if task.parent_nursery else None
        return task is not None


def _place(task: trio.lowlevel.Task) -> str:
    """Return where a task stands, by its innermost frames of this project."""
    frames = [
        f"{frame.f_code.co_qualname}:{line}"
        for frame, line in task.iter_await_frames()
        if "p2pnode" in frame.f_code.co_filename
    ]
    return " < ".join(reversed(frames[-3:])) or "its first or last step"


async def walk(scenario: Scenario, settled: Settled, moment: Moment) -> int:
    """Cancel `scenario` at each of its steps; returns how many runs that took.

    Args:
        scenario: starts afresh at each call, and cleans up by itself when it is cancelled.
        settled: waits until all is quiet, and returns what is left behind by name.
        moment: when within a step.

    Raises:
        LeakError: something is left behind; it says by which step.
    """
    for step in itertools.count(1):
        is_over, place = await _run_until(scenario, step, moment)
        left = await settled()
        if left:
            raise LeakError(f"step {step}, when {place}, left behind {dict(left)}")
        if is_over:
            return step
        if step > MAX_STEPS:
            raise LeakError(f"the scenario has not ended within {MAX_STEPS} steps")
    raise AssertionError("there is always a next step")


async def _run_until(scenario: Scenario, step: int, moment: Moment) -> tuple[bool, str]:
    """Run `scenario` up to a step; returns whether it came to its end, and where it was cut."""
    result = False

    async def run() -> None:  # a task of its own: what the caller does is not counted
        nonlocal result
        instrument = canceller[0] = _CancelAt(trio.lowlevel.current_task(), step, moment)
        trio.lowlevel.add_instrument(instrument)
        try:
            with instrument.scope:
                await scenario()
                result = True
        except BaseException as error:
            error.add_note(f"at step {step}, when {instrument.place}")
            raise
        finally:
            trio.lowlevel.remove_instrument(instrument)

    canceller: dict[int, _CancelAt] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
    return result and not canceller[0].scope.cancel_called, canceller[0].place
