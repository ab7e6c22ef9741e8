"""What is computed through experts: one, or several of which each takes what the last one gave.

Backward runs forward again under autograd, so that nothing is kept between two calls. Everything
here runs in the device's worker.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from p2pnode.errors import ExpertFailedError
from p2pnode.experts.failures import failures, named
from p2pnode.experts.states import all_finite
from p2pnode.rpc.staging import to_device, to_main_memory

if TYPE_CHECKING:
    from p2pnode.experts.backend import ExpertBackend


def forward_through(
    chain: Sequence["ExpertBackend"], inputs: Sequence[torch.Tensor], *, at_once: int | None = None
) -> list[torch.Tensor]:
    """Run experts one after the other without autograd, each on the outputs of the one before.

    Args:
        chain: the experts.
        inputs: of the first.
        at_once: rows that are computed together, or None for all.

    Raises:
        OutOfDeviceMemoryError: there is no room for so many rows.
        ExpertFailedError: one of them failed, or its output does not fit its schema.
    """
    with torch.no_grad(), failures(chain, "forward"):
        pieces = [
            to_main_memory(_run_through(chain, to_device(piece, chain[0].device)))
            for piece in _split(inputs, at_once)
        ]
        return _rejoin(pieces)


def backward_through(
    chain: Sequence["ExpertBackend"],
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    at_once: int | None = None,
    stepping: Sequence["ExpertBackend"] | None = None,
    wants_gradients: bool = True,
) -> list[torch.Tensor]:
    """Run experts again under autograd, step their optimisers, and give input gradients.

    One graph reaches through all of them. Everything is checked before the first steps, so that a
    failure leaves none of them stepped.

    Args:
        chain: the experts, each of which takes the outputs of the one before.
        inputs: of the first.
        gradients: of the outputs of the last; the steps minimise their inner product with them.
        at_once: rows that are computed together, or None for all; there is one step in any case.
        stepping: those of the experts that step, in order; None for all.
        wants_gradients: of the inputs; if not, they are not computed.

    Returns:
        For each input a tensor of its shape and dtype, zeros where there is no gradient; nothing if
        none are wanted.

    Raises:
        OutOfDeviceMemoryError: there is no room for so many rows.
        ExpertFailedError: something failed or was not finite. No step was taken, or else the
            experts it was taken in are broken until they are restored.
    """
    with torch.enable_grad(), failures(chain, "backward"):
        try:
            answer = accumulate_through(
                chain, inputs, gradients, at_once=at_once, wants_gradients=wants_gradients
            )
            learning = chain if stepping is None else stepping
            for expert in learning:
                expert.clip()
            step_through(learning, len(inputs[0]))
        finally:
            for expert in chain:
                expert.forget_gradients()
        return answer


def accumulate_through(
    chain: Sequence["ExpertBackend"],
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    at_once: int | None = None,
    wants_gradients: bool = True,
) -> list[torch.Tensor]:
    """Add to the gradients of all experts' parameters, and give those of the inputs.

    Arguments are those of `backward_through`; autograd must be enabled.

    Raises:
        ExpertFailedError: the input gradients are not finite.
    """
    answer = _rejoin(
        [
            _accumulate(chain, *pieces, wants_gradients=wants_gradients)
            for pieces in zip(_split(inputs, at_once), _split(gradients, at_once), strict=True)
        ]
    )
    if not all_finite(answer):
        raise ExpertFailedError(f"{named(chain)} has input gradients that are not finite")
    return answer


class _Given(torch.autograd.Function):
    """Ends a graph whose gradients come from elsewhere in a scalar.

    Torch compares the shapes of gradients that it is given with those of the outputs, symbolically:
    in every process it would import sympy for that, 37 MB and half a second at the first step.
    """

    @staticmethod
    def forward(ctx: Any, *gradients_and_outputs: torch.Tensor) -> torch.Tensor:
        """Keep the gradients, each of which belongs to one of the outputs behind them."""
        ctx.gradients = gradients_and_outputs[: len(gradients_and_outputs) // 2]
        return gradients_and_outputs[-1].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Give the outputs their gradients."""
        return (*(None for _ in ctx.gradients), *ctx.gradients)


def _end(wanted: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return a scalar whose backward pass begins with such gradients of such outputs."""
    function: Any = _Given
    end: torch.Tensor = function.apply(*(each for _, each in wanted), *(each for each, _ in wanted))
    return end


def _accumulate(
    chain: Sequence["ExpertBackend"],
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    wants_gradients: bool,
) -> list[torch.Tensor]:
    """Add to the parameters' gradients, and give those of the inputs, if they are wanted."""
    leaves = [each.detach() for each in to_device(inputs, chain[0].device)]
    for leaf in leaves:
        leaf.requires_grad_(wants_gradients and leaf.is_floating_point())
    outputs = _run_through(chain, leaves)
    placed = to_device(gradients, chain[-1].device)
    wanted = [
        (output, gradient)
        for output, gradient in zip(outputs, placed, strict=True)
        if output.requires_grad
    ]
    if wanted:
        torch.autograd.backward(_end(wanted))
    if not wants_gradients:
        return []
    return to_main_memory([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])


def _split(tensors: Sequence[torch.Tensor], rows: int | None) -> list[Sequence[torch.Tensor]]:
    if rows is None or rows >= len(tensors[0]):
        return [tensors]
    return list(zip(*(torch.split(each, rows) for each in tensors), strict=True))


def _rejoin(pieces: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    if len(pieces) == 1:
        return pieces[0]
    return [torch.cat(tensors) for tensors in zip(*pieces, strict=True)]


def _run_through(
    chain: Sequence["ExpertBackend"], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    for expert in chain:
        expert.check_usable()
    for expert in chain:
        tensors = expert.run(tensors)
    return list(tensors)


def step_through(chain: Sequence["ExpertBackend"], rows: int) -> None:
    """Step the optimisers with the gradients that are there, of so many rows.

    What fails in the middle leaves the experts broken.
    """
    begun: list[ExpertBackend] = []
    try:
        for expert in chain:
            begun.append(expert)
            expert.step(rows)
    except BaseException:
        # Some parameters are stepped, some are not: neither to be used nor to be saved.
        for expert in begun:
            expert.broken = f"{begun[-1].uid.name} failed in the middle of an optimiser step"
        raise
