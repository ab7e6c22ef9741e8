"""The same experts in this process, without a network: for comparison, and for tests.

Built from the same settings they start with the same weights as hosted ones, and take the same
optimiser steps, so a layer over them shows what the network changes: nothing but the failures.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch

from p2pnode.config import HostingSettings
from p2pnode.errors import P2PNodeError, UnknownExpertError
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall, ExpertSource, Scores
from p2pnode.wire.uids import Uid

_RUN: Final = "local"  # names do not say their run, and nobody asks which one it is


class LocalExperts(ExpertSource):
    """Experts in this process; the policies' timeouts mean nothing to them.

    Args:
        uids: the experts.
        settings: how to build them: layer, hidden_dim, seed, optimiser, …

    Raises:
        ConfigError: the settings do not fit.
    """

    def __init__(self, uids: Iterable[Uid], settings: HostingSettings) -> None:
        self._backends: dict[str, ExpertBackend] = {}
        for uid in uids:
            self._backends[uid.name] = build_backend(uid, settings)

    def backend(self, name: str) -> ExpertBackend:
        """Return one expert.

        Raises:
            UnknownExpertError: it is not here.
        """
        found = self._backends.get(name)
        if found is None:
            raise UnknownExpertError(f"{name} is not among the local experts")
        return found

    def choose(self, block: str, scores: Sequence[Scores], k: int) -> list[list[tuple[str, float]]]:
        """See `ExpertSource`: scores them all; beam search finds the same on a full grid."""
        names = self.live_experts(block, [step.shape[1] for step in scores])
        totals = np.zeros((len(scores[0]), len(names)))
        for column, name in enumerate(names):
            coordinates = Uid(_RUN, name).coordinates
            for step, coordinate in zip(scores, coordinates, strict=True):
                totals[:, column] += step[:, coordinate]
        order = np.argsort(-totals, axis=1, kind="stable")[:, :k]
        return [
            [(names[column], float(totals[row, column])) for column in columns]
            for row, columns in enumerate(order.tolist())
        ]

    def forward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        del policy
        return [self._outcome(call, ExpertBackend.forward, call.inputs) for call in calls]

    def backward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        del policy
        return [
            self._outcome(call, ExpertBackend.backward, call.inputs, call.gradients)
            for call in calls
        ]

    def live_experts(self, block: str, grid: Sequence[int]) -> list[str]:
        """See `ExpertSource`."""
        uids = (Uid(_RUN, name) for name in self._backends)
        found = [u for u in uids if u.block == block and len(u.coordinates) == len(grid)]
        return [uid.name for uid in sorted(found, key=lambda uid: uid.coordinates)]

    def _outcome(
        self, call: ExpertCall, method: Callable[..., list[torch.Tensor]], *tensors: Any
    ) -> Answer | P2PNodeError:
        try:
            return Answer(tensors=tuple(method(self.backend(call.name), *tensors)))
        except P2PNodeError as error:
            return error
