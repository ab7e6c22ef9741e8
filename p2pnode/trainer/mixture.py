"""A mixture-of-experts layer over experts that may fail, with a product-key gate.

One linear layer gives each sample a score for every coordinate of every grid dimension, and an
expert's score is the sum over its coordinates, so M1 + … + Mn outputs score M1 · … · Mn experts.
Beam search finds the k best live ones; all samples that chose the same expert travel in one call;
what comes back is averaged by softmax over the experts that answered. A sample whose experts have
all failed chooses again, among the others. `p2pnode.trainer.autograd` has the formulas. Source:
Ryabinin & Gusev 2020 (Learning@home), section 3.2.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn

from p2pnode.config.experts import Codec
from p2pnode.errors import (
    NoLiveExpertError,
    NonFiniteError,
    NotAMemberError,
    P2PNodeError,
    SchemaError,
    TensorTooLargeError,
)
from p2pnode.trainer.autograd import Answered, Gradients, Group, mix_experts
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall, ExpertSource, Scores
from p2pnode.wire.uids import Uid, check_prefix

# The caller can mend these, so they are raised as they are when they left samples unanswered.
_OUR_TENSORS: Final = (NonFiniteError, SchemaError, TensorTooLargeError)  # no expert takes them
_OURS_TO_MEND: Final = (*_OUR_TENSORS, NotAMemberError)


class MixtureOfExperts(nn.Module):
    """A layer whose experts are chosen for each sample, from wherever `experts` has them.

    Args:
        experts: finds and calls the experts.
        block: the layer's name; its experts are `block.i.j…`.
        grid: how many coordinates each dimension has.
        in_features: the size of the last dimension of the first input.
        k_best: how many experts a sample is sent to.
        k_min: how many must answer before stragglers are cut off.
        backward_k_min: the same for the backward calls.
        forward_timeout: seconds for the forward calls of one batch.
        backward_timeout: the same for the backward calls.
        timeout_after_k_min: seconds left for the others once every sample has `k_min` answers.
        allow_zero_outputs: give zeros for samples that no expert answered for, not an error, and
            no gradients where none answered in backward.
        detect_anomalies: refuse to send NaN or infinite values, and take an answer that has some
            as a failure of its expert.
        codec: how tensors travel, there and back.

    Attributes:
        gate: the linear layer that scores the experts.
        unanswered_samples: how many samples no expert answered for, so far.
        lost_gradients: for how many samples no expert answered in backward.
    """

    def __init__(
        self,
        experts: ExpertSource,
        block: str,
        *,
        grid: Sequence[int],
        in_features: int,
        k_best: int,
        k_min: int,
        backward_k_min: int,
        forward_timeout: float,
        backward_timeout: float,
        timeout_after_k_min: float,
        allow_zero_outputs: bool = False,
        detect_anomalies: bool = False,
        codec: Codec = "none",
    ) -> None:
        super().__init__()
        if not grid or min(grid) < 1:
            raise ValueError(f"a grid has at least one dimension of positive size, not {grid}")
        if not 1 <= min(k_min, backward_k_min) <= max(k_min, backward_k_min) <= k_best:
            raise ValueError(f"k_min and backward_k_min lie between 1 and k_best, {k_best}")
        self.block = check_prefix(block)
        self.grid = tuple(grid)
        self.k_best = k_best
        self.gate = nn.Linear(in_features, sum(grid))
        self.unanswered_samples = 0
        self.lost_gradients = 0
        self._experts = experts
        self._allow_zero_outputs = allow_zero_outputs
        self._like: torch.Tensor | None = None  # an answer without rows; before the first, None
        self._forward_policy = CallPolicy(
            timeout=forward_timeout,
            timeout_after_k_min=timeout_after_k_min,
            k_min=k_min,
            detect_anomalies=detect_anomalies,
            codec=codec,
        )
        self._backward_policy = CallPolicy(
            timeout=backward_timeout,
            timeout_after_k_min=timeout_after_k_min,
            k_min=backward_k_min,
            detect_anomalies=detect_anomalies,
            codec=codec,
        )

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Send each sample to its experts, and average what they answer.

        Args:
            inputs: the experts' input tensors, each (samples, …), at least one sample. The first
                is (samples, …, in_features) and decides which experts are chosen, by its mean
                over the dimensions between.

        Returns:
            What the experts put out, (samples, …).

        Raises:
            SchemaError, TensorTooLargeError: the inputs are not what the experts take.
            NonFiniteError: the gate's scores, or inputs that experts failed on, are not finite. In
                backward it is raised for gradients that are not.
            NoLiveExpertError: some samples have no live expert, or none answered in time. In
                backward it is raised when no expert answered for any sample.
            NotAMemberError: the experts refuse this trainer.
            NoPeersError: this trainer has lost all its peers.
        """
        self._check(inputs)
        logits = self.gate(inputs[0].flatten(1, -2).mean(1) if inputs[0].dim() > 2 else inputs[0])
        groups, answers = self._ask(self._split(logits), [each.detach() for each in inputs])
        answered = Answered(
            groups=groups,
            answers=answers,
            backward=self._call_back,
            like=inputs[0][:0].detach() if self._like is None else self._like,
        )
        return mix_experts(answered, self._score(logits, groups), inputs)

    def live_experts(self) -> list[str]:
        """List the names of the layer's experts that can be called now."""
        return self._experts.live_experts(self.block, self.grid)

    def extra_repr(self) -> str:
        """Describe the layer where the module is printed."""
        return f"{self.block}, grid={self.grid}, k_best={self.k_best}"

    # --- gating ---------------------------------------------------------------------------------

    def _check(self, inputs: Sequence[torch.Tensor]) -> None:
        features = self.gate.in_features
        first = inputs[0] if inputs else None
        if first is None or first.dim() < 2 or first.shape[-1] != features or not len(first):
            shape = None if first is None else tuple(first.shape)
            raise SchemaError(
                f"{self.block} takes at least one sample of {features} features, as in"
                f" (samples, {features}); given: {shape}"
            )
        if any(len(each) != len(first) for each in inputs):
            raise SchemaError(f"the inputs of {self.block} have different numbers of samples")

    def _split(self, logits: torch.Tensor) -> list[Scores]:
        """Return the scores of each grid dimension, for the search."""
        scores = logits.detach().float().cpu()
        if not torch.isfinite(scores).all():
            raise NonFiniteError(
                f"the gate of {self.block} gives NaN or infinite scores; has training diverged?"
            )
        return [part.numpy() for part in torch.split(scores, list(self.grid), dim=1)]

    def _score(self, logits: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
        """Return the scores of each sample's experts, with their way back to the gate.

        Returns:
            (samples, k) in the order of the groups' places; what stands in places that no group
            has means nothing.
        """
        columns = torch.zeros(len(logits), self.k_best, len(self.grid), dtype=torch.int64)
        sizes = torch.tensor((0, *self.grid[:-1])).cumsum(0)
        for group in groups:
            position = sizes + torch.tensor(Uid("run", group.name).coordinates)
            columns[group.samples.cpu(), group.places.cpu()] = position
        gathered = logits.gather(1, columns.flatten(1).to(logits.device))
        return gathered.view(columns.shape).sum(2)

    # --- calls ----------------------------------------------------------------------------------

    def _ask(
        self, scores: Sequence[Scores], inputs: Sequence[torch.Tensor]
    ) -> tuple[list[Group], list[Answer]]:
        """Call the best experts of each sample.

        Samples that none of theirs answered for choose again while there is time, among those
        that have not failed.

        Returns:
            The groups of samples that were answered for, and the answers.
        """
        policy = self._forward_policy
        until = self._experts.now() + policy.timeout
        waiting = list(range(len(inputs[0])))
        groups: list[Group] = []
        answers: list[Answer] = []
        failures: dict[str, P2PNodeError] = {}
        while waiting:
            chosen = self._experts.choose(
                self.block, [each[waiting] for each in scores], self.k_best
            )
            asked = _group(waiting, chosen, failures, inputs[0].device)
            if not asked:
                break
            done: set[int] = set()
            calls = [_call_of(group, inputs) for group in asked]
            for group, call, outcome in zip(
                asked, calls, self._experts.forward(calls, policy), strict=True
            ):
                if isinstance(outcome, Answer):
                    groups.append(group)
                    answers.append(outcome)
                    done.update(call.samples)
                else:
                    failures[group.name] = outcome
            waiting = [sample for sample in waiting if sample not in done]
            policy = replace(policy, timeout=until - self._experts.now())
            if policy.timeout <= 0 or any(isinstance(x, _OUR_TENSORS) for x in failures.values()):
                break
        if any(len(answer.tensors) != 1 for answer in answers):
            raise SchemaError(
                f"the experts of {self.block} give several tensors; a mixture has one"
            )
        self._like = next((each.tensors[0][:0] for each in answers), self._like)
        self.unanswered_samples += len(waiting)
        if waiting and not self._allow_zero_outputs:
            raise self._unanswered(len(waiting), len(inputs[0]), list(failures.values()))
        return groups, answers

    def _unanswered(
        self, missing: int, total: int, outcomes: Sequence[Answer | P2PNodeError]
    ) -> P2PNodeError:
        failures = [outcome for outcome in outcomes if isinstance(outcome, P2PNodeError)]
        for failure in failures:
            if isinstance(failure, _OURS_TO_MEND):
                return failure
        reason = f"the last failure: {failures[-1]}" if failures else "none is announced"
        error = NoLiveExpertError(
            f"no expert of {self.block} answered for {missing} of {total} samples; {reason}"
        )
        error.__cause__ = failures[-1] if failures else None
        return error

    def _call_back(
        self,
        groups: Sequence[Group],
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        answers: Sequence[Answer],
    ) -> list[Gradients | None]:
        calls = [
            replace(_call_of(group, inputs), gradients=(gradient,), answered_by=answer.by)
            for group, gradient, answer in zip(groups, gradients, answers, strict=True)
        ]
        outcomes = self._experts.backward(calls, self._backward_policy)
        reached: set[int] = set()
        asked: set[int] = set()
        for call, outcome in zip(calls, outcomes, strict=True):
            asked.update(call.samples)
            if isinstance(outcome, Answer):
                reached.update(call.samples)
        self.lost_gradients += len(asked - reached)
        if not reached and not self._allow_zero_outputs:
            raise self._unanswered(len(asked), len(asked), outcomes)
        return [outcome.tensors if isinstance(outcome, Answer) else None for outcome in outcomes]


def _group(
    samples: Sequence[int],
    chosen: Sequence[Sequence[tuple[str, float]]],
    left_out: Collection[str],
    device: torch.device,
) -> list[Group]:
    """Group samples by the experts chosen for them, but for those left out."""
    members: dict[str, tuple[list[int], list[int]]] = {}
    for sample, experts in zip(samples, chosen, strict=True):
        for place, (name, _) in enumerate(experts):
            if name not in left_out:
                rows, places = members.setdefault(name, ([], []))
                rows.append(sample)
                places.append(place)
    return [
        Group(
            name=name,
            samples=torch.tensor(rows, device=device),
            places=torch.tensor(places, device=device),
        )
        for name, (rows, places) in members.items()
    ]


def _call_of(group: Group, inputs: Sequence[torch.Tensor]) -> ExpertCall:
    return ExpertCall(
        name=group.name,
        inputs=tuple(each[group.samples] for each in inputs),
        samples=tuple(group.samples.tolist()),
    )


class RemoteMixtureOfExperts(MixtureOfExperts):
    """A mixture-of-experts layer whose experts are found in the DHT and live on other machines."""
