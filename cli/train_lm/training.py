"""The thin trainer: what it draws, steps and measures; all blocks are elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli.train_lm.text import Batches
from p2pnode import RemoteLanguageModel
from p2pnode.errors import CheckpointError, NotAMemberError, RemoteError

_TOLERATED: Final = 3  # lost steps in a row, before the training gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of training; `loss` is None where it was lost, and `error` says why."""

    number: int  # from 1
    loss: float | None  # nats a byte, on the batch
    error: str | None = None


def train(
    model: RemoteLanguageModel, batches: Batches, *, steps: int, learning_rate: float
) -> Iterator[Step]:
    """Train, yielding after each step; the caller may do as it likes between two of them.

    Raises:
        RemoteError: several steps in a row were lost.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    lost = 0
    for number in range(1, steps + 1):
        optimizer.zero_grad()
        try:
            loss = model.loss(batches.draw())
            torch.autograd.backward(loss)
        except RemoteError as error:
            lost += 1
            if lost == _TOLERATED or isinstance(error, NotAMemberError):
                raise
            yield Step(number=number, loss=None, error=str(error))
            continue
        lost = 0
        optimizer.step()
        yield Step(number=number, loss=loss.item())


def evaluate(model: RemoteLanguageModel, windows: torch.Tensor) -> float:
    """Return the loss on held-out windows, in nats a byte; nothing is learnt.

    Raises:
        RemoteError: a block has no live host.
    """
    with torch.no_grad():
        return float(model.loss(windows))


def load_ends(model: RemoteLanguageModel, path: Path | None) -> bool:
    """Go on with the ends that an earlier training saved; False when there are none.

    Raises:
        CheckpointError: they cannot be read, or are those of another model.
    """
    if path is None or not path.exists():
        return False
    try:
        model.ends.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot go on with {path}: {error}; it must be of the same --model"
        ) from error
    return True


def save_ends(model: RemoteLanguageModel, path: Path | None) -> None:
    """Save the ends, whole or not at all.

    Raises:
        CheckpointError: they cannot be written.
    """
    if path is None:
        return
    written = path.with_name(path.name + ".new")
    try:
        save_file(model.ends.state_dict(), written)
        written.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error
