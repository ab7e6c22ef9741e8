"""The owner's word, carried out: the node's experts stand aside and come back.

To stand aside takes effect at once for new calls; what is running ends first, and then the device
is freed. A decision that changes meanwhile is not waited for. Nothing of it is kept on disk: a
daemon that is started runs, unless these are quiet hours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2pnode.clock import wall_time
from p2pnode.config import OwnerSettings
from p2pnode.daemon.owner.core import RUN, Cause, Decision, OwnerPolicy
from p2pnode.daemon.owner.quiet_hours import QuietHours
from p2pnode.errors import ConfigError
from p2pnode.events import Event, EventBus

if TYPE_CHECKING:
    from p2pnode.daemon.owner.sampling import Sampler

MAX_PAUSE: Final = 366 * 24 * 3600.0  # seconds; longer ones have no end


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePaused(Event):
    """The node takes no calls from now on; `until` is in seconds since the epoch, if known."""

    level = "info"

    cause: Cause
    reason: str
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResumed(Event):
    """The node takes calls again."""

    level = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRuleOff(Event):
    """The node cannot see what other programs use, so that it does not give way to them."""

    level = "warning"

    reason: str


class Standby(Protocol):
    """What stands aside: the experts of a node."""

    def stand_aside(self) -> None:
        """Take no more calls, from now on."""
        ...

    async def free_device(self) -> None:
        """Let running calls end, and give the device's memory back, in bounded time."""
        ...

    async def come_back(self) -> bool:
        """Take the device and calls again; False if the device has no room yet."""
        ...


class OwnerService:
    """Applies what the policy decides.

    Args:
        settings: intervals and marks.
        events: where `NodePaused` and `NodeResumed` go.
        standby: asked for each time, since a node hosts nothing at first.
        sampler: looks at other programs; None to let them wait.
        quiet_hours: by default those of the settings, on this machine's clock.

    Raises:
        ConfigError: a span of quiet hours cannot be read.
    """

    def __init__(
        self,
        settings: OwnerSettings,
        events: EventBus,
        standby: Callable[[], Standby | None],
        *,
        sampler: "Sampler | None" = None,
        quiet_hours: QuietHours | None = None,
    ) -> None:
        hours = QuietHours(settings.quiet_hours) if quiet_hours is None else quiet_hours
        self._policy = OwnerPolicy(settings, hours)
        self._settings = settings
        self._events = events
        self._standby = standby
        self._sampler = sampler
        self._missing = ""
        self._changed = trio.Event()
        self._step = trio.CancelScope()  # of what is being carried out
        self.decision = RUN

    @property
    def missing(self) -> str:
        """Why other programs cannot be seen, if they should be; else nothing."""
        return self._missing

    def pause(self, seconds: float | None = None) -> Decision:
        """Stand aside for so many seconds, or until `resume`; new calls are refused at once.

        Raises:
            ConfigError: that is no time.
        """
        if seconds is None:
            self._policy.pause()
        elif 0 < seconds <= MAX_PAUSE:
            self._policy.pause(wall_time() + seconds)
        else:
            raise ConfigError("pause for more than no time and at most a year, such as --for 2h")
        return self._apply()

    def resume(self) -> Decision:
        """Run, whatever paused the node."""
        self._policy.resume(wall_time())
        return self._apply()

    def begin(self, standby: Standby) -> None:
        """Take in experts that are hosted from now on."""
        if self.decision.paused:
            standby.stand_aside()
            self._tell()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry decisions out until cancelled."""
        self._apply()
        async with trio.open_nursery() as nursery:
            if self._sampler is not None:
                nursery.start_soon(self._watch, self._sampler)
            nursery.start_soon(self._carry_out)
            task_status.started()
            await self._keep_time()

    async def _keep_time(self) -> None:
        """Look at the clock again and again, while it matters: it may be set, or have slept."""
        while True:
            changed = self._changed
            now = wall_time()
            self._apply()
            change = self._policy.next_change(now)
            with trio.move_on_after(
                math.inf
                if change is None
                else min(max(change - now, 0.0), self._settings.check_interval)
            ):
                await changed.wait()

    async def _watch(self, sampler: "Sampler") -> None:
        while True:
            await trio.sleep(self._settings.sample_interval)
            sample = await sampler.sample(trio.current_time())
            if sampler.missing != self._missing:
                self._missing = sampler.missing
                self._events.emit(OwnerRuleOff(reason=sampler.missing))
            self._policy.receive_sample(sample)
            self._apply()

    def _apply(self) -> Decision:
        """Take a new decision in; what takes time is left to `_carry_out`."""
        before, self.decision = self.decision, self._policy.decide(wall_time())
        decision = self.decision
        if decision == before:
            return decision
        if decision.paused is not before.paused:
            self._step.cancel()
            standby = self._standby()
            if decision.paused and standby is not None:
                standby.stand_aside()
        if decision.cause is None:
            self._events.emit(NodeResumed())
        elif decision.cause is not before.cause:
            self._events.emit(
                NodePaused(cause=decision.cause, reason=decision.reason, until=decision.until)
            )
        self._tell()
        return decision

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _carry_out(self) -> None:
        """Free the device while the node is paused, and take it again when it is not."""
        while True:
            changed = self._changed
            retry = math.inf
            standby = self._standby()
            if standby is not None:
                with trio.CancelScope() as self._step:
                    if self.decision.paused:
                        await standby.free_device()
                    elif not await standby.come_back():
                        retry = self._settings.check_interval
            with trio.move_on_after(retry):
                await changed.wait()
