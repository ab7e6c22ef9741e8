"""What the tasks of sessions wait for."""

import trio


class Signal:
    """Wakes all who wait, again and again; half as dear as a `ParkingLot`, which counts them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[trio.lowlevel.Task] = []

    async def wait(self) -> None:
        """Wait until it is set the next time."""
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def set(self) -> None:
        """Wake all who wait now."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                trio.lowlevel.reschedule(task)
