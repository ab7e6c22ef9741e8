"""Adding up the gradients of steps with the other peers of their groups, beside all else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
import trio

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import (
    AveragingError,
    ConfigError,
    ExpertFailedError,
    OverloadedError,
    P2PNodeError,
    StepLostError,
)
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.parts import no_gradients
from p2pnode.experts.states import all_finite
from p2pnode.swarm.averaging.group import Group, Member, Sum
from p2pnode.swarm.averaging.round import Reduced
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.splitting.core import Plan, Turn
from p2pnode.swarm.splitting.experts import SplitExperts, digest_of

# Of a caller's patience: so a peer says in time that it waited for another one in vain, and only
# that one counts as lost.
_SHARE_OF_PATIENCE: Final = 0.8


@dataclass(slots=True, eq=False)
class _Addition:
    """What becomes of one plan."""

    plan: Plan
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)  # there is a sum, or a failure
    is_reduced: bool = False
    failure: P2PNodeError | None = None


class Sums:
    """The sums that are wanted here, while `run` runs.

    Args:
        settings: timeouts.
        experts: what computes.
        reducer: adds up with the other peers of a group.
        on_over: told when a sum that has begun is here, or has failed.
    """

    def __init__(
        self,
        settings: SplittingSettings,
        experts: SplitExperts,
        reducer: AllReduce,
        on_over: Callable[[Turn], None],
    ) -> None:
        self._settings = settings
        self._experts = experts
        self._reducer = reducer
        self._on_over = on_over
        self._additions: dict[Turn, _Addition] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Add up what is to be added up, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(trio.sleep_forever)
            task_status.started()

    def begin(self, turn: Turn) -> None:
        """Begin to add up, if all that it takes is here and it has not begun.

        The turn's lease does not run until `on_over` is told.
        """
        plan = turn.begin_sum()
        if plan is not None and self._nursery is not None:
            self.forget(turn)
            addition = self._additions[turn] = _Addition(plan)
            turn.calls += 1
            self._nursery.start_soon(self._add_up, turn, addition)

    def forget(self, turn: Turn) -> None:
        """Let go of a turn that has ended, or whose sum is wanted no more."""
        addition = self._additions.pop(turn, None)
        if addition is not None and not addition.over.is_set():
            addition.scope.cancel()

    async def wait(self, turn: Turn, deadline: float) -> bytes:
        """Wait for the sum of a turn's plan.

        Args:
            turn: whose sum has begun.
            deadline: of the caller, on trio's clock.

        Returns:
            Its digest.

        Raises:
            StepLostError: the step is over, or has gone on.
            OverloadedError: a peer of the group was lost; try again without it.
            ExpertFailedError: the sum is not finite.
        """
        addition = self._additions.get(turn)
        if addition is None:
            raise StepLostError("this step is over")
        now = trio.current_time()
        with trio.move_on_at(now + (deadline - now) * _SHARE_OF_PATIENCE):
            await addition.over.wait()
            if addition.failure is not None:
                raise addition.failure
            return turn.digest
        addition.scope.cancel()
        raise OverloadedError(f"the gradients of {turn.uid.name} were not added up in time")

    async def _add_up(self, turn: Turn, addition: _Addition) -> None:
        """Add the gradients up, and stay until the other peers have the sum, too."""
        failure: P2PNodeError = _gone_on()
        try:
            with addition.scope:
                total = await self._reduce(turn, addition)
                if total is not None:
                    await self._receive(turn, addition, total)
        except P2PNodeError as error:
            failure = error
        finally:
            if not addition.is_reduced:
                self._end(turn, addition, failure)

    async def _reduce(self, turn: Turn, addition: _Addition) -> list[torch.Tensor] | None:
        """Return the sum, or None if it was received already."""
        uid, plan = turn.uid, addition.plan
        ours = turn.kept or await self._experts.compute(uid, no_gradients)
        if len(plan.group) == 1:
            return [each.clone() for each in ours]  # the step uses it up

        def receive(reduced: Reduced) -> None:
            assert self._nursery is not None, "it runs this round"
            addition.is_reduced = True
            self._nursery.start_soon(self._receive, turn, addition, reduced.tensors)

        try:
            reduced = await self._reducer.reduce(
                Group(
                    run_id=uid.run,
                    round_id=turn.key + plan.attempt.to_bytes(1, "big"),
                    members=tuple(Member(peer_id=each) for each in plan.group),
                    codec=plan.codec,
                    aggregator=Sum(),
                ),
                ours,
                quorum=len(plan.group),
                timeout=self._settings.reduce_timeout,
                on_result=receive,
            )
        except (AveragingError, ConfigError) as error:
            raise OverloadedError(
                f"the gradients of {uid.name} were not added up: {error}"
            ) from error
        return None if addition.is_reduced else reduced.tensors

    async def _receive(self, turn: Turn, addition: _Addition, total: list[torch.Tensor]) -> None:
        """Take the sum, if it is one that the optimiser can step with."""

        def look(_expert: ExpertBackend) -> bytes:
            return digest_of(total) if all_finite(total) else b""

        addition.is_reduced = True
        failure: P2PNodeError | None = _gone_on()
        try:
            digest = await self._experts.compute(turn.uid, look)
            if not digest:
                raise ExpertFailedError(
                    f"the gradients of {turn.uid.name} add up to no finite numbers"
                )
            turn.receive_total(addition.plan, total, digest)
            failure = None
        except P2PNodeError as error:
            failure = error
        finally:
            self._end(turn, addition, failure)

    def _end(self, turn: Turn, addition: _Addition, failure: P2PNodeError | None) -> None:
        addition.failure = failure
        addition.over.set()
        turn.calls -= 1
        self._on_over(turn)


def _gone_on() -> StepLostError:
    return StepLostError("this step goes on without this sum")
