"""What an expert has learnt, as a state that is kept, sent, and checked before it is taken over."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from p2pnode.errors import CheckpointError
from p2pnode.experts.optimizers import state_from
from p2pnode.wire.uids import Uid

_MODULE: Final = "module."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertState:
    """A copy of all that an expert has learnt, on the CPU."""

    tensors: dict[str, torch.Tensor]
    steps: int
    rows: int
    layer: str
    optimizer: str


def module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's tensors by the names they have in a state; nothing is copied."""
    return {_MODULE + name: each for name, each in module.state_dict().items()}


def check_kind(uid: Uid, state: ExpertState, layer: str, optimizer: str) -> None:
    """Return if a state is of such an expert.

    Raises:
        CheckpointError: it is of another kind.
    """
    if (state.layer, state.optimizer) != (layer, optimizer):
        raise CheckpointError(
            f"the state of {uid.name}, from a checkpoint or another host, is of a {state.layer}"
            f" with {state.optimizer}, but a {layer} with {optimizer} is to be hosted here; use the"
            " settings it was made with, or move the checkpoint away"
        )


def weights_of(uid: Uid, state: ExpertState, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state's weights, for the module's `load_state_dict`.

    Raises:
        CheckpointError: they do not fit the module, or something in the state is not finite.
    """
    weights = {
        name.removeprefix(_MODULE): each
        for name, each in state.tensors.items()
        if name.startswith(_MODULE)
    }
    own = module.state_dict()
    if {name: (each.shape, each.dtype) for name, each in weights.items()} != {
        name: (each.shape, each.dtype) for name, each in own.items()
    }:
        raise CheckpointError(
            f"the checkpoint of {uid.name} has tensors of other names or shapes; use the"
            " hidden_dim it was saved with, or move the checkpoint away"
        )
    if not all_finite(state.tensors.values()):
        raise CheckpointError(
            f"the checkpoint of {uid.name} has weights that are not finite; bring back another copy"
        )
    return weights


def moments_in(
    uid: Uid, state: ExpertState, parameters: Sequence[nn.Parameter]
) -> dict[int, dict[str, torch.Tensor]]:
    """Return what a state's optimiser has gathered, for `load_state_dict`.

    Raises:
        CheckpointError: it does not fit the parameters.
    """
    try:
        return state_from(state.tensors, parameters, state.optimizer)
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint of {uid.name} has an optimiser state that does not fit its"
            f" weights ({error}); bring back another copy"
        ) from error


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether no element is NaN or infinite."""
    for tensor in tensors:
        if not tensor.is_floating_point():
            continue
        # A sum is finite only if all elements are; it costs no memory. It can overflow, though,
        # so that the slow way has the last word.
        total = tensor.sum(dtype=torch.float32).item()
        if not math.isfinite(total) and not torch.isfinite(tensor).all():
            return False
    return True
