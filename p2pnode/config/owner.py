"""The machine's owner: what the node may take, and when it stands aside."""

import re
from dataclasses import dataclass
from typing import Final

from p2pnode.config.units import GIB, MIB
from p2pnode.errors import ConfigError

_CPU: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)(%?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSettings:
    """What the node may take of its machine, and when it pauses by itself.

    Shares are between 0 and 1. To *pause* a device, the upper mark has to be passed for
    `pause_after` seconds; to go on, everything has to stay below the lower ones for
    `resume_after`. In between nothing changes, so that a node does not flap.
    """

    max_vram: int = 0  # bytes of a GPU's memory; 0: all of it
    max_memory: int = 0  # bytes of experts that compute on the CPU; 0: without limit
    max_cpu: str = ""  # such as 50% of all cores, or 1.5 cores; empty: without limit

    quiet_hours: tuple[str, ...] = ()  # such as mon-fri 09:00-17:00, by the machine's own clock
    check_interval: float = 30.0  # between looks at the clock, which may have been set

    yield_to_others: bool = False  # pause while other programs need the device
    sample_interval: float = 5.0  # between looks at what they use
    pause_after: float = 10.0
    resume_after: float = 60.0
    gpu_busy: float = 0.20  # of the GPU's time, by other processes
    gpu_idle: float = 0.05
    gpu_memory_busy: float = 0.10  # of the GPU's memory, by other processes
    gpu_memory_idle: float = 0.05
    cpu_busy: float = 0.50  # of the time of all cores, by other processes
    cpu_idle: float = 0.30
    memory_low: int = 512 * MIB  # that the system can still give away
    memory_enough: int = GIB

    finish_timeout: float = 30.0  # for calls under way, before a paused node frees its device

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a share is none, marks contradict each other, or max_cpu is no amount.
        """
        for high, low in (
            ("gpu_busy", "gpu_idle"),
            ("gpu_memory_busy", "gpu_memory_idle"),
            ("cpu_busy", "cpu_idle"),
        ):
            if not getattr(self, low) < getattr(self, high) <= 1:
                raise ConfigError(f"owner.{low} must be less than owner.{high}, and that at most 1")
        if self.memory_low >= self.memory_enough:
            raise ConfigError("owner.memory_low must be less than owner.memory_enough")
        self.cores_of(1)

    def cores_of(self, cores: int) -> float | None:
        """Return how many cores' time the node may take on a machine of `cores`; None for all.

        Raises:
            ConfigError: max_cpu cannot be read.
        """
        if not self.max_cpu:
            return None
        found = _CPU.fullmatch(self.max_cpu.strip())
        amount = float(found[1]) if found else 0.0
        if found is None or amount == 0 or (found[2] and amount > 100):
            raise ConfigError(
                f"owner.max_cpu is a share of all cores such as 50%, or a number of cores such as"
                f" 1.5, not {self.max_cpu!r}"
            )
        return min(cores * amount / 100 if found[2] else amount, float(cores))


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """The page that Prometheus reads."""

    listen: str = ""  # such as 127.0.0.1:9400; empty: nowhere
    request_timeout: float = 5.0  # for one request to arrive, and for its answer to be taken
    max_requests: int = 8  # served at once; more wait
