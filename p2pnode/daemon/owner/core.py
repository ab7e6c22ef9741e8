"""When the node runs and when it stands aside, and why: pure.

Three things pause it, the first of them that holds being the reason: its owner said so, quiet
hours, or other programs that need the device. Whoever says `resume` is right: it also overrides
the quiet hours of that moment, until they end, and the other programs, until they are done.

Inputs: `pause`, `resume`, `receive_sample`. Outputs: `decide`. Moments are in seconds since the
epoch, since people name them; samples carry the time of trio's clock.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from p2pnode.config import OwnerSettings
from p2pnode.daemon.owner.quiet_hours import QuietHours


class Cause(StrEnum):
    """What has paused the node."""

    OWNER = "owner"
    QUIET_HOURS = "quiet hours"
    OTHERS = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether the node runs.

    Attributes:
        cause: what pauses it, or None while it runs.
        reason: the same in words.
        until: when it goes on, in seconds since the epoch; None if nobody knows.
    """

    cause: Cause | None = None
    reason: str = ""
    until: float | None = None

    @property
    def paused(self) -> bool:
        """Whether the node stands aside."""
        return self.cause is not None


RUN = Decision()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What other processes use at one moment; None where it is not known, or of no interest.

    Attributes:
        at: trio's clock.
        gpu: the share of the GPU's time.
        gpu_memory: the share of the GPU's memory.
        cpu: the share of all cores' time.
        memory: the bytes of main memory that the system can still give away.
    """

    at: float
    gpu: float | None = None
    gpu_memory: float | None = None
    cpu: float | None = None
    memory: int | None = None


class Hysteresis:
    """A condition that must last before it counts, and must be over for longer before it does not.

    Args:
        rise: seconds that it must hold.
        fall: seconds that it must be clear.
    """

    def __init__(self, *, rise: float, fall: float) -> None:
        self.is_on = False
        self._rise = rise
        self._fall = fall
        self._since = math.inf  # from when on what would change it has held

    def update(self, *, holds: bool, is_clear: bool, now: float) -> None:
        """Take in what is seen now; neither `holds` nor `is_clear` is in between the marks."""
        if not (is_clear if self.is_on else holds):
            self._since = math.inf
            return
        self._since = min(self._since, now)
        if now - self._since >= (self._fall if self.is_on else self._rise):
            self.is_on = not self.is_on
            self._since = math.inf


class OwnerPolicy:
    """Decides; see the module.

    Args:
        settings: the marks.
        quiet_hours: of this machine.
    """

    def __init__(self, settings: OwnerSettings, quiet_hours: QuietHours) -> None:
        self._settings = settings
        self._quiet_hours = quiet_hours
        self._paused_until = -math.inf
        self._loud_until = -math.inf  # the owner has overridden quiet hours
        self._others = Hysteresis(rise=settings.pause_after, fall=settings.resume_after)
        self._what_others_need = ""
        self._ignores_others = False
        self._next_change: tuple[float, float, float | None] = (math.inf, -math.inf, None)

    def pause(self, until: float = math.inf) -> None:
        """Stand aside because the owner says so, until a moment or until `resume`."""
        self._paused_until = until

    def resume(self, now: float) -> None:
        """Run, whatever paused the node before."""
        self._paused_until = -math.inf
        if self._quiet_hours.covers(now):
            change = self._change_after(now)
            self._loud_until = math.inf if change is None else change
        self._ignores_others = self._others.is_on

    def receive_sample(self, sample: Sample) -> None:
        """Take in what other programs use."""
        busy = self._needs(sample, upper=True)
        self._others.update(
            holds=bool(busy), is_clear=not self._needs(sample, upper=False), now=sample.at
        )
        if busy:
            self._what_others_need = busy[0]
        if not self._others.is_on:
            self._ignores_others = False

    def decide(self, now: float) -> Decision:
        """Return whether the node runs now."""
        if now < self._paused_until:
            until = None if math.isinf(self._paused_until) else self._paused_until
            return Decision(cause=Cause.OWNER, reason="its owner paused it", until=until)
        if now >= self._loud_until and self._quiet_hours.covers(now):
            return Decision(
                cause=Cause.QUIET_HOURS, reason="these are quiet hours", until=self.next_change(now)
            )
        if self._others.is_on and not self._ignores_others:
            return Decision(cause=Cause.OTHERS, reason=self._what_others_need)
        return RUN

    def next_change(self, now: float) -> float | None:
        """Return when time alone may change the decision; None if it never does."""
        ends = [each for each in (self._paused_until, self._loud_until) if now < each < math.inf]
        change = self._change_after(now)
        return min(ends if change is None else [*ends, change], default=None)

    def _change_after(self, now: float) -> float | None:
        """Ask the quiet hours, once for all moments up to the answer."""
        asked, until, change = self._next_change
        if not asked <= now < until:
            change = self._quiet_hours.next_change(now)
            self._next_change = now, math.inf if change is None else change, change
        return change

    def _needs(self, sample: Sample, *, upper: bool) -> list[str]:
        """Say what of the device others need, by the upper or the lower marks."""
        marks = self._settings
        found = []
        gpu = marks.gpu_busy if upper else marks.gpu_idle
        if sample.gpu is not None and sample.gpu >= gpu:
            found.append(f"other programs use {sample.gpu:.0%} of the GPU's time")
        gpu_memory = marks.gpu_memory_busy if upper else marks.gpu_memory_idle
        if sample.gpu_memory is not None and sample.gpu_memory >= gpu_memory:
            found.append(f"other programs hold {sample.gpu_memory:.0%} of the GPU's memory")
        cpu = marks.cpu_busy if upper else marks.cpu_idle
        if sample.cpu is not None and sample.cpu >= cpu:
            found.append(f"other programs use {sample.cpu:.0%} of the processor")
        memory = marks.memory_low if upper else marks.memory_enough
        if sample.memory is not None and sample.memory < memory:
            found.append(f"only {sample.memory / 2**20:.0f} MiB of memory are free")
        return found
