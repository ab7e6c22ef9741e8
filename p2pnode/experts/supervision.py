"""Experts that are at fault: taken out of service, and restarted from what is on the disk.

An expert is suspected when an optimiser step was left half done, or when so many of its calls
failed in a row. Callers may have sent it what it cannot take; so it is tried on inputs of its own,
and only one that fails there too is stopped. Nobody can have an expert stopped by calling it.

A stopped expert refuses its calls, and the others on the device go on. It is built again from its
newest checkpoint after a pause, which doubles with each restart until the expert has been well for
as long as the longest pause.
"""

import contextlib
from collections.abc import Awaitable, Callable

import trio

from p2pnode.config import HostingSettings
from p2pnode.errors import CheckpointError, ConfigError, ExpertFailedError
from p2pnode.events import EventBus
from p2pnode.experts.events import ExpertRestarted, ExpertRestartFailed, ExpertStopped
from p2pnode.experts.hosted import Hosted


class Supervisor:
    """Stops and restarts experts, while `run` runs.

    Args:
        settings: when an expert is suspected, and how long the pauses are.
        events: where `ExpertStopped` and the others go.
        diagnose: tries an expert, and says what is wrong with it; empty if nothing is.
        restart: builds it again, or raises one of the errors that `run` survives.
    """

    def __init__(
        self,
        settings: HostingSettings,
        events: EventBus,
        *,
        diagnose: Callable[[Hosted], Awaitable[str]],
        restart: Callable[[Hosted], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._events = events
        self._diagnose = diagnose
        self._restart = restart
        # No expert is in it twice, so that there is always room.
        self._send, self._receive = trio.open_memory_channel[Hosted](settings.max_experts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after those who are suspected until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for hosted in self._receive:
                nursery.start_soon(self._look_after, hosted)

    def receive_outcome(self, hosted: Hosted, *, failed: bool) -> None:
        """Note how a call of an expert ended."""
        hosted.failures = hosted.failures + 1 if failed else 0
        if hosted.suspected or hosted.removed:
            return
        if hosted.backend.broken or hosted.failures >= self._settings.max_failures_in_row:
            with contextlib.suppress(trio.WouldBlock):  # the next failure comes back to it
                self._send.send_nowait(hosted)
                hosted.suspected = True

    async def _look_after(self, hosted: Hosted) -> None:
        try:
            reason = await self._diagnose(hosted)
            if reason:
                await self._stop_and_restart(hosted, reason)
        finally:
            hosted.suspected = False
            hosted.failures = 0

    async def _stop_and_restart(self, hosted: Hosted, reason: str) -> None:
        hosted.stopped = reason
        steps = hosted.backend.steps
        if trio.current_time() - hosted.restarted_at > self._settings.max_restart_delay:
            hosted.restarts = 0
        self._events.emit(
            ExpertStopped(uid=hosted.uid, reason=reason, retry_in=self._pause(hosted))
        )
        while not hosted.removed:
            await trio.sleep(self._pause(hosted))
            hosted.restarts += 1
            hosted.restarted_at = trio.current_time()
            try:
                await self._restart(hosted)
            except (CheckpointError, ConfigError, ExpertFailedError) as error:
                self._events.emit(
                    ExpertRestartFailed(
                        uid=hosted.uid, reason=str(error), retry_in=self._pause(hosted)
                    )
                )
                continue
            if not hosted.removed:
                hosted.stopped = ""
                self._events.emit(
                    ExpertRestarted(
                        uid=hosted.uid,
                        steps=hosted.backend.steps,
                        lost=steps - hosted.backend.steps,
                    )
                )
            return

    def _pause(self, hosted: Hosted) -> float:
        doubled = self._settings.restart_delay * 2.0 ** min(hosted.restarts, 62)
        return min(doubled, self._settings.max_restart_delay)
