"""Concurrent calls of one expert as one batch: joined along dimension 0, and split again.

Runs in the device thread. A batch that fails is computed again call by call, so that one caller's
tensors cannot fail another's call: a failed backward has not stepped, and forward changes nothing.

A batch that runs out of memory is halved, by calls and then by the rows of a single one, and what
fitted is remembered. The gradients of a call that is computed in pieces add up, and step once.
"""

from collections.abc import Sequence

import torch

from p2pnode.errors import CallError, ExpertFailedError
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.failures import OutOfDeviceMemoryError
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.experts.pool import Call
from p2pnode.experts.row_limits import RowLimits
from p2pnode.experts.states import all_finite

Outcome = list[torch.Tensor] | CallError


def compute_batch(
    chain: Sequence[ExpertBackend],
    calls: Sequence[Call],
    limits: RowLimits,
    *,
    stepping: Sequence[ExpertBackend] | None = None,
) -> list[Outcome]:
    """Compute calls of one kind and form, that all run through one chain of experts.

    Args:
        chain: the experts, in order.
        calls: at least one.
        limits: how much fits at once; told of what has fitted, and of what has not.
        stepping: those of the experts that step in backward, in order; None for all.

    Returns:
        An answer or a failure for each, in their order.
    """
    first = calls[0]
    amount = sum(call.amount for call in calls)
    at_once = min(amount, limits.of(first.uids))
    if len(calls) > 1 and amount > at_once:  # the limit has fallen since they were chosen
        return [
            outcome
            for part in _halves(calls)
            for outcome in compute_batch(chain, part, limits, stepping=stepping)
        ]
    rows = max(1, at_once // first.positions)
    try:
        joined = _compute_joined(chain, calls, rows, stepping)
    except OutOfDeviceMemoryError as error:
        reason = str(error)
        parts = _halves(calls)
        limits.failed(first.uids, amount if len(calls) > 1 else rows * first.positions)
    except ExpertFailedError as error:
        reason = str(error)
        if len(calls) == 1:
            return [ExpertFailedError(reason)]  # without the frames, which hold tensors
        parts = [[call] for call in calls]
    else:
        limits.worked(first.uids, at_once)
        return [_checked(call, answer) for call, answer in zip(calls, joined, strict=True)]
    # Here and not above: there, the error still keeps alive what did not fit.
    free_cached_memory(chain)
    if len(calls) == 1 and rows == 1:
        return [ExpertFailedError(reason)]
    return [
        outcome
        for part in parts
        for outcome in compute_batch(chain, part, limits, stepping=stepping)
    ]


def free_cached_memory(chain: Sequence[ExpertBackend]) -> None:
    """Give the memory that torch keeps for reuse back to the devices, where it keeps any."""
    if any(backend.device.type == "cuda" for backend in chain):
        torch.cuda.empty_cache()


def _compute_joined(
    chain: Sequence[ExpertBackend],
    calls: Sequence[Call],
    rows: int,
    stepping: Sequence[ExpertBackend] | None,
) -> list[list[torch.Tensor]]:
    """Compute calls as one, a single one in pieces of so many rows."""
    inputs = _join([call.inputs for call in calls])
    at_once = rows if len(calls) == 1 else None
    if calls[0].kind == "forward":
        answer = forward_through(chain, inputs, at_once=at_once)
    else:
        gradients = _join([call.gradients for call in calls])
        answer = backward_through(
            chain,
            inputs,
            gradients,
            at_once=at_once,
            stepping=stepping,
            wants_gradients=any(call.wants_gradients for call in calls),
        )
    if len(calls) == 1:
        return [answer]
    if not answer:
        return [[] for _ in calls]
    sizes = [call.rows for call in calls]
    # Own memory for each part: a part that is kept must not keep the whole batch.
    parts = [[part.clone() for part in torch.split(each, sizes)] for each in answer]
    columns = zip(*parts, strict=True)
    return [
        list(column) if call.wants_gradients else []
        for call, column in zip(calls, columns, strict=True)
    ]


def _halves(calls: Sequence[Call]) -> list[Sequence[Call]]:
    middle = (len(calls) + 1) // 2
    return [part for part in (calls[:middle], calls[middle:]) if part]


def _join(columns: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    if len(columns) == 1:
        return list(columns[0])
    try:
        return [torch.cat(tensors) for tensors in zip(*columns, strict=True)]
    except (RuntimeError, ValueError) as error:  # of calls that came around the schema's checks
        raise ExpertFailedError(f"the calls of a batch do not fit together: {error}") from error


def _checked(call: Call, answer: list[torch.Tensor]) -> Outcome:
    if call.kind == "forward" and not all_finite(answer):
        return ExpertFailedError(f"{call.name} has outputs that are not finite")
    return answer
