"""DiLoCo's outer step: what a round makes of many local steps of each member.

Members train apart for H steps, from the same weights, the *anchor*. What each has moved by, the
anchor minus the weights it has come to, is its *pseudo-gradient*. The average of these is what the
average of the weights lacks to the anchor. It is the gradient of one step of the outer optimiser,
SGD with Nesterov momentum, from the anchor:

    momentum = mu momentum + gradient
    weights = anchor - rate (gradient + mu momentum)

With rate 1 and mu 0 this is averaging of the weights. Source: Douillard et al. 2023 (DiLoCo:
Distributed low-communication training of language models), algorithm 1, with the rate 0.7 and the
momentum 0.9 that they found best. The step is that of `torch.optim.SGD(nesterov=True)`.

Everything here is a function of tensors: nothing that is given is changed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from p2pnode.errors import ConfigError, SchemaError

Weights = Mapping[str, torch.Tensor]


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


def outer_step(state: OuterState, average: Weights, settings: OuterSettings) -> OuterState:
    """Take one outer step.

    Args:
        state: as all members have it.
        average: of the weights that the members have come to, by the names of the anchor.
        settings: the same at all members.

    Returns:
        The state after it; its `anchor` has the dtypes of the one before.

    Raises:
        SchemaError: the average is not of these weights.
    """
    if _shapes(average) != _shapes(state.anchor):
        raise SchemaError("what was averaged are not the swarm's weights")
    anchor, momentum = {}, {}
    for name, weights in state.anchor.items():
        gradient = weights.detach().float() - average[name].detach().float()
        before = state.momentum.get(name)
        after = gradient if before is None else settings.momentum * before + gradient
        step = gradient + settings.momentum * after
        momentum[name] = after
        anchor[name] = (weights.detach().float() - settings.learning_rate * step).to(weights.dtype)
    return OuterState(anchor=anchor, momentum=momentum)


def _shapes(tensors: Weights) -> dict[str, torch.Size]:
    return {name: each.shape for name, each in tensors.items()}
