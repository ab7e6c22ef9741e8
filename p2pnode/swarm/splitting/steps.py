"""Steps of split calls at one peer: around the pure turns, what takes time."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
import trio

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import (
    BadRequestError,
    BehindError,
    StepLostError,
    StepUnderWayError,
)
from p2pnode.events import EventBus
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.splitting.core import Phase, Plan, Turn, Turns
from p2pnode.swarm.splitting.events import SplitStepDropped, SplitStepTaken
from p2pnode.swarm.splitting.experts import SplitExperts
from p2pnode.swarm.splitting.messages import Outcome
from p2pnode.swarm.splitting.sums import Sums
from p2pnode.swarm.splitting.versions import Version
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_DIGESTS_KEPT: Final = 1024  # of steps taken; who asks for one does so soon after it


class Steps:
    """The steps under way here, and those that were taken.

    Args:
        own: this peer.
        settings: leases and limits.
        experts: what computes.
        reducer: adds up gradients with the other peers of a group.
        events: where `SplitStepTaken` and `SplitStepDropped` go.

    Attributes:
        behind: the experts whose weights are known not to be their swarm's.
        on_doubt: told of steps that are to be settled with the other peers.
        on_suspicion: told of experts whose weights may not be their swarm's any more.
    """

    def __init__(
        self,
        own: PeerId,
        settings: SplittingSettings,
        experts: SplitExperts,
        reducer: AllReduce,
        events: EventBus,
    ) -> None:
        self.behind: set[Uid] = set()
        self.on_doubt: Callable[[Turn], None] = lambda _turn: None
        self.on_suspicion: Callable[[Uid], None] = lambda _uid: None
        self._own = own
        self._settings = settings
        self._experts = experts
        self._sums = Sums(settings, experts, reducer, self._renew)
        self._events = events
        self._turns = Turns(settings)
        self._digests: OrderedDict[bytes, bytes] = OrderedDict()
        self._changed = trio.Event()  # a turn has begun or ended, or its lease runs again

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Add up gradients, and end the steps whose leases are over, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._sums.run)
            nursery.start_soon(self._watch_leases)
            task_status.started()

    async def _watch_leases(self) -> None:
        while True:
            changed = self._changed
            with trio.move_on_at(self._turns.next_time()):
                await changed.wait()
            for turn in self._turns.take_late(trio.current_time()):
                if turn.phase is Phase.DOUBTED:
                    self.on_doubt(turn)
                else:
                    self.drop(turn, "its caller has not spoken for too long")

    @property
    def kept_bytes(self) -> int:
        """Bytes that the steps under way may keep here."""
        return self._turns.kept_bytes

    def check_ready(self, uid: Uid) -> None:
        """Return if split calls of an expert are served.

        Raises:
            BehindError: it has to catch up with its swarm first.
        """
        if uid in self.behind:
            raise BehindError(
                f"{uid.name} is catching up with its swarm here; call its other peers"
            )

    # --- what callers ask for ---------------------------------------------------------------------

    async def join(
        self,
        uid: Uid,
        key: bytes,
        caller: PeerId,
        *,
        lease: float | None = None,
        now: bool = False,
    ) -> Turn:
        """Wait for a step's turn at an expert, and begin it.

        If it has begun already, its lease begins anew.

        Args:
            uid: the expert.
            key: of the step.
            caller: whose it is.
            lease: seconds until it ends when nothing more is heard; as the settings say if None.
            now: whether to give up instead of waiting.

        Raises:
            StepUnderWayError: it would have to wait.
            StepLostError: the step was taken already.
            BehindError: the expert has to catch up first.
            OverloadedError: the line is full, or there is no room for the gradients.
            UnknownExpertError: it is not hosted here.
        """
        if (turn := self._same(uid, key)) is not None:
            return turn
        if self._experts.was_applied(uid, key):
            raise StepLostError(f"this step of {uid.name} was taken already; go on with the next")
        if now:
            self._turns.check_free(uid)
        self._turns.wait(uid, key)
        try:
            while not self._turns.is_next(uid, key):
                await self._changed.wait()
                if (turn := self._same(uid, key)) is not None:
                    return turn
            self.check_ready(uid)
            size = await self._experts.gradient_bytes(uid)
            turn = Turn(
                uid=uid,
                key=key,
                caller=caller,
                at=await self._experts.version(uid),
                until=trio.current_time() + (self._settings.lease if lease is None else lease),
                size=2 * size,  # what is gathered here, and the sum
            )
            self._turns.begin(turn)
            return turn
        finally:
            self._turns.give_up(uid, key)
            self._tell()

    def find(self, uid: Uid, key: bytes) -> Turn:
        """Return a step that has its turn.

        Raises:
            StepLostError: it does not, or no more.
        """
        return self._turns.find(uid, key)

    def plan(self, turn: Turn, plan: Plan) -> None:
        """Take in how a step's gradients are to be added up, which begins when its parts are here.

        Raises:
            StepLostError: the step is over, or has gone on.
            BadRequestError: this peer is not in the group.
        """
        if self._own not in plan.group:
            raise BadRequestError("this peer is not in the group")
        turn.receive_plan(plan)
        self._sums.begin(turn)

    async def backward(
        self,
        turn: Turn,
        part: int,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        deadline: float,
    ) -> list[torch.Tensor]:
        """Compute a part's gradients, and keep those of the weights; give those of the inputs.

        A part that has come before is computed again, but counts once.

        Raises:
            StepLostError: the step is over, or the weights have changed since it began.
            CallError: the expert failed, or takes no more work.
        """
        with self._at_work(turn):
            answer, kept, version = await self._experts.backward(
                turn.uid, inputs, gradients, turn.kept, caller=turn.caller, deadline=deadline
            )
            if version != turn.at:
                raise self._changed_otherwise(turn)
            if part not in turn.parts:
                turn.receive_part(part, kept)
                self._sums.begin(turn)
            return answer

    async def prepare(
        self, uid: Uid, key: bytes, plan: Plan, *, deadline: float
    ) -> tuple[Version, bytes]:
        """Wait until the gradients of a group are added up, all of whose peers do so now.

        Args:
            uid: the expert.
            key: of the step.
            plan: the last one, or a new one.
            deadline: of the caller, on trio's clock.

        Returns:
            The version that the sum is for, and the sum's digest.

        Raises:
            StepLostError: the step is over, or has gone on, or other parts are kept here.
            OverloadedError: a peer of the group was lost; try again without it.
            ExpertFailedError: the sum is not finite.
            BadRequestError: this peer is not in the group.
        """
        turn = self._turns.find(uid, key)
        if len(turn.parts) != plan.parts:
            raise StepLostError(
                f"{len(turn.parts)} parts of this step are kept here, not {plan.parts}"
            )
        with self._at_work(turn):
            self.plan(turn, plan)
            digest = await self._sums.wait(turn, deadline)
            if await self._experts.version(uid) != turn.at:
                raise self._changed_otherwise(turn)
            return turn.at, digest

    async def wait_for(self, uid: Uid, key: bytes) -> None:
        """Wait until a step is over, if it has its turn.

        Raises:
            StepUnderWayError: that takes too long to be waited for here.
        """
        with trio.move_on_after(self._settings.question_timeout):
            while (turn := self._turns.current(uid)) is not None and turn.key == key:
                await self._changed.wait()
            return
        raise StepUnderWayError(f"the last step of {uid.name} is under way here still")

    async def commit(self, uid: Uid, key: bytes) -> Version:
        """Take a prepared step, at most once; returns the version then.

        Raises:
            StepLostError: it cannot be taken; the expert's weights may be behind then.
            ExpertFailedError: the optimiser failed.
        """
        if not self._experts.was_applied(uid, key):
            turn = self._turns.find(uid, key)
            turn.commit()
            await self.take(turn)
        return await self._experts.version(uid)

    def abort(self, uid: Uid, key: bytes) -> None:
        """End a step that is not to be taken.

        Raises:
            StepLostError: it is not under way, or it is being taken or settled.
        """
        turn = self._turns.find(uid, key)
        if turn.phase not in {Phase.OPEN, Phase.PREPARED}:
            raise StepLostError("this step is being settled")
        self._end(turn)

    # --- what the peers of a group ask for --------------------------------------------------------

    def outcome(self, uid: Uid, key: bytes, asker: PeerId) -> tuple[Outcome, bytes]:
        """Say what became of a step, and the digest of its sum where it was taken.

        A peer that asks waits for the caller no more, and from now on this one does not, either.
        """
        if self._experts.was_applied(uid, key):
            return Outcome.COMMITTED, self._digests.get(key, b"")
        turn = self._turns.current(uid)
        if turn is None or turn.key != key or asker not in turn.group:
            return Outcome.NONE, b""
        if turn.phase is Phase.TAKING:
            return Outcome.COMMITTED, turn.digest
        turn.doubt()
        self.on_doubt(turn)
        return Outcome.UNDECIDED, b""

    async def take(self, turn: Turn) -> None:
        """Step with the sum of a turn that is being taken, and end it.

        Raises:
            StepLostError: the weights have changed since the turn began.
            ExpertFailedError: the optimiser failed.
        """
        uid, taken = turn.uid, False
        try:
            with trio.CancelScope(shield=True):  # it is decided; one batch may be in front
                if await self._experts.version(uid) != turn.at:
                    raise self._changed_otherwise(turn)
                steps = await self._experts.step(uid, turn.total, turn.rows, turn.key)
            taken = True
            self._remember(turn)
            self._events.emit(
                SplitStepTaken(
                    uid=uid,
                    caller=turn.caller,
                    rows=turn.rows,
                    group=len(turn.group),
                    steps=steps,
                )
            )
        finally:
            self._end(turn)
            if not taken:
                self.on_suspicion(uid)

    def drop(self, turn: Turn, reason: str) -> None:
        """End a step that is not taken, and say why."""
        if turn.phase is not Phase.ENDED:
            self._end(turn)
            self._events.emit(SplitStepDropped(uid=turn.uid, caller=turn.caller, reason=reason))

    # --- within -----------------------------------------------------------------------------------

    def _same(self, uid: Uid, key: bytes) -> Turn | None:
        turn = self._turns.current(uid)
        if turn is None or turn.key != key:
            return None
        turn.until = max(turn.until, trio.current_time() + self._settings.lease)
        return turn

    @contextlib.contextmanager
    def _at_work(self, turn: Turn) -> Iterator[None]:
        """Let a lease begin anew when the block has ended."""
        turn.calls += 1
        try:
            yield
        finally:
            turn.calls -= 1
            self._renew(turn)

    def _renew(self, turn: Turn) -> None:
        """Let a lease begin anew."""
        turn.until = trio.current_time() + self._settings.lease
        self._tell()

    def _changed_otherwise(self, turn: Turn) -> StepLostError:
        self.on_suspicion(turn.uid)
        return StepLostError(
            f"the weights of {turn.uid.name} have changed here since the step began, by a call"
            " that was not split"
        )

    def _remember(self, turn: Turn) -> None:
        self._digests[turn.key] = turn.digest
        if len(self._digests) > _DIGESTS_KEPT:
            self._digests.popitem(last=False)

    def _end(self, turn: Turn) -> None:
        self._turns.end(turn)
        self._sums.forget(turn)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
