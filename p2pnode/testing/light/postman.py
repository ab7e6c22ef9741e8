"""Things that happen at a moment: one task for all deliveries of a world.

A cancel scope for each of a million deliveries would cost more than the protocols that run.
"""

import heapq
import itertools
import math
from collections.abc import Callable

import trio


class Postman:
    """Calls functions when their time has come, in the order of time, then of asking."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._scope = trio.CancelScope()

    def at(self, due: float, act: Callable[[], object]) -> None:
        """Call `act` at `due` by trio's clock; at infinity, never."""
        if due == math.inf:
            return
        heapq.heappush(self._heap, (due, next(self._numbers), act))
        self._scope.deadline = min(self._scope.deadline, due)

    async def sleep_until(self, due: float) -> None:
        """Sleep without a timer of one's own."""
        task = trio.lowlevel.current_task()
        asleep = True

        def wake() -> None:
            nonlocal asleep
            if asleep:
                asleep = False
                trio.lowlevel.reschedule(task)

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal asleep
            asleep = False  # trio schedules the task now, and nobody may do so again
            return trio.lowlevel.Abort.SUCCEEDED

        self.at(due, wake)
        await trio.lowlevel.wait_task_rescheduled(give_up)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        task_status.started()
        heap = self._heap
        while True:
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                heapq.heappop(heap)[2]()
