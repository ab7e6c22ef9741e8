"""The run's experts as blocking calls: the bridge from torch modules to the trio thread."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Self

from p2pnode.errors import P2PNodeError
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.portal import Portal
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall, ExpertSource, Scores, anomaly_in


class PortalBound:
    """Something that lives in the trio thread, held by modules that do not.

    Copies are the same object: a model that is deep-copied goes on calling the same experts.
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a connection to remote experts cannot be pickled; save the model's state_dict(), and"
            " connect where it is loaded"
        )


class RemoteExperts(PortalBound, ExpertSource):
    """Calls the experts of one run, from any thread but trio's."""

    def __init__(self, portal: Portal[Any], caller: ExpertCaller) -> None:
        self._portal = portal
        self._caller = caller

    def choose(self, block: str, scores: Sequence[Scores], k: int) -> list[list[tuple[str, float]]]:
        """See `ExpertSource`."""
        return self._portal.call(self._caller.choose, block, scores, k)

    def forward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        refuse_anomalies(calls, policy)
        return self._portal.call(self._caller.forward_all, calls, policy)

    def backward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        refuse_anomalies(calls, policy)
        return self._portal.call(self._caller.backward_all, calls, policy)

    def live_experts(self, block: str, grid: Sequence[int]) -> list[str]:
        """See `ExpertSource`."""
        return self._portal.call(self._caller.live_experts, block, grid)

    def info(self, name: str, timeout: float) -> ExpertInfo:
        """Return what an expert takes and gives."""
        return self._portal.call(self._caller.info, name, timeout)

    def forward_one(self, call: ExpertCall, policy: CallPolicy) -> Answer:
        """Compute one expert's outputs."""
        refuse_anomalies([call], policy)
        return self._portal.call(self._caller.forward, call, policy)

    def backward_one(self, call: ExpertCall, policy: CallPolicy) -> Answer:
        """Step one expert's optimiser."""
        refuse_anomalies([call], policy)
        return self._portal.call(self._caller.backward, call, policy)


def refuse_anomalies(calls: Iterable[ExpertCall], policy: CallPolicy) -> None:
    """Check what is to be sent, where the policy asks for it.

    Raises:
        NonFiniteError: it holds NaN or infinite values.
    """
    if not policy.detect_anomalies:
        return
    for call in calls:
        if (anomaly := anomaly_in(call)) is not None:
            raise anomaly
