"""What the node's experts may take of the machine: processor time and memory.

The processor is limited twice. Torch gets no more threads than the node may have cores; and when
all of the process, its network included, has taken more time than it may, the next batch waits
until that is paid for. So a share of half a core works, too.

Memory is refused before it is taken: experts are admitted by what they will use at most, their
gradients and the optimiser's moments included. A GPU's allocator is told the limit as well, since
batches need memory, too.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import torch
import trio

from p2pnode.config import MIB, HostingSettings, OwnerSettings
from p2pnode.errors import ConfigError, MemoryLimitError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.devices import is_gpu
from p2pnode.experts.runtime import Compute
from p2pnode.host.pacing import Pace
from p2pnode.wire.uids import Uid

T = TypeVar("T")

_VRAM: Final = "--max-vram"


class PacedCompute:
    """A worker that rests before its work while the process is ahead of its share.

    Args:
        cores: how many cores' time the process may take.
        compute: the worker.
        cpu_seconds: what the process has taken so far; by default the system says so.
    """

    def __init__(
        self,
        cores: float,
        compute: Compute,
        *,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._pace = Pace(cores)
        self._compute = compute
        self._cpu_seconds = cpu_seconds
        self._seen = cpu_seconds()
        self._seen_at = trio.current_time()

    async def __call__(self, work: Callable[[], T]) -> T:
        """See `Compute`."""
        now, taken = trio.current_time(), self._cpu_seconds()
        self._pace.reserve(taken - self._seen, self._seen_at)  # what idle time has paid for, too
        self._seen, self._seen_at = taken, now
        at = self._pace.reserve(0, now)
        if at > now:
            await trio.sleep_until(at)
        return await self._compute(work)


class DeviceLimits:
    """The owner's limits, as hosting applies them.

    Args:
        owner: the limits.
        hosting: what they are limits for; its device is that of all experts.
        cores: of this machine, by default those that this process may use.
    """

    def __init__(
        self, owner: OwnerSettings, hosting: HostingSettings, *, cores: int | None = None
    ) -> None:
        self._owner = owner
        self._cores = owner.cores_of(cores or _cores())
        self._sizes: dict[Uid, int] = {}
        self.hosting = hosting
        if self._cores is not None:
            most = math.ceil(self._cores)
            threads = min(hosting.threads or most, most)
            self.hosting = replace(hosting, threads=threads)

    def compute(self) -> Compute | None:
        """Return the worker of all devices; None where each may have one of its own."""
        if self._cores is None:
            return None
        devices = _names(self.hosting)
        return PacedCompute(self._cores, _workers(len(devices)))

    async def admit(
        self, wanted: Sequence[Uid], settings: HostingSettings, hosted: Collection[Uid]
    ) -> None:
        """See that there is room for more experts.

        Args:
            wanted: the experts, all of one size; those hosted already need nothing.
            settings: what they are built with.
            hosted: those that are there now.

        Raises:
            MemoryLimitError: they do not all fit; the text says how many would.
            ConfigError, ModelError: they cannot be built.
        """
        device = _names(settings)
        flag, limit = self._limit_of(device)
        fresh = [uid for uid in dict.fromkeys(wanted) if uid not in hosted]
        if not limit or not fresh:
            return
        if flag == _VRAM:
            for name in device:
                _limit_allocator(torch.device(name), self._owner.max_vram)
        size = await trio.to_thread.run_sync(expert_bytes, fresh[0], settings)
        self._sizes = {uid: each for uid, each in self._sizes.items() if uid in hosted}
        held = sum(self._sizes.values())
        fit = (limit - held) // max(size, 1)
        if fit < len(fresh):
            raise MemoryLimitError(
                f"{len(fresh)} experts need {_mib(size)} each with their optimiser, but {flag} of"
                f" {_mib(limit)} has room for {max(fit, 0)} beside the {len(self._sizes)} hosted"
                " now; host fewer of them, or raise the limit"
            )
        self._sizes |= dict.fromkeys(fresh, size)

    @contextlib.contextmanager
    def resized(self, uid: Uid, size: int, hosted: Collection[Uid]) -> Iterator[None]:
        """See that there is room for an expert that is to use more, or less, from the block on.

        Should the block fail, then it uses what it did before.

        Args:
            uid: the expert.
            size: what it will use.
            hosted: those that are there now.

        Raises:
            MemoryLimitError: it does not fit.
        """
        flag, limit = self._limit_of(_names(self.hosting))
        self._sizes = {each: held for each, held in self._sizes.items() if each in hosted}
        before = self._sizes.get(uid)
        if not limit or before is None:  # what was never charged has no limit
            yield
            return
        left = limit - sum(self._sizes.values()) + before
        if max(left, before) < size:
            raise MemoryLimitError(
                f"{uid.name} needs {_mib(size)} with these options of its optimiser, but {flag} of"
                f" {_mib(limit)} has room for {_mib(left)} beside the others hosted now; host fewer"
                " experts, or raise the limit"
            )
        self._sizes[uid] = size
        try:
            yield
        except BaseException:
            self._sizes[uid] = before
            raise

    def _limit_of(self, device: Sequence[str]) -> tuple[str, int]:
        """Return the flag that limits the memory of devices, and the bytes; 0 for any number.

        Raises:
            ConfigError: one is no device, or the limits are for different ones of them.
        """
        on_gpu = [is_gpu(each) for each in device]
        limits = self._owner.max_vram, self._owner.max_memory
        if len(set(on_gpu)) > 1 and any(limits):
            raise ConfigError(
                "memory can be limited of GPUs or of the processor, not of both at once; start a"
                " node with its own --data-dir for each"
            )
        if on_gpu[0]:
            return _VRAM, self._owner.max_vram * len(device)
        return "--max-memory", self._owner.max_memory


def expert_bytes(uid: Uid, settings: HostingSettings) -> int:
    """Return what an expert uses at most, besides its batches: it is built once to see that.

    Raises:
        ConfigError, ModelError: it cannot be built.
    """
    return build_backend(uid, replace(settings, device="cpu")).size


def _names(settings: HostingSettings) -> list[str]:
    return [each.strip() for each in settings.device.split(",")]


def _limit_allocator(device: torch.device, limit: int) -> None:
    """Keep torch's own allocator within the limit; CUDA's context, which it needs, is beside it."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)


def _workers(count: int) -> Compute:
    limiter = trio.CapacityLimiter(count)

    async def compute(work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=limiter)

    return compute


def _cores() -> int:
    """Return how many cores this process may use; not every system says it of a process."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
