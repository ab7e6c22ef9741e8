"""Recurring work that sleeps until it is due: one waiting task for all of a node's jobs.

A job is asked when it is due next, instead of waking every few seconds to look: ten thousand nodes
in one process, most of them at rest, would do nothing else. `wake` tells that a job may be due
earlier; what is not worth a wake is noticed within `LONGEST_NAP`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

LONGEST_NAP: Final = 60.0  # seconds


@dataclass(eq=False, slots=True)
class Job:
    """One kind of recurring work.

    Attributes:
        next_due: returns when it is due, given the time now; infinity for never.
        run: does it.
        spacing: seconds at least from one start to the next.
    """

    next_due: Callable[[float], float]
    run: Callable[[], Awaitable[object]]
    spacing: float = 0.0
    not_before: float = field(default=float("-inf"), init=False)
    is_running: bool = field(default=False, init=False)

    def due(self, now: float) -> float:
        """Return when to start it."""
        return float("inf") if self.is_running else max(self.next_due(now), self.not_before)


class Jobs:
    """Runs each job when it is due, never twice at once; `wake` after what may make one due."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = jobs
        self._changed = trio.Event()
        self._looks_at = float("-inf")  # when it looks again, if nothing wakes it

    def wake(self, due: float = float("-inf")) -> None:
        """Look again which jobs are due, if one may have become due at `due`."""
        if due < self._looks_at:
            self._changed.set()

    async def run(self) -> None:
        """Run the jobs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                now = trio.current_time()
                due = now + LONGEST_NAP
                for job in self._jobs:
                    when = job.due(now)
                    if when <= now:
                        job.is_running = True
                        job.not_before = now + job.spacing
                        nursery.start_soon(self._do, job)
                    else:
                        due = min(due, when)
                self._looks_at = due
                with trio.move_on_at(due):
                    await self._changed.wait()

    async def _do(self, job: Job) -> None:
        try:
            await job.run()
        finally:
            job.is_running = False
            self.wake()
