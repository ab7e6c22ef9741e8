"""A chain of blocks as blocking calls: the bridge from torch modules to the trio thread."""

from collections.abc import Sequence
from typing import Any

import torch

from p2pnode.trainer.portal import Portal
from p2pnode.trainer.remote import PortalBound, refuse_anomalies
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sequential.passage import Passage
from p2pnode.trainer.sources import CallPolicy, ExpertCall


class RemoteChain(PortalBound):
    """Runs micro-batches through a chain, from any thread but trio's."""

    def __init__(self, portal: Portal[Any], chain: Chain) -> None:
        self._portal = portal
        self._chain = chain

    @property
    def name(self) -> str:
        """The pattern of the chain's blocks."""
        return self._chain.name

    def forward(
        self, batches: Sequence[torch.Tensor], policy: CallPolicy, *, keep: bool
    ) -> list[tuple[torch.Tensor, Passage]]:
        """See `Chain.forward`."""
        refuse_anomalies((self._call(each) for each in batches), policy)
        return self._portal.call(self._chain.forward, batches, policy, keep)

    def backward(
        self,
        passages: Sequence[Passage],
        batches: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
    ) -> list[torch.Tensor]:
        """See `Chain.backward`."""
        refuse_anomalies(map(self._call, batches, gradients), policy)
        return self._portal.call(self._chain.backward, passages, batches, gradients, policy)

    def _call(self, inputs: torch.Tensor, *gradients: torch.Tensor) -> ExpertCall:
        return ExpertCall(name=self.name, inputs=(inputs,), gradients=gradients)
