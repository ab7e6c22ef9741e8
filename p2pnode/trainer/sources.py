"""Where a mixture finds and calls its experts: the same layer runs over remote and local ones."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2pnode.config.experts import Codec
from p2pnode.errors import NonFiniteError, P2PNodeError
from p2pnode.experts.states import all_finite
from p2pnode.rpc.age import Age

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCall:
    """One expert's part of a layer's batch: all samples that chose it travel in one call."""

    name: str  # `ffn0.1.2`, or the first of a span of layers
    inputs: tuple[torch.Tensor, ...]  # each (rows, …)
    samples: tuple[int, ...] = ()  # which rows of the layer's batch these are
    gradients: tuple[torch.Tensor, ...] = ()  # of the outputs, in a backward call
    # In a backward call, `Answer.by` of its forward call; in a forward call, who is asked first.
    answered_by: Any = None
    span: int = 1  # so many consecutive layers are called as one
    trace: bytes = b""  # by which logs tell of it, wherever it is tried; its maker gives one
    age: Age | None = None  # told which weights compute it; of backward, what forward met
    wants_gradients: bool = True  # of the inputs, in a backward call; else its answer is empty


def anomaly_in(call: ExpertCall) -> NonFiniteError | None:
    """Return the error for a call whose tensors hold NaN or infinite values, or None."""
    for what, tensors in (("an input", call.inputs), ("a gradient", call.gradients)):
        if not all_finite(tensors):
            return NonFiniteError(
                f"{what} for {call.name} holds NaN or infinite values; lower the learning"
                " rate, or look for the first layer that puts them out"
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an expert gave: outputs in forward, gradients of the inputs in backward."""

    tensors: tuple[torch.Tensor, ...]
    by: Any = None  # which host it was; only the source knows what it means


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPolicy:
    """How long to wait for the experts of one layer.

    Once every sample has `k_min` answers (or nothing more to wait for), the rest get
    `timeout_after_k_min` more seconds, and no call gets more than `timeout`.
    """

    timeout: float
    timeout_after_k_min: float = 0.0
    k_min: int = 1
    detect_anomalies: bool = False
    codec: Codec = "none"  # how tensors travel, there and back


class ExpertSource(ABC):
    """Finds and calls the experts of mixture layers."""

    def now(self) -> float:
        """Return the time, in seconds, of the clock that calls are timed by."""
        return time.monotonic()

    @abstractmethod
    def choose(self, block: str, scores: Sequence[Scores], k: int) -> list[list[tuple[str, float]]]:
        """Choose the best live experts for each sample.

        Args:
            block: the layer, `ffn0`.
            scores: for each grid dimension i, scores of shape (samples, grid[i]); an expert's
                score is the sum over its coordinates.
            k: the most experts for one sample.

        Returns:
            For each sample up to `k` names with their scores, the best first.
        """

    @abstractmethod
    def forward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """Call the experts at once; an answer or an error for each call, in their order."""

    @abstractmethod
    def backward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """Step the experts' optimisers; gradients of the inputs or an error for each call."""

    @abstractmethod
    def live_experts(self, block: str, grid: Sequence[int]) -> list[str]:
        """List the names of a block's experts that can be called now."""
