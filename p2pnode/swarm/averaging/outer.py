"""DiLoCo's outer step: what a round makes of many local steps of each member.

Members train apart for H steps, from the same weights. What each then contributes is its
*pseudo-gradient*, the weights it began with minus those it has come to. Their average is the
gradient of one step of the outer optimiser, SGD with Nesterov momentum, from the weights that all
began with:

    momentum = mu momentum + gradient
    weights = weights - rate (gradient + mu momentum)

With rate 1 and mu 0 this is averaging of the weights. Source: Douillard et al. 2023 (DiLoCo:
Distributed low-communication training of language models), algorithm 1, with the rate 0.7 and the
momentum 0.9 that they found best. The step is that of `torch.optim.SGD(nesterov=True)`.

Everything here is a function of tensors: nothing that is given is changed. The state is plain
tensors by name, for a checkpoint.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import torch

from p2pnode.errors import CheckpointError, ConfigError, SchemaError

Weights = Mapping[str, torch.Tensor]

_PREFIX: Final = "outer."  # of the state's tensors in a checkpoint
_ANCHOR: Final = f"{_PREFIX}anchor."
_MOMENTUM: Final = f"{_PREFIX}momentum."


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    """How the outer optimiser steps."""

    learning_rate: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Raise `ConfigError` if a value is none."""
        if not 0 < self.learning_rate < math.inf or not 0 <= self.momentum < 1:
            raise ConfigError(
                "the outer learning rate must be above 0, and the outer momentum from 0 to below 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterState:
    """What a member keeps from round to round; the same at all members.

    Attributes:
        anchor: the weights that the next local steps begin with, by name.
        momentum: of the outer optimiser, float32 by the same names; empty before the first step.
    """

    anchor: Weights
    momentum: Weights = field(default_factory=dict)

    @classmethod
    def begin(cls, weights: Weights) -> Self:
        """Return the state before the first round; the weights are copied."""
        return cls(anchor={name: each.detach().clone() for name, each in weights.items()})

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all of it by names that a checkpoint can hold beside others."""
        return {
            prefix + name: each
            for prefix, tensors in ((_ANCHOR, self.anchor), (_MOMENTUM, self.momentum))
            for name, each in tensors.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Weights) -> Self:
        """Read what `to_tensors` gave; other tensors are passed over.

        Raises:
            CheckpointError: the momentum is not that of the weights.
        """
        anchor = _with_prefix(tensors, _ANCHOR)
        momentum = _with_prefix(tensors, _MOMENTUM)
        if momentum and _shapes(momentum) != _shapes(anchor):
            raise CheckpointError("the outer optimiser's momentum is not that of the weights")
        return cls(anchor=anchor, momentum=momentum)


def pseudo_gradient(state: OuterState, weights: Weights) -> list[torch.Tensor]:
    """Return what a member contributes after its local steps: float32, in the order of names.

    Args:
        state: that the local steps began with.
        weights: that they have come to.

    Raises:
        SchemaError: these are not the weights that they began with.
    """
    if _shapes(weights) != _shapes(state.anchor):
        raise SchemaError("the weights after local training are not those that it began with")
    return [
        state.anchor[name].detach().float() - weights[name].detach().float()
        for name in sorted(state.anchor)
    ]


def outer_step(
    state: OuterState, gradients: list[torch.Tensor], settings: OuterSettings
) -> OuterState:
    """Take one outer step.

    Args:
        state: as all members have it.
        gradients: the members' pseudo-gradients, averaged, in the order of names.
        settings: the same at all members.

    Returns:
        The state after it; its `anchor` has the dtypes of the one before.

    Raises:
        SchemaError: the gradients are not of these weights.
    """
    names = sorted(state.anchor)
    if [each.shape for each in gradients] != [state.anchor[name].shape for name in names]:
        raise SchemaError("the averaged pseudo-gradients are not of the swarm's weights")
    anchor, momentum = {}, {}
    for name, given in zip(names, gradients, strict=True):
        gradient = given.detach().float()
        before = state.momentum.get(name)
        after = gradient.clone() if before is None else settings.momentum * before + gradient
        step = gradient + settings.momentum * after
        weights = state.anchor[name].detach()
        momentum[name] = after
        anchor[name] = (weights.float() - settings.learning_rate * step).to(weights.dtype)
    return OuterState(anchor=anchor, momentum=momentum)


def _with_prefix(tensors: Weights, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
    }


def _shapes(tensors: Weights) -> dict[str, torch.Size]:
    return {name: each.shape for name, each in tensors.items()}
