"""A chain of blocks as blocking calls: the bridge from torch modules to the trio thread."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from p2pnode.trainer.portal import Portal
from p2pnode.trainer.remote import PortalBound, refuse_anomalies
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sequential.passage import Passage
from p2pnode.trainer.sequential.session import ChainSession
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

    def session(self, length: int, policy: CallPolicy) -> "RemoteSession":
        """See `Chain.session`."""
        return RemoteSession(self._portal, self._chain.session(length, policy))

    def _call(self, inputs: torch.Tensor, *gradients: torch.Tensor) -> ExpertCall:
        return ExpertCall(name=self.name, inputs=(inputs,), gradients=gradients)


class RemoteSession:
    """Sequences that grow position by position through remote blocks; `with` ends it.

    The blocks' hosts keep the keys and values of the positions they have seen, so a step sends and
    computes the new ones only. When a host dies, another one is sent what it had seen.
    """

    def __init__(self, portal: Portal[Any], session: ChainSession) -> None:
        self._portal = portal
        self._session = session

    @property
    def position(self) -> int:
        """How many positions the blocks have seen."""
        return self._session.position

    def step(
        self,
        hidden: torch.Tensor,
        *,
        position: int | None = None,
        order: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Send hidden states of the next positions through the blocks; nothing is learnt.

        Args:
            hidden: of shape (rows, positions, hidden_size); the first step decides the rows.
            position: of the first of them, by default where the last step ended. An earlier one
                goes back: what was sent behind it is forgotten.
            order: for each row the one it goes on from, by default itself; for beam search.

        Returns:
            What the last block gives, of the same shape.

        Raises:
            SchemaError, TensorTooLargeError: the step does not fit; the session goes on.
            ConfigError: what was sent would be more than `sequential.kept_bytes`.
            NoLiveExpertError: a block has no live host.
            RemoteError: what the last host tried answered.
        """
        answer = self._portal.call(self._session.step, hidden.detach().cpu(), position, order)
        return answer.to(hidden.device)

    def close(self) -> None:
        """End the session; the hosts free what they keep. A second time does nothing."""
        self._portal.call(self._session.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
