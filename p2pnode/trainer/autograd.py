"""Autograd through experts that live elsewhere: the two functions that join graph and calls.

`call_expert` is one expert. `mix_experts` is a whole layer: for sample i with responders R(i),

    w_ij = softmax over j in R(i) of score_ij,      y_i = sum over j in R(i) of w_ij · f_j(x_i)

In backward each responder gets w_ij · dL/dy_i, steps its optimiser, and returns its input gradients
(J_j the Jacobian of f_j). Experts that fail in backward are dropped from the average, as if they
had not answered: with S(i) the survivors and v_ij the softmax over them alone,

    dL/dx_i     = sum over S(i) of v_ij · J_jᵀ dL/dy_i
    dL/dscore_ij = v_ij · <dL/dy_i, f_j(x_i) - sum over S(i) of v_il · f_l(x_i)>

v_ij / w_ij = 1 / (sum over S(i) of w_il) is the same for all survivors of a sample, so what the
survivors computed is scaled afterwards. A sample without survivors gets no gradient. The experts
themselves have stepped with w_ij either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from p2pnode.trainer.sources import Answer

Gradients = Sequence[torch.Tensor]
ForwardOne = Callable[[Sequence[torch.Tensor]], Answer]
BackwardOne = Callable[[Sequence[torch.Tensor], Gradients, Answer], Gradients]


def call_expert(
    forward: ForwardOne, backward: BackwardOne, inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Call one expert within the autograd graph.

    Args:
        forward: takes detached inputs, gives an answer.
        backward: takes the inputs, the gradients of the outputs and the forward call's answer
            (but for its tensors); gives the gradients of the inputs.
        inputs: the expert's tensors.

    Returns:
        The outputs. They require gradients even when no input does, since the expert itself
        learns from backward.
    """
    return list(_apply(_ExpertFunction, forward, backward, *inputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The samples of one expert in a layer: rows of the batch, and the expert's place in each."""

    name: str
    samples: torch.Tensor  # int64 (n,)
    places: torch.Tensor  # int64 (n,): which of the sample's k experts this one is


BackwardAll = Callable[
    [Sequence[Group], Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[Answer]],
    Sequence[Gradients | None],
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The experts that answered for a layer's batch, and how to call them in backward.

    Attributes:
        groups: their samples.
        answers: for each group one tensor of floating point.
        backward: takes groups, the layer's inputs, for each group the gradients of
            its outputs, and its forward answer but for the tensors; gives for each group the
            gradients of its inputs, or None.
        like: what an answer looks like, but for the number of rows, in case that there is none.
    """

    groups: Sequence[Group]
    answers: Sequence[Answer]
    backward: BackwardAll
    like: torch.Tensor


def mix_experts(
    answered: Answered, scores: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Mix what the experts of a layer answered, and join them to the autograd graph.

    Args:
        answered: by which experts, and what.
        scores: (samples, k), the gate's scores of the chosen experts.
        inputs: the layer's tensors, each (samples, …).

    Returns:
        (samples, …); zeros for samples that no expert answered for.
    """
    mixed: torch.Tensor = _apply(_MixtureFunction, answered, scores, *inputs)
    return mixed


def _apply(function: Any, *args: Any) -> Any:
    """Apply a function, in a way that its backward runs even if no input requires a gradient."""
    return function.apply(torch.empty(0, requires_grad=True), *args)


class _ExpertFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _dummy: torch.Tensor,
        forward: ForwardOne,
        backward: BackwardOne,
        *inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.backward_call = backward
        answer = forward([each.detach() for each in inputs])
        # Without its tensors: they become the outputs, and would hold each other with the graph.
        ctx.answer = replace(answer, tensors=())
        device = inputs[0].device
        outputs = tuple(each.to(device) for each in answer.tensors)
        ctx.mark_non_differentiable(*(each for each in outputs if not each.is_floating_point()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [each.detach() for each in ctx.saved_tensors]
        found = ctx.backward_call(inputs, [each.contiguous() for each in gradients], ctx.answer)
        return (None, None, None, *_differentiable(inputs, found))


class _MixtureFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _dummy: torch.Tensor,
        answered: Answered,
        scores: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        first = answered.answers[0].tensors[0] if answered.answers else answered.like
        mask = torch.zeros_like(scores, dtype=torch.bool)
        outputs = first.new_zeros((*mask.shape, *first.shape[1:]), device=scores.device)
        for group, answer in zip(answered.groups, answered.answers, strict=True):
            outputs[group.samples, group.places] = answer.tensors[0].to(scores.device)
            mask[group.samples, group.places] = True
        weights = _softmax_over(scores, mask)
        ctx.save_for_backward(weights, scores, outputs, *inputs)
        ctx.groups = answered.groups
        ctx.answers = [replace(answer, tensors=()) for answer in answered.answers]
        ctx.call_back = answered.backward
        return (_spread(weights, outputs) * outputs).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights, scores, outputs, *inputs = ctx.saved_tensors
        groups = ctx.groups
        pushed = _spread(weights, outputs) * gradient.unsqueeze(1)  # (samples, k, …)
        found = ctx.call_back(
            groups,
            [each.detach() for each in inputs],
            [pushed[group.samples, group.places] for group in groups],
            ctx.answers,
        )
        survived = torch.zeros_like(weights, dtype=torch.bool)
        for group, gradients in zip(groups, found, strict=True):
            if gradients is not None:
                survived[group.samples, group.places] = True
        surviving = _softmax_over(scores, survived)
        kept = torch.where(survived, weights, 0.0).sum(1)
        complete = (survived == (weights > 0)).all(1)  # these stay exact to the last bit
        scale = torch.where(complete | (kept == 0), 1.0, 1 / kept)  # v / w
        sums = [torch.zeros_like(each) for each in inputs]
        for group, gradients in zip(groups, found, strict=True):
            for total, part in zip(sums, gradients or (), strict=gradients is not None):
                part = part.to(total.device)  # noqa: PLW2901  # the same, where it is needed
                total.index_add_(0, group.samples, part * _spread(scale[group.samples], part))
        mean = (_spread(surviving, outputs) * outputs).sum(1, keepdim=True)
        products = ((outputs - mean) * gradient.unsqueeze(1)).flatten(2).sum(2)
        score_gradient = (surviving * products).to(scores.dtype)
        return (None, None, score_gradient, *_differentiable(inputs, sums))


def _softmax_over(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return softmax over the places in the mask, zero elsewhere; rows may be empty."""
    masked = torch.where(mask, scores, -torch.inf)
    top = masked.amax(1, keepdim=True).nan_to_num(neginf=0.0)
    powers = torch.exp(masked - top)
    total = powers.sum(1, keepdim=True)
    return powers / torch.where(total > 0, total, 1.0)


def _spread(values: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Give `values` the trailing dimensions, of size 1, and the dtype to be multiplied by."""
    return values.reshape(*values.shape, *(1,) * (over.dim() - values.dim())).to(over.dtype)


def _differentiable(
    inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Keep the gradients of inputs that can have one, on their devices."""
    return [
        gradient.to(each.device) if each.is_floating_point() else None
        for each, gradient in zip(inputs, gradients, strict=True)
    ]
