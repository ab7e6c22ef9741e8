"""The trainer's blocking modules on a virtual clock.

`p2pnode.trainer` gives torch modules whose calls block until experts have answered. To run them in
a simulation, their code runs in a thread of its own, and never at the same time as trio: while it
computes, trio stands still, as if it computed inline, and while it waits for experts, trio runs and
virtual time passes. So each run is like the other, and the modules are the real ones.
"""

import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall, ExpertSource, Scores

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Done:
    """What was asked for has ended: its result, or what it raised."""

    result: Any = None
    error: BaseException | None = None

    def unwrap(self) -> Any:
        """Return the result, or raise."""
        if self.error is not None:
            raise self.error
        return self.result


class _AbandonedError(BaseException):
    """Ends work that nobody waits for any more; no handler of `Exception` may hold it up."""


class LockstepExperts(ExpertSource):
    """The experts of a run, called by work that `run` runs.

    Args:
        caller: makes the calls, in trio.
    """

    def __init__(self, caller: ExpertCaller) -> None:
        self._caller = caller
        self._requests: queue.SimpleQueue[Callable[[], Awaitable[Any]] | _Done]
        self._answers: queue.SimpleQueue[_Done]
        self._abandoned = False
        self._now = 0.0

    def now(self) -> float:
        """See `ExpertSource`: trio's time, which stands still while the work computes."""
        return self._now

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking code that calls these experts.

        Args:
            work: is run in a thread, which has ended when this returns, however it does.

        Returns:
            What `work` returns.
        """
        self._requests, self._answers, self._abandoned = (
            queue.SimpleQueue(),
            queue.SimpleQueue(),
            False,
        )
        self._now = trio.current_time()
        thread = threading.Thread(target=self._work, args=(work,), name="p2pnode lockstep")
        thread.start()
        try:
            while not isinstance(request := self._requests.get(), _Done):
                try:
                    answer = _Done(await request())
                except P2PNodeError as error:
                    answer = _Done(error=error)
                self._now = trio.current_time()
                self._answers.put(answer)
        except BaseException:
            self._abandoned = True
            self._answers.put(_Done(error=_AbandonedError()))
            raise
        finally:
            thread.join()
        result: T = request.unwrap()
        return result

    def choose(self, block: str, scores: Sequence[Scores], k: int) -> list[list[tuple[str, float]]]:
        """See `ExpertSource`."""
        return self._ask(lambda: self._caller.choose(block, scores, k))

    def forward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        return self._ask(lambda: self._caller.forward_all(calls, policy))

    def backward(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource`."""
        return self._ask(lambda: self._caller.backward_all(calls, policy))

    def live_experts(self, block: str, grid: Sequence[int]) -> list[str]:
        """See `ExpertSource`."""
        return self._ask(lambda: self._caller.live_experts(block, grid))

    def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Let trio make a call, and wait for it; in the thread."""
        if self._abandoned:
            raise _AbandonedError
        self._requests.put(call)
        result: T = self._answers.get().unwrap()
        return result

    def _work(self, work: Callable[[], Any]) -> None:
        try:
            done = _Done(work())
        except BaseException as error:  # noqa: BLE001  # it is raised where the work was asked for
            done = _Done(error=error)
        self._requests.put(done)
