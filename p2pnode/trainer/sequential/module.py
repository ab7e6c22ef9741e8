"""Consecutive blocks on other machines as one torch module."""

from collections.abc import Sequence

import torch
from torch import nn

from p2pnode.config.experts import Codec
from p2pnode.errors import SchemaError
from p2pnode.trainer.autograd import call_expert
from p2pnode.trainer.sequential.remote import RemoteChain, RemoteSession
from p2pnode.trainer.sources import Answer, CallPolicy


class RemoteSequential(nn.Module):
    """A stack of blocks that other machines host, used like a local `nn.Sequential`.

    Calling it sends the batch through the cheapest chain of live hosts. Backward through what it
    gives steps each block's own optimiser on its host, and gives the gradients of the batch; it
    works as well when the batch requires no gradient. Under `torch.no_grad()` nothing is learnt.
    A host that dies in either is replaced by another one, from the inputs that were kept.

    A batch can be split into micro-batches, which are in flight at the same time, so that all
    stages compute at once. Each micro-batch's backward pass steps the hosts' optimisers, where
    calls that meet in a host's queue are joined to one step. So a batch of n micro-batches makes
    up to n steps on a part of its rows each, as n smaller batches would; with `micro_batches=1` it
    is one step. The gradients of the batch are those of the whole batch, but that a block's later
    micro-batches meet weights that earlier ones have moved.

    Args:
        chain: the connection to the blocks.
        micro_batches: into how many parts a batch is split, along its first dimension.
        forward_timeout: seconds for the forward pass of one micro-batch, over all hosts tried.
        backward_timeout: the same for backward.
        detect_anomalies: refuse to send NaN or infinite values, and take an answer that has some
            as a failure of its host.
        codec: how tensors travel, there and back.

    Raises:
        ValueError: `micro_batches` is not positive.
    """

    def __init__(
        self,
        chain: RemoteChain,
        *,
        micro_batches: int,
        forward_timeout: float,
        backward_timeout: float,
        detect_anomalies: bool = False,
        codec: Codec = "none",
    ) -> None:
        super().__init__()
        if micro_batches < 1:
            raise ValueError(f"a batch is split into one micro-batch or more, not {micro_batches}")
        self.micro_batches = micro_batches
        self._chain = chain
        self._forward_policy = CallPolicy(
            timeout=forward_timeout, detect_anomalies=detect_anomalies, codec=codec
        )
        self._backward_policy = CallPolicy(
            timeout=backward_timeout, detect_anomalies=detect_anomalies, codec=codec
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run a batch through the blocks.

        Args:
            inputs: what the first block takes, (rows, …), at least one row.

        Returns:
            What the last block gives.

        Raises:
            SchemaError, TensorTooLargeError: the batch is not what the blocks take; it was not
                sent.
            NonFiniteError: the batch holds NaN or infinite values; with `detect_anomalies` it was
                not sent, and otherwise a block failed on it.
            NoLiveExpertError: a block has no live host.
            NotAMemberError: the hosts refuse this trainer.
            NoPeersError: this trainer has lost all its peers.
            RemoteError: what the last host tried answered.
        """
        if not inputs.dim() or not len(inputs):
            raise SchemaError(f"{self._chain.name} takes at least one row; none was given")
        keep = torch.is_grad_enabled()

        def run(tensors: Sequence[torch.Tensor]) -> Answer:
            found = self._chain.forward(self._split(tensors[0]), self._forward_policy, keep=keep)
            outputs = torch.cat([output for output, _ in found])
            return Answer(tensors=(outputs,), by=[passage for _, passage in found])

        (outputs,) = call_expert(run, self._call_back, [inputs])
        return outputs

    def session(self, max_length: int) -> RemoteSession:
        """Begin sequences of up to `max_length` positions, for generation: use it in a `with`.

        Only blocks of language models have sessions.

        Raises:
            ValueError: `max_length` is not positive.
        """
        if max_length < 1:
            raise ValueError(f"a session has room for one position or more, not {max_length}")
        return self._chain.session(max_length, self._forward_policy)

    def extra_repr(self) -> str:
        """Name the blocks where the module is printed."""
        return f"{self._chain.name}, micro_batches={self.micro_batches}"

    def _call_back(
        self, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], answer: Answer
    ) -> Sequence[torch.Tensor]:
        found = self._chain.backward(
            answer.by, self._split(inputs[0]), self._split(gradients[0]), self._backward_policy
        )
        return [torch.cat(found)]

    def _split(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        return batch.tensor_split(min(self.micro_batches, len(batch)))
