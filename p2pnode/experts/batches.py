"""Concurrent calls of one expert as one batch: joined along dimension 0, and split again.

Runs in the device thread. A batch that fails is computed again call by call, so that one caller's
tensors cannot fail another's call: a failed backward has not stepped, and forward changes nothing.
"""

from collections.abc import Sequence

import torch

from p2pnode.errors import ExpertFailedError
from p2pnode.experts.backend import ExpertBackend, all_finite, backward_through, forward_through
from p2pnode.experts.pool import Call

Outcome = list[torch.Tensor] | ExpertFailedError


def compute_batch(chain: Sequence[ExpertBackend], calls: Sequence[Call]) -> list[Outcome]:
    """Compute calls of one kind, that all run through one chain of experts.

    Returns:
        An answer or a failure for each, in their order.
    """
    try:
        joined = _compute_joined(chain, calls)
    except ExpertFailedError as error:
        if len(calls) == 1:
            return [error]
        return [outcome for call in calls for outcome in compute_batch(chain, [call])]
    return [_checked(call, answer) for call, answer in zip(calls, joined, strict=True)]


def _compute_joined(
    chain: Sequence[ExpertBackend], calls: Sequence[Call]
) -> list[list[torch.Tensor]]:
    inputs = _join([call.inputs for call in calls])
    if calls[0].kind == "forward":
        answer = forward_through(chain, inputs)
    else:
        answer = backward_through(chain, inputs, _join([call.gradients for call in calls]))
    if len(calls) == 1:
        return [answer]
    rows = [call.rows for call in calls]
    # Own memory for each part: a part that is kept must not keep the whole batch.
    parts = [[part.clone() for part in torch.split(each, rows)] for each in answer]
    return [list(columns) for columns in zip(*parts, strict=True)]


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
