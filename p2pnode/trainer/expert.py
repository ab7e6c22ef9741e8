"""One remote expert as a torch module."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from p2pnode.config.experts import Codec
from p2pnode.errors import SchemaError
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.trainer.autograd import call_expert
from p2pnode.trainer.remote import RemoteExperts
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.wire.uids import Uid

_ANY_RUN: Final = "run"


class RemoteExpert(nn.Module):
    """An expert on another machine, used like a local module.

    Calling it computes the outputs on one of the expert's live hosts. Backward through them steps
    the expert's own optimiser there and gives the gradients of the inputs; it works as well when
    no input requires a gradient. Under `torch.no_grad()` the expert does not learn.

    Args:
        experts: the connection to the run's experts.
        name: the expert, `ffn0.1.2`.
        forward_timeout: seconds for one forward call, over all hosts tried.
        backward_timeout: the same for a backward call.
        detect_anomalies: refuse to send NaN or infinite values, and take an answer that has some
            as a failure of its host.
        codec: how tensors travel, there and back.

    Raises:
        InvalidUidError: no expert can have this name.
    """

    def __init__(
        self,
        experts: RemoteExperts,
        name: str,
        *,
        forward_timeout: float,
        backward_timeout: float,
        detect_anomalies: bool = False,
        codec: Codec = "none",
    ) -> None:
        super().__init__()
        self.name = Uid(_ANY_RUN, name).name  # checks it
        self._experts = experts
        self._forward_policy = CallPolicy(
            timeout=forward_timeout, detect_anomalies=detect_anomalies, codec=codec
        )
        self._backward_policy = CallPolicy(
            timeout=backward_timeout, detect_anomalies=detect_anomalies, codec=codec
        )

    @property
    def info(self) -> ExpertInfo:
        """What the expert takes and gives; asked for once.

        Raises:
            NoLiveExpertError: no live host is known.
            RemoteError: what the last host tried answered.
        """
        return self._experts.info(self.name, self._forward_policy.timeout)

    def forward(
        self, *inputs: torch.Tensor, **keywords: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Compute the outputs; one tensor, or a tuple when the expert gives several.

        Raises:
            SchemaError, TensorTooLargeError: the tensors are not what the expert takes; nothing
                was sent.
            NonFiniteError: an input holds NaN or infinite values; with `detect_anomalies` it was
                not sent, and otherwise the expert failed on it.
            NoLiveExpertError: no live host is known.
            RemoteError: what the last host tried answered.
        """
        outputs = call_expert(self._call, self._call_back, self._in_order(inputs, keywords))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        """Name the expert where the module is printed."""
        return self.name

    def _in_order(
        self, inputs: Sequence[torch.Tensor], keywords: dict[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Line the tensors up as the expert's schema has them."""
        if not keywords:
            return list(inputs)  # the schema is checked where the call is made
        expected = self.info.keywords
        if set(keywords) != set(expected):
            wanted = f"the keywords {', '.join(expected)}" if expected else "no keywords"
            given = ", ".join(sorted(keywords)) or "none"
            raise SchemaError(f"{self.name} takes {wanted}; given: {given}")
        return [*inputs, *(keywords[name] for name in expected)]

    def _call(self, inputs: Sequence[torch.Tensor]) -> Answer:
        call = ExpertCall(name=self.name, inputs=tuple(inputs))
        return self._experts.forward_one(call, self._forward_policy)

    def _call_back(
        self, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], answer: Answer
    ) -> Sequence[torch.Tensor]:
        call = ExpertCall(
            name=self.name,
            inputs=tuple(inputs),
            gradients=tuple(gradients),
            answered_by=answer.by,
        )
        return self._experts.backward_one(call, self._backward_policy).tensors
