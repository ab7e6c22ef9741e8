"""One layer called as a whole swarm: its rows split over the peers, and one step of them all.

*Forward* sends each peer its rows. The answers must be of one version of the weights: where they
are not, as a step was taken meanwhile or a peer is behind, the odd ones are computed again.

*Backward* is a step. Each peer computes the gradients of its rows, those that computed them forward
if they can, and keeps those of the weights. As soon as a peer has all its rows, it adds up what it
keeps with the others, while the gradients of the inputs are on their way to the trainer. He goes on
with the layer before; beside that, when all peers have the sum (prepare), all take it (commit).
The next forward call goes out at once, too, and waits at each peer for its step.

The rows of a peer that fails go to the others, and it is left out of the step; it catches up with
them later (`p2pnode.swarm.splitting.settling`). A step counts as taken when one peer has taken it,
since the others then do so, too, or catch up.

A step has its turn at each peer. It is asked for with the parts, and refused where another caller's
step has it. Whoever is refused gives up all turns that he has, and asks again for one after the
other, in an order that all callers share: so nobody waits for the other in a circle.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
import trio

from p2pnode.config import Settings
from p2pnode.errors import DeadlineExceededError, P2PNodeError, StepLostError, StepUnderWayError
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.swarm.splitting.client import SplitClient
from p2pnode.trainer.judged import JudgedClient
from p2pnode.trainer.sources import Answer, CallPolicy
from p2pnode.trainer.splitting.parts import Parts
from p2pnode.trainer.splitting.peers import PeerCalls
from p2pnode.trainer.splitting.shares import Rows
from p2pnode.trainer.splitting.stepping import Stepping
from p2pnode.trainer.splitting.work import Spans, Step, Work
from p2pnode.wire.uids import Uid

_STEPS_IN_ORDER: Final = 16  # of a layer, after one has met those of another caller


class SplitCaller:
    """Calls experts of one run, each as the whole swarm of its peers, while `run` runs.

    Args:
        judged: chooses peers, and judges them by how their calls end.
        settings: limits.
    """

    def __init__(self, judged: JudgedClient, *, settings: Settings) -> None:
        splitting = settings.splitting
        client = SplitClient(judged.client.access, settings.rpc, Transcoder(settings.rpc))
        peers = PeerCalls(judged, client, splitting.question_timeout)
        self._run_id = judged.run_id
        self._parts = Parts(judged, peers, splitting)
        self._stepping = Stepping(judged, peers, self._parts, splitting)
        self._last: dict[Uid, Step] = {}  # of each layer, unless it is over
        self._lost: dict[Uid, P2PNodeError] = {}  # why steps were not taken; not told yet
        self._in_order: dict[Uid, int] = {}  # so many steps do not try to begin everywhere at once
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish steps beside the calls, until cancelled.

        What is under way then, the peers settle among themselves: call `settle` before.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(trio.sleep_forever)
            task_status.started()

    async def forward(
        self, name: str, inputs: Sequence[torch.Tensor], policy: CallPolicy
    ) -> Answer:
        """Compute an expert's outputs, each peer of its swarm those of some rows.

        They are those of the weights after all steps whose `backward` has returned.

        Raises:
            StepLostError: such a step was not taken, or nobody knows; it is told once.
            SchemaError, TensorTooLargeError: the inputs do not fit; they were not sent.
            NonFiniteError: the codec cannot carry them.
            NoLiveExpertError: no live peer is known.
            RemoteError: what the last peer tried answered.
        """
        uid = Uid.parse(name, self._run_id)
        with _within(policy, f"the forward call of {name}"):
            self._tell_lost(uid)
            step = self._last.get(uid)
            work = await self._parts.begin(uid, inputs, (), policy)
            if step is not None and step.step_id:
                work.after = step
            waiting = [Rows(0, work.rows)]
            while waiting:
                parts = self._parts.assign(work, waiting)
                await self._parts.compute(work, parts, self._parts.compute_forward)
                waiting = await self._parts.take_odd(work)
            if work.after is not None:
                await work.after.over.wait()
                self._tell_lost(uid)
            return Answer(tensors=work.answer(), by=work.spans())

    async def backward(
        self,
        name: str,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
        answered_by: Spans,
    ) -> Answer:
        """Begin one step of an expert at all peers of its swarm, and give the inputs' gradients.

        The step ends beside what the caller does next. If it is not taken, then the next call of
        the expert tells, or `settle`.

        Args:
            name: the expert.
            inputs: those of the forward call.
            gradients: of its outputs.
            policy: the timeout of the whole step, and the codec.
            answered_by: `Answer.by` of the forward call; rows go to the same peers again.

        Raises:
            SchemaError, TensorTooLargeError: the tensors do not fit; they were not sent.
            NonFiniteError: the codec cannot carry them.
            NoLiveExpertError: no live peer is known.
            StepLostError: an earlier step was not taken, or nobody knows; this one has not begun.
            RemoteError: what the last peer tried answered; the step is not taken.
        """
        uid = Uid.parse(name, self._run_id)
        before, step = self._last.get(uid), Step()
        self._last[uid] = step
        try:
            with _within(policy, f"the step of {name}"):
                if before is not None:
                    await before.over.wait()
                self._tell_lost(uid)
                work = await self._compute(uid, inputs, gradients, policy, answered_by)
        except BaseException:
            self._end(uid, step)
            raise
        assert self._nursery is not None, "`run` runs while calls are made"
        step.step_id = work.step_id
        self._nursery.start_soon(self._finish, work, step)
        return Answer(tensors=work.answer(), by=work.spans())

    async def settle(self) -> None:
        """Wait until all steps whose `backward` has returned are over.

        Raises:
            StepLostError: one was not taken, or nobody knows; it is told once.
        """
        for uid, step in list(self._last.items()):
            if step.step_id:
                await step.over.wait()
            self._tell_lost(uid)
        for uid in list(self._lost):
            self._tell_lost(uid)

    async def _compute(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
        answered_by: Spans,
    ) -> Work:
        """Do of a step what its caller waits for."""
        while True:
            work = await self._parts.begin(uid, inputs, gradients, policy)
            left = self._in_order.get(uid, 0)
            work.now = not left
            self._in_order[uid] = max(0, left - 1)
            try:
                await self._stepping.compute(work, answered_by)
            except StepUnderWayError:
                await self._stepping.abort(work)
                if not work.now:
                    raise
                self._in_order[uid] = _STEPS_IN_ORDER
            except BaseException:
                await self._stepping.abort(work)
                raise
            else:
                return work

    async def _finish(self, work: Work, step: Step) -> None:
        """Do the rest of a step."""
        try:
            with _within(work.policy, f"the step of {work.uid.name}", until=work.until):
                await self._stepping.finish(work)
        except P2PNodeError as error:
            self._lost[work.uid] = error
            if not isinstance(error, StepLostError):
                await self._stepping.abort(work)
        except BaseException:
            await self._stepping.abort(work)
            raise
        finally:
            self._end(work.uid, step)

    def _end(self, uid: Uid, step: Step) -> None:
        step.over.set()
        if self._last.get(uid) is step:
            del self._last[uid]

    def _tell_lost(self, uid: Uid) -> None:
        """Raise `StepLostError` if a step was not taken, and nobody has been told."""
        if (error := self._lost.pop(uid, None)) is not None:
            if isinstance(error, StepLostError):
                raise error
            raise StepLostError(
                f"the last step of {uid.name} was not taken; go on with the next ({error})"
            ) from error


@contextlib.contextmanager
def _within(policy: CallPolicy, what: str, until: float = math.inf) -> Iterator[None]:
    """Bound a call by its timeout, or by when it was to end, on trio's clock.

    Raises:
        DeadlineExceededError: the time is up.
    """
    with trio.move_on_at(min(until, trio.current_time() + policy.timeout)) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceededError(f"{what} took longer than {policy.timeout:g} s")
