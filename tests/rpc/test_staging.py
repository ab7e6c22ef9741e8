"""Copies between devices, on a stand-in for CUDA: only the order of what it is told is checked."""

import contextlib

import pytest
import torch

from p2pnode.rpc import staging
from p2pnode.rpc.staging import to_device, to_main_memory

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")


class StandIn:
    """What is said to CUDA, in order."""

    def __init__(self):
        self.said = []
        self.current = Stream(self, "computing")

    def current_stream(self, _device):
        return self.current

    def Stream(self, _device):  # noqa: N802  # as torch calls it
        return Stream(self, "copying")

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    def __init__(self, cuda, name):
        self.cuda = cuda
        self.name = name

    def wait_stream(self, other):
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        return self

    def synchronize(self):
        self.cuda.said.append(f"the processor waits for {self.name}")


class Tensor:
    """A tensor that is, by its own account, on a GPU or in main memory."""

    shape, dtype = (2, 3), torch.float32

    def __init__(self, cuda, device):
        self.cuda = cuda
        self.device = device

    @property
    def is_cpu(self):
        return self.device.type == "cpu"

    def detach(self):
        return self

    def pin_memory(self):
        self.cuda.said.append("pinned")
        return self

    def to(self, device, *, non_blocking=False):
        assert non_blocking
        self.cuda.said.append(f"copied while {self.cuda.current.name}")
        return Tensor(self.cuda, device)

    def copy_(self, _other, *, non_blocking):
        assert non_blocking
        self.cuda.said.append(f"copied while {self.cuda.current.name}")

    def record_stream(self, stream):
        self.cuda.said.append(f"kept for {stream.name}")


@pytest.fixture
def cuda(monkeypatch):
    stand_in = StandIn()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    staging._copy_stream.cache_clear()
    yield stand_in
    staging._copy_stream.cache_clear()


def test_what_is_in_main_memory_stays_where_it_is():
    tensor = torch.ones(3)
    assert to_main_memory([tensor])[0].data_ptr() == tensor.data_ptr()
    assert to_device([tensor], CPU)[0] is tensor


def test_what_was_computed_is_fetched_when_it_is_complete(cuda, monkeypatch):
    def empty(shape, *, dtype, pin_memory):
        assert (shape, dtype, pin_memory) == ((2, 3), torch.float32, True)
        return Tensor(cuda, CPU)

    monkeypatch.setattr(torch, "empty", empty)
    (copy,) = to_main_memory([Tensor(cuda, GPU)])
    assert copy.is_cpu
    assert cuda.said == [
        "copying waits for computing",
        "copied while copying",
        "kept for copying",
        "the processor waits for copying",
    ]


def test_what_is_sent_to_a_device_is_there_before_it_is_used(cuda):
    (moved,) = to_device([Tensor(cuda, CPU)], GPU)
    assert moved.device == GPU
    assert cuda.said == [
        "pinned",
        "copied while copying",
        "kept for computing",
        "computing waits for copying",
    ]
