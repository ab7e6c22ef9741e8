"""The optimisers that experts are stepped with: built, scheduled, and taken apart for the disk."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from p2pnode.config import HostingSettings
from p2pnode.errors import ConfigError

_PREFIX: Final = "optimizer."  # of its tensors' names, among those of a checkpoint


@dataclass(frozen=True, slots=True)
class _Kind:
    build: Callable[..., torch.optim.Optimizer]
    state: frozenset[str]  # what it keeps for each parameter once it has stepped
    has_betas: bool = False
    has_momentum: bool = False
    is_fused: bool = True  # one kernel for all parameters


def _uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Derive an optimiser that does not care for torch.compile.

    As torch wraps them, its methods import the compiler before they do anything: 70 MB of memory,
    and a second, in every host.
    """
    methods = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    plain["step"] = torch.no_grad()(plain["step"])  # one of the wrappers did that
    return type(kind.__name__, (kind,), plain)


_ADAM_STATE: Final = frozenset({"step", "exp_avg", "exp_avg_sq"})
_MOMENTUM: Final = "momentum_buffer"
_KINDS: Final = {
    "adagrad": _Kind(_uncompiled(torch.optim.Adagrad), frozenset({"step", "sum"})),
    "adam": _Kind(_uncompiled(torch.optim.Adam), _ADAM_STATE, has_betas=True),
    "adamw": _Kind(_uncompiled(torch.optim.AdamW), _ADAM_STATE, has_betas=True),
    "rmsprop": _Kind(
        _uncompiled(torch.optim.RMSprop),
        frozenset({"step", "square_avg"}),
        has_momentum=True,
        is_fused=False,
    ),
    "sgd": _Kind(_uncompiled(torch.optim.SGD), frozenset(), has_momentum=True),
}


def build_optimizer(
    parameters: Sequence[nn.Parameter], settings: HostingSettings
) -> torch.optim.Optimizer | None:
    """Build the optimiser that the settings name; None where there is nothing to learn.

    Raises:
        ConfigError: there is no optimiser of that name.
    """
    kind = _KINDS.get(settings.optimizer)
    if kind is None:
        raise ConfigError(
            f"unknown optimizer {settings.optimizer!r}; use one of {', '.join(_KINDS)}"
        )
    if not parameters:
        return None
    options = _options_of(kind, settings)
    # One fused kernel for all parameters: for small experts ten times faster than the loop.
    options["fused" if kind.is_fused else "foreach"] = True
    optimizer = kind.build(parameters, lr=settings.learning_rate, **options)
    fit_state(optimizer, settings)
    return optimizer


def fit_state(optimizer: torch.optim.Optimizer, settings: HostingSettings) -> None:
    """Let an optimiser keep what these settings need, and no more, whatever it kept before.

    Torch makes the buffers of momentum at the first step and never again, and of several tensors
    all at once or none: an optimiser that gets momentum later, or whose parameters do not all take
    part in the first step, would fail in the middle of a step. A buffer of zeros comes to the same,
    since nothing is dampened.

    Raises:
        torch.OutOfMemoryError: there is no room for them; the optimiser is as it was.
    """
    kind = _KINDS[settings.optimizer]
    if not kind.has_momentum:
        return
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    if settings.momentum == 0:
        for parameter in parameters:
            optimizer.state[parameter].pop(_MOMENTUM, None)
        return
    lacking = [
        each
        for each in parameters
        # Others see by a state without anything that a parameter's first step is to come.
        if _MOMENTUM not in optimizer.state[each] and (optimizer.state[each] or not kind.state)
    ]
    buffers = [torch.zeros_like(each) for each in lacking]
    for parameter, buffer in zip(lacking, buffers, strict=True):
        optimizer.state[parameter][_MOMENTUM] = buffer


def retune(optimizer: torch.optim.Optimizer, settings: HostingSettings) -> None:
    """Let an optimiser go on with other options; what it has kept for them so far stays.

    Raises:
        torch.OutOfMemoryError: there is no room for what they need; nothing has changed.
    """
    fit_state(optimizer, settings)
    for group in optimizer.param_groups:
        group.update(_options_of(_KINDS[settings.optimizer], settings))


def _options_of(kind: _Kind, settings: HostingSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if kind.has_betas:
        options["betas"] = (settings.beta1, settings.beta2)
    if kind.has_momentum:
        options["momentum"] = settings.momentum
    return options


def moments_of(settings: HostingSettings) -> int:
    """Return how many values the optimiser keeps for each weight."""
    kind = _KINDS[settings.optimizer]
    return len(kind.state - {"step"}) + (kind.has_momentum and settings.momentum > 0)


def learning_rate(settings: HostingSettings, steps: int) -> float:
    """Return the learning rate of the step after `steps` others.

    It rises from 0 in a straight line over `warmup_steps`. Then it stays, or falls to 0 at
    `total_steps`, in a straight line or a half wave of the cosine; as the schedules of the
    transformers library, step for step.
    """
    if steps < settings.warmup_steps:
        return settings.learning_rate * steps / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    left = settings.total_steps - settings.warmup_steps
    done = min(1.0, (steps - settings.warmup_steps) / left)
    share = 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.learning_rate * share


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an optimiser has gathered, by names for a checkpoint; nothing is copied."""
    return {
        f"{_PREFIX}{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def state_from(
    tensors: Mapping[str, torch.Tensor], parameters: Sequence[nn.Parameter], optimizer: str
) -> dict[int, dict[str, torch.Tensor]]:
    """Read what `tensors_of` gave, among the other tensors of a checkpoint.

    Args:
        tensors: all of the checkpoint.
        parameters: those that the optimiser steps.
        optimizer: its name.

    Returns:
        The state for the optimiser's `load_state_dict`.

    Raises:
        ValueError: it does not fit the parameters.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith(_PREFIX):
            continue
        number, _, name = key.removeprefix(_PREFIX).partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise ValueError(f"there is no parameter {number}")
        if value.shape not in {torch.Size(()), parameters[int(number)].shape}:
            raise ValueError(f"{key} has another shape than its parameter")
        found.setdefault(int(number), {})[name] = value
    kind = _KINDS[optimizer]
    allowed = [kind.state, kind.state | {_MOMENTUM}] if kind.has_momentum else [kind.state]
    if any(values.keys() not in allowed for values in found.values()):
        raise ValueError(f"{optimizer} keeps other values")
    return found
