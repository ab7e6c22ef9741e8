"""Tensors between main memory and the devices that compute, by way of pinned memory.

A device copies from and to pinned memory by itself, at the full rate of its bus, and on a stream of
its own, so that copies neither wait for what is computed beside them nor hold it up. Whatever the
order demands is said by streams that wait for each other; the processor waits only for what it is
to read.

On machines without CUDA nothing here copies anything. The CUDA half has been checked against a
stand-in only, not on a device.
"""

import functools
from collections.abc import Sequence

import torch


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Give tensors on `device`; those that are there already are not copied.

    What is given to the current stream from now on finds them complete.
    """
    if device.type != "cuda":
        return [each if each.device == device else each.to(device) for each in tensors]
    ours, copying = torch.cuda.current_stream(device), _copy_stream(device)
    moved = []
    for tensor in tensors:
        if not tensor.is_cpu:
            moved.append(tensor.to(device))
            continue
        with torch.cuda.stream(copying):
            target = tensor.detach().pin_memory().to(device, non_blocking=True)
        target.record_stream(ours)  # its memory is not given away while we use it
        moved.append(target)
    ours.wait_stream(copying)
    return moved


def to_main_memory(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Give tensors in main memory, complete; those that are there already are not copied.

    What computes them must have been given to the current streams of their devices.
    """
    copies = []
    pending = []
    for tensor in tensors:
        if tensor.is_cpu and not tensor.requires_grad:
            copies.append(tensor)
            continue
        if tensor.device.type != "cuda":
            copies.append(tensor.detach().cpu())
            continue
        copying = _copy_stream(tensor.device)
        copying.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(copying):
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copy.copy_(tensor.detach(), non_blocking=True)
            pending.append(copying.record_event())
        tensor.record_stream(copying)  # its memory is not given away while it is read
        copies.append(copy)
    for event in pending:
        event.synchronize()
    return copies


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types there
