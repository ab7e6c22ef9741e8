"""Backward in parts: the gradients of some rows now, and one step with the sum of all parts later.

Everything here runs in the device's worker. Weight gradients are lists of tensors in main memory,
one for each parameter that learns, in the module's order. A parameter that the rows have not
touched counts as one whose gradient is zero.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from p2pnode.errors import ExpertFailedError
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.batches import free_cached_memory
from p2pnode.experts.failures import OutOfDeviceMemoryError, failures
from p2pnode.experts.passes import accumulate_through, forward_through, step_through
from p2pnode.experts.states import all_finite
from p2pnode.rpc.staging import to_main_memory

T = TypeVar("T")


def part_outputs(expert: ExpertBackend, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute the outputs of some rows, in pieces if they do not fit the device at once.

    Raises:
        ExpertFailedError: something failed or is not finite.
    """
    outputs = _in_pieces(
        expert, inputs, lambda at_once: forward_through([expert], inputs, at_once=at_once)
    )
    if not all_finite(outputs):
        raise ExpertFailedError(f"{expert.uid.name} has outputs that are not finite")
    return outputs


def part_gradients(
    expert: ExpertBackend,
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Compute the gradients of some rows, and take no step.

    What does not fit the device at once is computed in pieces.

    Args:
        expert: the expert.
        inputs: its inputs, each (rows, …).
        gradients: of its outputs.
        kept: weight gradients of earlier parts, or nothing.

    Returns:
        The gradients of the inputs, and those of the weights with the earlier ones added.

    Raises:
        ExpertFailedError: something failed or is not finite.
    """
    answer, found = _in_pieces(
        expert, inputs, lambda at_once: _gradients(expert, inputs, gradients, at_once)
    )
    if not all_finite(found):
        raise ExpertFailedError(f"{expert.uid.name} has gradients that are not finite")
    for total, part in zip(found, kept, strict=bool(kept)):
        total.add_(part)
    return answer, found


def no_gradients(expert: ExpertBackend) -> list[torch.Tensor]:
    """Return the weight gradients of no rows: zeros."""
    return [torch.zeros(each.shape, dtype=each.dtype) for each in expert.parameters]


def gradient_bytes(expert: ExpertBackend) -> int:
    """Return how large the weight gradients are."""
    return sum(each.nbytes for each in expert.parameters)


def step_with(expert: ExpertBackend, gradients: Sequence[torch.Tensor], rows: int) -> None:
    """Clip the sum of all parts' weight gradients, and step the optimiser with it.

    Args:
        expert: the expert.
        gradients: the sum; it is used up.
        rows: of all parts.

    Raises:
        ExpertFailedError: it failed; if in the middle of the step, then the expert is broken.
    """
    with failures([expert], "its step"):
        expert.check_usable()
        try:
            for parameter, gradient in zip(expert.parameters, gradients, strict=True):
                parameter.grad = gradient.to(parameter.device)
            expert.clip()
            step_through([expert], rows)
        finally:
            expert.forget_gradients()


def _in_pieces(
    expert: ExpertBackend, inputs: Sequence[torch.Tensor], compute: Callable[[int | None], T]
) -> T:
    """Call `compute` with the rows that fit the device at once, None for all."""
    rows: int | None = None
    while True:
        try:
            return compute(rows)
        except OutOfDeviceMemoryError:
            rows = (len(inputs[0]) if rows is None else rows) // 2
            if not rows:
                raise
        free_cached_memory([expert])  # not above, where the error keeps alive what did not fit


def _gradients(
    expert: ExpertBackend,
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    at_once: int | None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with torch.enable_grad(), failures([expert], "backward"):
        try:
            answer = accumulate_through([expert], inputs, gradients, at_once=at_once)
            found = [
                torch.zeros_like(each) if each.grad is None else each.grad
                for each in expert.parameters
            ]
            return answer, to_main_memory(found)
        finally:
            expert.forget_gradients()
