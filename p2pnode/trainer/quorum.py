"""Waiting for the experts of one layer: until enough have answered, and a little longer.

Pure bookkeeping (`Quorum`) and the thin trio shell around it (`gather`).
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.wire.peer_id import PeerId


class Quorum:
    """Whether every sample has `k_min` answers, or nothing more to wait for."""

    def __init__(self, calls: Sequence[ExpertCall], k_min: int) -> None:
        self._k_min = k_min
        self._answers: Counter[int] = Counter()
        self._under_way: Counter[int] = Counter()
        for call in calls:
            self._under_way.update(call.samples)
        self._unsettled = set(self._under_way)

    def receive(self, call: ExpertCall, *, answered: bool) -> bool:
        """Take in a finished call; True when no sample has to wait any more."""
        for sample in call.samples:
            self._under_way[sample] -= 1
            self._answers[sample] += answered
            if self._answers[sample] >= self._k_min or not self._under_way[sample]:
                self._unsettled.discard(sample)
        return not self._unsettled


@dataclass(slots=True)
class Attempt:
    """Which host a call has asked last; None before the first."""

    peer_id: PeerId | None = None


async def gather(
    calls: Sequence[ExpertCall],
    make: Callable[[ExpertCall, Attempt], Awaitable[Answer]],
    policy: CallPolicy,
) -> tuple[list[Answer | P2PNodeError | None], list[PeerId]]:
    """Make all calls at once, and cut off the stragglers.

    Args:
        calls: what to call.
        make: makes one call, notes in the attempt whom it waits for, and raises `P2PNodeError`.
        policy: when to stop waiting; each call keeps the policy's timeout itself.

    Returns:
        For each call its answer, its error, or None if it was cut off; and the hosts that were
        cut off.
    """
    outcomes: list[Answer | P2PNodeError | None] = [None] * len(calls)
    attempts = [Attempt() for _ in calls]
    quorum = Quorum(calls, policy.k_min)
    settled = False

    async def run(number: int, call: ExpertCall) -> None:
        nonlocal settled
        try:
            outcome: Answer | P2PNodeError = await make(call, attempts[number])
        except P2PNodeError as error:
            outcome = error
        outcomes[number] = outcome
        if not settled and quorum.receive(call, answered=isinstance(outcome, Answer)):
            settled = True
            scope.deadline = trio.current_time() + policy.timeout_after_k_min

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for number, call in enumerate(calls):
                nursery.start_soon(run, number, call)
    late = {
        attempt.peer_id
        for attempt, outcome in zip(attempts, outcomes, strict=True)
        if outcome is None and attempt.peer_id is not None
    }
    return outcomes, sorted(late)
