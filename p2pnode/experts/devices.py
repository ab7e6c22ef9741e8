"""The devices of a host: a loop for each, and which expert is computed on which.

A span of layers that are spread over several devices is led by the device of the first, and has
the turns of all while it is computed. To keep that rare, experts that are added together are
placed in runs: the first so many on one device, the next on another.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import psutil
import torch
import trio

from p2pnode.config import HostingSettings
from p2pnode.errors import ConfigError
from p2pnode.experts.batches import Outcome
from p2pnode.experts.pool import Batch, BatchPool, Call
from p2pnode.experts.quick_work import QuickWork
from p2pnode.experts.row_limits import RowLimits
from p2pnode.experts.runtime import Compute, Runtime, WorkerThread
from p2pnode.wire.uids import Uid

T = TypeVar("T")


class Device:
    """One device: the calls that wait for it, and the loop that computes them.

    Attributes:
        name: as torch knows it, such as `cuda:0`.
        pool: where calls wait.
        runtime: who computes them.
        held: bytes of the experts that were placed here.
    """

    def __init__(self, name: str, pool: BatchPool, runtime: Runtime) -> None:
        self.name = name
        self.pool = pool
        self.runtime = runtime
        self.held = 0


class Devices:
    """The devices in use, made when they are first named.

    Args:
        settings: of their queues.
        limits: of the batches, shared by all.
        execute: computes a batch's calls, in a worker.
        on_settled: told of each batch that was computed, and the seconds it took.
        device_of: where an expert is.
        compute: the worker of all, or None for a thread for each.
    """

    def __init__(
        self,
        settings: HostingSettings,
        limits: RowLimits,
        *,
        execute: Callable[[Sequence[Uid], Sequence[Call]], list[Outcome]],
        on_settled: Callable[[Batch, float], None],
        device_of: Callable[[Uid], Device],
        compute: Compute | None,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._execute = execute
        self._on_settled = on_settled
        self._device_of = device_of
        self._worker = compute
        self._devices: list[Device] = []
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Compute calls on all devices, also on those named later, until cancelled."""
        async with trio.open_nursery() as nursery:
            for device in self._devices:  # those that are named meanwhile, too
                await nursery.start(device.runtime.run)
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # a device that is named from now on waits for the next run

    def named(self, names: str) -> list[Device]:
        """Return the devices of a list such as `cuda:0,cuda:1`.

        A name that stands there twice is two loops on one device.

        Raises:
            ConfigError: one of them is no device's name.
        """
        found: list[Device] = []
        for name in (each.strip() for each in names.split(",")):
            is_gpu(name)  # or none at all
            known = (each for each in self._devices if each.name == name and each not in found)
            found.append(next(known, None) or self._make(name))
        return found

    @property
    def queued(self) -> int:
        """How many calls wait for a device."""
        return sum(len(device.pool) for device in self._devices)

    def queued_of(self, uid: Uid) -> int:
        """Return how many calls of an expert wait."""
        return sum(device.pool.queued(uid) for device in self._devices)

    async def wait_idle(self, uids: Iterable[Uid] | None = None) -> None:
        """Wait until no call, or none of these experts, is queued or being computed."""
        wanted = None if uids is None else tuple(uids)
        await trio.lowlevel.checkpoint()
        for device in self._devices:
            await device.runtime.wait_idle(wanted)

    async def exclusive(self, uids: Sequence[Uid], work: Callable[[], T]) -> T:
        """Run `work` in the worker of the first expert's device, between two batches of all."""
        async with self.between_batches(uids) as compute:
            return await compute(work)

    def between_batches(self, uids: Sequence[Uid]) -> "Turns":
        """Keep batches of these experts' devices from starting, and give the first's worker."""
        return Turns(self._turns_of(uids), self._device_of(uids[0]).runtime.compute)

    def _turns_of(self, uids: Sequence[Uid]) -> list[trio.StrictFIFOLock]:
        if len(uids) == 1:
            return [self._device_of(uids[0]).runtime.turn]
        wanted = {id(self._device_of(uid)) for uid in uids}
        return [device.runtime.turn for device in self._devices if id(device) in wanted]

    def _make(self, name: str) -> Device:
        pool = BatchPool(self._settings, self._limits)
        runtime = Runtime(
            pool,
            self._execute,
            self._on_settled,
            self._worker or WorkerThread(),
            turns_of=self._turns_of,
            quick=self._quick_work(name),
        )
        device = Device(name, pool, runtime)
        self._devices.append(device)
        if self._nursery is not None:
            self._nursery.start_soon(runtime.run)
        return device

    def _quick_work(self, name: str) -> QuickWork | None:
        """Let threads be spared where there are some, and nobody wants batches to wait."""
        settings = self._settings
        if self._worker is not None or settings.batch_window or is_gpu(name):
            return None
        return QuickWork(settings.quick_work)


class Turns:
    """The turns of some devices, held while the block runs, which gets the first one's worker."""

    def __init__(self, turns: Sequence[trio.StrictFIFOLock], compute: Compute) -> None:
        self._turns = turns
        self._compute = compute

    async def __aenter__(self) -> Compute:
        """Take the turns in the order that all keep to."""
        taken: list[trio.StrictFIFOLock] = []
        try:
            for turn in self._turns:
                await turn.acquire()
                taken.append(turn)
        except BaseException:  # cancelled while it waits for one of them
            for turn in taken:
                turn.release()
            raise
        return self._compute

    async def __aexit__(self, *_: object) -> None:
        """Give them back."""
        for turn in self._turns:
            turn.release()


def is_gpu(name: str) -> bool:
    """Tell whether a device has memory of its own.

    Raises:
        ConfigError: experts cannot be computed on anything of that name.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in {"cpu", "cuda"}:
        raise ConfigError(f"{name!r} is not a device; use cpu, cuda or cuda:0")
    return kind == "cuda"


def free_memory(name: str) -> int:
    """Return the free bytes of a device; to be asked in a thread, it may take a moment."""
    if is_gpu(name):
        return torch.cuda.mem_get_info(torch.device(name))[0]
    return int(psutil.virtual_memory().available)


def rooms_of(devices: Sequence[Device]) -> list[int]:
    """Return how many bytes each device has for more experts; to be asked in a thread.

    Of several loops on one processor, each that has more experts has less room.
    """
    free = {name: free_memory(name) for name in dict.fromkeys(each.name for each in devices)}
    return [free[device.name] - (0 if is_gpu(device.name) else device.held) for device in devices]


def spread(count: int, size: int, rooms: Sequence[int]) -> list[int]:
    """Return how many of `count` experts go to each device, each to where most room is left.

    Args:
        count: of experts, all of one size.
        size: of one, in bytes.
        rooms: of the devices, in bytes; of those with the same, earlier ones come first.
    """
    left = list(rooms)
    counts = [0] * len(rooms)
    for _ in range(count):
        at = max(range(len(left)), key=lambda device: (left[device], -device))
        counts[at] += 1
        left[at] -= max(1, size)
    return counts
