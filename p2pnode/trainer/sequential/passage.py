"""What a trainer remembers of a pass through a chain, to replay any stage of it elsewhere.

A stage's inputs are what the stage before put out. They are kept until the backward pass is over,
within a bound on their bytes: beyond it those of the oldest passes are let go, and computed again
by the hosts when they are needed. The inputs of the first stage are the caller's own tensors.
"""

import weakref
from collections import deque
from dataclasses import dataclass, field

import torch

from p2pnode.trainer.sequential.routing import Hop


@dataclass(slots=True, weakref_slot=True, eq=False)
class Stage:
    """One hop that was made, and what went into it; None when that is not kept."""

    hop: Hop
    inputs: torch.Tensor | None

    def release(self) -> None:
        """Let the inputs go."""
        self.inputs = None


@dataclass(slots=True, eq=False)
class Passage:
    """The stages that one micro-batch went through, in their order."""

    stages: list[Stage] = field(default_factory=list)


class Keeper:
    """Bounds what is kept of all passes together.

    Args:
        max_bytes: of stages' inputs.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._stages: deque[weakref.ref[Stage]] = deque()  # the oldest first

    @property
    def kept_bytes(self) -> int:
        """How much is kept now."""
        return sum(_size(each()) for each in self._stages)

    def keep(self, stage: Stage) -> None:
        """Keep a stage's inputs, and let older ones go where they are too many."""
        self._stages = deque(each for each in self._stages if _size(each()))
        self._stages.append(weakref.ref(stage))
        excess = self.kept_bytes - self._max_bytes
        while excess > 0:
            oldest = self._stages.popleft()()
            excess -= _size(oldest)
            if oldest is not None:
                oldest.release()


def _size(stage: Stage | None) -> int:
    return 0 if stage is None or stage.inputs is None else stage.inputs.nbytes
