"""What other processes use of this machine: read from the system, by psutil and by NVML.

NVML is NVIDIA's own library, the one behind `nvidia-smi`, and is part of its driver. Which GPU is
meant is not asked by number, since CUDA and NVML count differently: it is the one, or the ones, on
which NVML sees this very process.
"""

import os
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import pynvml
import trio

from p2pnode.daemon.owner.core import Sample


class Sampler(Protocol):
    """Takes samples; each one covers the time since the one before."""

    async def sample(self, now: float, /) -> Sample:
        """Look at the system now, by trio's clock."""
        ...

    @property
    def missing(self) -> str:
        """Why some of it cannot be known; nothing as long as all can."""
        ...


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of processor time since the system started, over all cores."""

    total: float
    idle: float
    own: float  # of this process, and of those it has waited for


def others_share(before: CpuTimes, after: CpuTimes) -> float | None:
    """Return the share of all cores' time that other processes had; None if no time has passed."""
    total = after.total - before.total
    if total <= 0:
        return None
    busy = total - (after.idle - before.idle) - (after.own - before.own)
    return min(max(busy / total, 0.0), 1.0)


class CpuSampler:
    """Looks at the processor and the main memory."""

    missing = ""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._times()

    async def sample(self, now: float) -> Sample:
        """See `Sampler`; it takes a fraction of a millisecond."""
        await trio.lowlevel.checkpoint()
        before, self._before = self._before, self._times()
        return Sample(
            at=now,
            cpu=others_share(before, self._before),
            memory=psutil.virtual_memory().available,
        )

    def _times(self) -> CpuTimes:
        system = psutil.cpu_times()
        own = self._process.cpu_times()
        # Linux counts a guest's time within `user` and `nice`, too.
        guests = getattr(system, "guest", 0.0) + getattr(system, "guest_nice", 0.0)
        return CpuTimes(
            total=sum(system) - guests,
            idle=system.idle + getattr(system, "iowait", 0.0),
            own=own.user + own.system + own.children_user + own.children_system,
        )


class GpuSampler:
    """Looks at the GPUs on which this process computes."""

    def __init__(self) -> None:
        self.missing = ""
        self._limiter = trio.CapacityLimiter(1)
        self._seen_until: dict[str, int] = {}  # by GPU: the driver's clock at the latest sample
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.missing = f"the GPU cannot be watched: {error}"

    async def sample(self, now: float) -> Sample:
        """See `Sampler`; the driver is asked in a thread, since it takes its time."""
        return await trio.to_thread.run_sync(self._ask, now, limiter=self._limiter)

    def _ask(self, now: float) -> Sample:
        if self.missing:
            return Sample(at=now)
        try:
            ours = [each for each in _devices() if os.getpid() in _processes(each)]
            return Sample(
                at=now,
                gpu=max((self._time_share(each) for each in ours), default=None),
                gpu_memory=max(map(_memory_share, ours), default=None),
            )
        except pynvml.NVMLError as error:
            self.missing = f"the GPU cannot be watched any more: {error}"
            return Sample(at=now)

    def _time_share(self, device: Any) -> float:
        """Return the share of a GPU's time that others had since the last look; 0 if unknown."""
        name = pynvml.nvmlDeviceGetUUID(device)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(device, self._seen_until.get(name, 0))
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_NotSupported):
            return 0.0  # nothing ran meanwhile; or the card tells of its memory alone
        self._seen_until[name] = max((each.timeStamp for each in samples), default=0)
        latest = {each.pid: each for each in sorted(samples, key=lambda each: each.timeStamp)}
        others = sum(each.smUtil for each in latest.values() if each.pid != os.getpid())
        return float(min(others / 100, 1.0))


def _devices() -> list[Any]:
    return [
        pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
    ]


def _processes(device: Any) -> dict[int, int]:
    """Return the bytes that each process holds of a GPU; a display's share may not be known."""
    found = [
        *pynvml.nvmlDeviceGetComputeRunningProcesses(device),
        *pynvml.nvmlDeviceGetGraphicsRunningProcesses(device),
    ]
    return {each.pid: each.usedGpuMemory or 0 for each in found}


def _memory_share(device: Any) -> float:
    others = sum(size for pid, size in _processes(device).items() if pid != os.getpid())
    return float(others / pynvml.nvmlDeviceGetMemoryInfo(device).total)
