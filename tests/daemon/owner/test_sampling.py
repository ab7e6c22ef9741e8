import os
from types import SimpleNamespace

import pynvml
import pytest

from p2pnode.daemon.owner.core import Sample
from p2pnode.daemon.owner.sampling import CpuSampler, CpuTimes, GpuSampler, others_share


@pytest.mark.parametrize(
    ("after", "share"),
    [
        (CpuTimes(total=110.0, idle=60.0, own=5.0), 0.0),
        (CpuTimes(total=110.0, idle=55.0, own=5.0), 0.5),
        (CpuTimes(total=110.0, idle=50.0, own=10.0), 0.5),
        (CpuTimes(total=110.0, idle=50.0, own=15.0), 0.0),
        (CpuTimes(total=110.0, idle=50.0, own=40.0), 0.0),  # clocks that are not read at once
        (CpuTimes(total=110.0, idle=49.0, own=5.0), 1.0),
        (CpuTimes(total=100.0, idle=50.0, own=5.0), None),
    ],
)
def test_the_share_of_others_is_what_neither_idles_nor_is_ours(after, share):
    assert others_share(CpuTimes(total=100.0, idle=50.0, own=5.0), after) == share


async def test_the_processor_and_its_memory_are_seen():
    sampler = CpuSampler()
    deadline = 10**6
    while (
        sample := await sampler.sample(3.0)
    ).cpu is None and deadline:  # until a clock tick has passed
        deadline -= 1
    assert sample.at == 3.0
    assert 0 <= sample.cpu <= 1
    assert sample.memory > 0
    assert sample.gpu is None


class FakeNvml:
    """Two cards, and what `nvidia-smi` would show of them."""

    def __init__(self, monkeypatch):
        self.running = {"A": [], "B": []}
        self.samples = {"A": [], "B": []}
        self.asked_from = []
        for name, function in {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": "AB".__getitem__,
            "nvmlDeviceGetUUID": lambda device: device,
            "nvmlDeviceGetComputeRunningProcesses": self.running.__getitem__,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda _device: [],
            "nvmlDeviceGetProcessUtilization": self.utilization,
            "nvmlDeviceGetMemoryInfo": lambda _device: SimpleNamespace(total=1000),
        }.items():
            monkeypatch.setattr(pynvml, name, function)

    def utilization(self, device, since):
        self.asked_from.append(since)
        if not self.samples[device]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [each for each in self.samples[device] if each.timeStamp > since]

    def run(self, device, pid, memory, *shares):
        self.running[device].append(SimpleNamespace(pid=pid, usedGpuMemory=memory))
        self.samples[device] += [
            SimpleNamespace(pid=pid, timeStamp=moment, smUtil=share) for moment, share in shares
        ]


@pytest.fixture
def nvml(monkeypatch):
    return FakeNvml(monkeypatch)


async def test_a_gpu_on_which_this_node_does_not_compute_is_of_no_interest(nvml):
    nvml.run("A", 1, 900, (1, 99))
    assert await GpuSampler().sample(1.0) == Sample(at=1.0)


async def test_of_our_gpu_what_others_hold_and_use_is_seen(nvml):
    nvml.run("A", 1, 900, (1, 99))
    nvml.run("B", os.getpid(), 500, (1, 80))
    nvml.run("B", 2, 100, (1, 90), (3, 20))
    nvml.run("B", 3, None, (2, 5))
    sampler = GpuSampler()
    assert await sampler.sample(1.0) == Sample(at=1.0, gpu=0.25, gpu_memory=0.1)
    assert (await sampler.sample(2.0)).gpu == 0
    assert nvml.asked_from == [0, 3]


async def test_an_idle_gpu_is_not_needed_by_others(nvml):
    nvml.run("B", os.getpid(), 500)
    assert await GpuSampler().sample(1.0) == Sample(at=1.0, gpu=0.0, gpu_memory=0.0)


async def test_without_the_driver_the_rule_is_off_and_says_why(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    sampler = GpuSampler()
    assert await sampler.sample(1.0) == Sample(at=1.0)
    assert "cannot be watched" in sampler.missing


async def test_a_driver_that_goes_away_turns_the_rule_off(nvml, monkeypatch):
    sampler = GpuSampler()
    nvml.run("B", os.getpid(), 500)

    def fail(_device):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", fail)
    assert await sampler.sample(1.0) == Sample(at=1.0)
    assert "any more" in sampler.missing
