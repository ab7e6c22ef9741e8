"""Things that happen at a moment: a million deliveries without a task or a cancel scope for each.

`VirtualClock` is trio's clock in a simulation and does them itself, between two steps of trio.
`Postman` does them in a task, on any clock.
"""

import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import outcome
import trio

Act = Callable[[], object]

_FOR_EVER: Final = 3600.0  # seconds; only another thread or a socket could wake the program


class Timers(ABC):
    """Calls functions when their time has come, in the order of time, then of asking."""

    @abstractmethod
    def at(self, due: float, act: Act) -> None:
        """Call `act` at `due` by trio's clock, or as soon as possible; at infinity, never."""

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; what an act raises is raised here."""

    async def sleep_until(self, due: float) -> None:
        """Sleep without a cancel scope."""
        sleeper: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def wake() -> None:
            nonlocal sleeper
            if sleeper is not None:
                task, sleeper = sleeper, None
                trio.lowlevel.reschedule(task)

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal sleeper
            sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.at(due, wake)
        await trio.lowlevel.wait_task_rescheduled(give_up)


class Postman(Timers):
    """Does its acts in a task of its own."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._scope = trio.CancelScope()

    def at(self, due: float, act: Act) -> None:
        """See `Timers`."""
        if due < math.inf:
            heapq.heappush(self._heap, (due, next(self._numbers), act))
            self._scope.deadline = min(self._scope.deadline, due)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Timers`."""
        task_status.started()
        heap = self._heap
        while True:
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                heapq.heappop(heap)[2]()


class VirtualClock(trio.abc.Clock, Timers):
    """A clock that starts at 0 and jumps to what is next whenever all tasks wait.

    It is what `trio.testing.MockClock` is with a threshold of 0, at less than half the cost: it
    jumps when trio asks how long it may sleep, instead of after it has slept, and its acts need no
    task to be woken. Do not use `trio.testing.wait_all_tasks_blocked` under it: time would pass.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._heap: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._supervisor: trio.lowlevel.Task | None = None

    def start_clock(self) -> None:
        """See `trio.abc.Clock`."""

    def current_time(self) -> float:
        """See `trio.abc.Clock`."""
        return self._now

    def at(self, due: float, act: Act) -> None:
        """See `Timers`."""
        if due < math.inf:
            heapq.heappush(self._heap, (due, next(self._numbers), act))

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """See `trio.abc.Clock`; jumps there, or to the next act, instead of sleeping."""
        heap = self._heap
        due = min(deadline, heap[0][0]) if heap else deadline
        if due == math.inf:
            return _FOR_EVER
        now = self._now = max(self._now, due)
        try:
            while heap and heap[0][0] <= now:
                heapq.heappop(heap)[2]()
        except Exception as error:  # noqa: BLE001  # a bug, which must end the world and not trio
            self._fail(error)
        return 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Timers`."""
        task_status.started()
        self._supervisor = trio.lowlevel.current_task()
        try:
            await trio.lowlevel.wait_task_rescheduled(_abort)
        finally:
            self._supervisor = None

    def _fail(self, error: Exception) -> None:
        task, self._supervisor = self._supervisor, None
        if task is None:
            raise error
        trio.lowlevel.reschedule(task, outcome.Error(error))


def _abort(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED
