import math
from dataclasses import replace

import pytest
import torch
import trio

from p2pnode.config import MIB, HostingSettings, OwnerSettings
from p2pnode.daemon.kinds import find_room
from p2pnode.daemon.owner.limits import DeviceLimits, PacedCompute, expert_bytes
from p2pnode.errors import ConfigError, MemoryLimitError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.runtime import compute_inline
from p2pnode.wire.uids import Uid

HOSTING = HostingSettings(hidden_dim=64)
A, B, C = (Uid("open:digits", f"ffn.{number}") for number in range(3))


class Process:
    """What the system would say of a process that works as the test has it."""

    def __init__(self):
        self.taken = 100.0

    async def work(self, compute, seconds, cores=1):
        """Compute for some time on some cores."""

        async def run(work):
            await trio.sleep(seconds)
            self.taken += seconds * cores
            return work()

        compute._compute = run
        return await compute(lambda: 42)


@pytest.mark.parametrize(("share", "cores"), [(0.5, 1), (0.25, 1), (1.5, 2), (0.1, 1)])
async def test_a_share_of_the_processor_holds_over_many_batches(autojump_clock, share, cores):
    process = Process()
    compute = PacedCompute(share, compute_inline, cpu_seconds=lambda: process.taken)
    began = trio.current_time()
    for _ in range(100):
        assert await process.work(compute, 0.05, cores) == 42
    await compute(int)
    elapsed = trio.current_time() - began
    assert (process.taken - 100) / elapsed == pytest.approx(share, rel=0.02)


async def test_what_idle_time_has_paid_for_is_not_rested_for(autojump_clock):
    process = Process()
    compute = PacedCompute(0.5, compute_inline, cpu_seconds=lambda: process.taken)
    await trio.sleep(3600)
    process.taken += 36  # the network's, all along
    began = trio.current_time()
    await compute(int)
    assert trio.current_time() == began


async def test_the_network_counts_as_well(autojump_clock):
    process = Process()
    compute = PacedCompute(0.5, compute_inline, cpu_seconds=lambda: process.taken)
    process.taken += 5
    began = trio.current_time()
    await compute(int)
    assert trio.current_time() - began == pytest.approx(10)


@pytest.mark.parametrize(
    ("max_cpu", "threads", "expected"),
    [("50%", 0, 4), ("50%", 2, 2), ("1.5", 0, 2), ("10%", 8, 1), ("", 0, 0), ("", 3, 3)],
)
async def test_torch_gets_no_more_threads_than_cores(max_cpu, threads, expected):
    limits = DeviceLimits(
        OwnerSettings(max_cpu=max_cpu), replace(HOSTING, threads=threads), cores=8
    )
    assert limits.hosting.threads == expected
    assert (limits.compute() is None) == (not max_cpu)


async def test_a_limited_worker_computes():
    compute = DeviceLimits(OwnerSettings(max_cpu="100%"), HOSTING, cores=1).compute()
    assert await compute(lambda: 42) == 42


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_size_of_an_expert_is_what_it_holds_once_it_has_learnt(optimizer):
    settings = replace(HOSTING, optimizer=optimizer)
    backend = build_backend(A, settings)
    x = torch.ones(1, 64)
    backend.backward([x], [x])
    weights = [*backend.module.parameters()]
    moments = [
        each
        for values in backend._optimizer.state.values()
        for each in values.values()
        if each.dim()
    ]
    held = sum(each.nbytes for each in [*weights, *weights, *moments])
    assert expert_bytes(A, settings) == held


async def test_experts_that_do_not_fit_are_refused_and_it_is_said_how_many_would():
    size = expert_bytes(A, HOSTING)
    limits = DeviceLimits(OwnerSettings(max_memory=2 * size), HOSTING)
    await limits.admit([A], HOSTING, ())
    with pytest.raises(MemoryLimitError, match=r"2 experts .* room for 1 beside the 1 hosted"):
        await limits.admit([B, C], HOSTING, [A])
    await limits.admit([A, B], HOSTING, [A])
    with pytest.raises(MemoryLimitError, match="room for 0 beside the 2"):
        await limits.admit([C], HOSTING, [A, B])
    await limits.admit([C], HOSTING, [B])  # one has left


async def test_without_a_limit_nothing_is_refused():
    limits = DeviceLimits(OwnerSettings(), HOSTING)
    await limits.admit([A, B, C], replace(HOSTING, hidden_dim=4096), ())


async def test_what_was_refused_takes_no_room():
    limits = DeviceLimits(OwnerSettings(max_memory=expert_bytes(A, HOSTING)), HOSTING)
    with pytest.raises(MemoryLimitError):
        await limits.admit([A, B], HOSTING, ())
    await limits.admit([A], HOSTING, ())


async def test_a_gpus_allocator_is_told_its_share(monkeypatch):
    told = []
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _device: type("_", (), {"total_memory": 8 * MIB}),
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *arguments: told.append(arguments)
    )
    hosting = replace(HOSTING, device="cuda:0,cuda:1")
    limits = DeviceLimits(OwnerSettings(max_vram=MIB, max_memory=1), hosting)
    await limits.admit([A], hosting, ())
    assert told == [(0.125, torch.device("cuda:0")), (0.125, torch.device("cuda:1"))]
    fit = math.floor(2 * MIB / expert_bytes(A, HOSTING))
    many = [Uid("open:digits", f"ffn.{number}") for number in range(1, fit + 1)]
    with pytest.raises(MemoryLimitError, match=f"--max-vram of 2.0 MiB has room for {fit - 1} "):
        await limits.admit(many, hosting, [A])


async def test_what_an_expert_needs_more_from_now_on_is_charged():
    plain = replace(HOSTING, optimizer="sgd")
    heavy = replace(plain, momentum=0.9)
    small, large = expert_bytes(A, plain), expert_bytes(A, heavy)
    assert large > small
    limits = DeviceLimits(OwnerSettings(max_memory=small + large), plain)
    await limits.admit([A, B], plain, ())
    with limits.resized(A, large, [A, B]):
        pass
    with (
        pytest.raises(MemoryLimitError, match=r"ffn.1 needs .* --max-memory of .* has room for"),
        limits.resized(B, large, [A, B]),
    ):
        pytest.fail("there is no room for it")
    with limits.resized(A, small, [A, B]):
        pass
    with limits.resized(B, large, [A, B]):
        pass
    with limits.resized(B, small, [A, B]):  # less always fits
        pass
    await limits.admit([C], plain, [B])


async def test_what_could_not_be_done_is_not_charged():
    plain = replace(HOSTING, optimizer="sgd")
    small, large = expert_bytes(A, plain), expert_bytes(A, replace(plain, momentum=0.9))
    limits = DeviceLimits(OwnerSettings(max_memory=small + large), plain)
    await limits.admit([A, B], plain, ())
    with pytest.raises(ZeroDivisionError), limits.resized(A, large, [A, B]):
        raise ZeroDivisionError
    with limits.resized(B, large, [A, B]):
        pass


@pytest.mark.parametrize("device", ["gpu7", "", "cuda:x", "meta", "cpu,gpu7"])
async def test_what_is_no_device_is_refused_in_a_sentence(device):
    limits = DeviceLimits(OwnerSettings(max_memory=2**40, max_vram=2**40), HOSTING)
    with pytest.raises(ConfigError, match="is not a device; use cpu, cuda"):
        await limits.admit([A], replace(HOSTING, device=device), ())
    with pytest.raises(ConfigError, match="is not a device; use cpu, cuda"):
        await find_room(OwnerSettings(max_memory=1), device, 1)


async def test_limits_of_processor_and_gpu_together_are_refused():
    both = replace(HOSTING, device="cpu, cuda:0")
    limits = DeviceLimits(OwnerSettings(max_memory=2**40), both)
    with pytest.raises(ConfigError, match="not of both at once"):
        await limits.admit([A], both, ())
    await DeviceLimits(OwnerSettings(), both).admit([A], both, ())


async def test_without_a_limit_an_expert_may_grow():
    limits = DeviceLimits(OwnerSettings(), HOSTING)
    await limits.admit([A], HOSTING, ())
    with limits.resized(A, 2**50, [A]):
        pass
