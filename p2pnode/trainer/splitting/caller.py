"""One layer called as a whole swarm: its rows split over the peers, and one step of them all.

*Forward* sends each peer its rows. The answers must be of one version of the weights: where they
are not, as a step was taken meanwhile or a peer is behind, the odd ones are computed again by peers
that have the version of most.

*Backward* is a step. First it waits for its turn at the first peer, in an order that all callers
share, so that several callers do not wait for each other in a circle. Then each peer computes the
gradients of its rows, those that computed them forward if they can, and keeps those of the weights.
When all rows are done, the peers add up what they keep (prepare), and when all have the sum they
step with it (commit). The rows of a peer that fails go to the others, and it is left out of the
step; it catches up with them later (`p2pnode.swarm.splitting.settling`).

A step counts as taken when one peer has taken it, since the others then do so, too, or catch up.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

import torch
import trio

from p2pnode.config import Settings
from p2pnode.errors import (
    BehindError,
    DeadlineExceededError,
    ExpertFailedError,
    OverloadedError,
    P2PNodeError,
    RemoteError,
    StepLostError,
)
from p2pnode.rpc.codecs.names import travelling
from p2pnode.rpc.tensors import metas_of
from p2pnode.swarm.splitting.client import SplitClient, version_in
from p2pnode.swarm.splitting.messages import SplitRequest
from p2pnode.swarm.splitting.versions import Version, authoritative
from p2pnode.swarm.weights.standby import distance
from p2pnode.trainer.judged import FINAL, JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sources import Answer, CallPolicy
from p2pnode.trainer.splitting.peers import PeerCalls, twice
from p2pnode.trainer.splitting.shares import Rows, Speeds, assign, cut
from p2pnode.trainer.splitting.work import Done, Spans, Work, most_rows
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_RENEWALS: Final = 3  # in the time of a lease


class SplitCaller:
    """Calls experts of one run, each as the whole swarm of its peers.

    Args:
        judged: chooses peers, and judges them by how their calls end.
        client: makes split calls.
        settings: limits.
    """

    def __init__(self, judged: JudgedClient, client: SplitClient, *, settings: Settings) -> None:
        self._judged = judged
        self._settings = settings.splitting
        self._peers = PeerCalls(judged, client, self._settings.question_timeout)
        # Of forward and of backward parts.
        self._speeds = [Speeds(self._settings.speed_smoothing) for _ in range(2)]

    async def forward(
        self, name: str, inputs: Sequence[torch.Tensor], policy: CallPolicy
    ) -> Answer:
        """Compute an expert's outputs, each peer of its swarm those of some rows.

        Raises:
            SchemaError, TensorTooLargeError: the inputs do not fit; they were not sent.
            NonFiniteError: the codec cannot carry them.
            NoLiveExpertError: no live peer is known.
            RemoteError: what the last peer tried answered.
        """
        uid = Uid.parse(name, self._judged.run_id)
        with _within(policy, f"the forward call of {name}"):
            work = await self._begin(uid, inputs, (), policy)
            waiting = [Rows(0, work.rows)]
            latest: dict[PeerId, Version] = {}
            while waiting:
                parts = self._assign(work, waiting)
                await self._compute(work, parts, self._forward_part)
                latest |= {each.peer_id: each.version for each in work.done}
                waiting = await self._odd(work, latest)
            return Answer(tensors=work.answer(), by=work.spans())

    async def backward(
        self,
        name: str,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
        answered_by: Spans,
    ) -> Answer:
        """Take one step of an expert at all peers of its swarm, and give the inputs' gradients.

        Args:
            name: the expert.
            inputs: those of the forward call.
            gradients: of its outputs.
            policy: the timeout, and the codec.
            answered_by: `Answer.by` of the forward call; rows go to the same peers again.

        Raises:
            SchemaError, TensorTooLargeError: the tensors do not fit; they were not sent.
            NonFiniteError: the codec cannot carry them.
            NoLiveExpertError: no live peer is known.
            StepLostError: the step was not taken, or it is not known whether it was.
            RemoteError: what the last peer tried answered; the step was not taken.
        """
        uid = Uid.parse(name, self._judged.run_id)
        with _within(policy, f"the step of {name}"):
            work = await self._begin(uid, inputs, gradients, policy)
            work.step_id = self._judged.new_call_id()
            try:
                ready = await self._gather(work, answered_by)
            except BaseException:
                await self._abort(work)
                raise
            with trio.CancelScope(shield=True):  # all of them, or none; bounded by timeouts
                await self._commit(work, ready)
            return Answer(tensors=work.answer(), by=work.spans())

    # --- peers and parts --------------------------------------------------------------------------

    async def _begin(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
    ) -> Work:
        """Find the peers of the swarm, and check that the tensors fit.

        Raises:
            NoLiveExpertError: there is none.
            SchemaError: the tensors fit none of them.
        """
        book = self._judged.book
        entries = await book.candidates(uid)
        if not entries:  # the layer may have changed hands
            await book.look_again(uid)
            entries = await book.candidates(uid)
        # Of a swarm that is too large, all callers take the same part, or it would fall apart.
        closest = sorted(
            (each.peer_id for each in entries), key=lambda peer_id: distance(peer_id, uid)
        )
        work = Work(
            uid=uid,
            until=trio.current_effective_deadline(),
            policy=policy,
            tensors=(*inputs, *gradients),
            gradients=len(gradients),
            limits={},
        )
        limits: dict[PeerId, int] = {}

        async def ask(peer_id: PeerId) -> None:
            try:
                info = await self._judged.info(peer_id, uid, give_up, Attempt())
                limits[peer_id] = most_rows(info, inputs, gradients)
            except RemoteError as error:
                work.failure = error

        now = trio.current_time()
        give_up = now + (work.until - now) / 2
        async with trio.open_nursery() as nursery:
            for peer_id in closest[: self._settings.max_group]:
                nursery.start_soon(ask, peer_id)
        work.limits = {peer_id: limits[peer_id] for peer_id in sorted(limits)}
        if not work.limits:
            raise work.failure or book.none_left(uid)
        return work

    def _assign(self, work: Work, spans: Sequence[Rows]) -> list[tuple[PeerId, Rows]]:
        if not spans:
            return []
        speeds = self._speeds[bool(work.gradients)].of(work.peers)
        return assign(spans, speeds, work.limits)

    async def _compute(
        self,
        work: Work,
        parts: Sequence[tuple[PeerId, Rows]],
        compute: Callable[[Work, PeerId, Rows], Awaitable[Done]],
    ) -> None:
        """Let peers compute parts, those of one peer one after the other.

        The rows of peers that fail go to the others, until there is none.

        Raises:
            P2PNodeError: no peer is left, or the tensors fit none.
        """
        while parts:
            failed: list[Rows] = []
            by_peer: dict[PeerId, list[Rows]] = {}
            for peer_id, rows in parts:
                by_peer.setdefault(peer_id, []).append(rows)
            async with trio.open_nursery() as nursery:
                for peer_id, spans in by_peer.items():
                    nursery.start_soon(self._compute_at, work, peer_id, spans, compute, failed)
            if work.fatal is not None:
                raise work.fatal
            if work.gradients:  # what it kept is lost with it
                failed += work.take_back()
            if failed:
                work.check_peers()
            parts = self._assign(work, failed)

    async def _compute_at(
        self,
        work: Work,
        peer_id: PeerId,
        spans: Sequence[Rows],
        compute: Callable[[Work, PeerId, Rows], Awaitable[Done]],
        failed: list[Rows],
    ) -> None:
        """Let one peer compute some parts; those that it fails to are added to `failed`."""
        for at, rows in enumerate(spans):
            began = trio.current_time()
            try:
                done = await compute(work, peer_id, rows)
            except P2PNodeError as error:
                if isinstance(error, RemoteError) and not isinstance(error, FINAL):
                    work.lose(peer_id, error)
                    failed.extend(spans[at:])
                else:
                    work.fatal = error
                return
            work.done.append(done)
            seconds = trio.current_time() - began
            self._speeds[bool(work.gradients)].receive(peer_id, len(rows), seconds)

    async def _forward_part(self, work: Work, peer_id: PeerId, rows: Rows) -> Done:
        inputs = [each[rows.start : rows.stop] for each in work.tensors]
        info = await self._judged.info(peer_id, work.uid, work.give_up_at(), Attempt())
        _, outputs = info.check_forward(metas_of(inputs))
        codec = work.policy.codec
        request = SplitRequest(
            operation="forward",
            uid=work.uid,
            tensors=tuple(travelling(meta, codec) for meta in metas_of(inputs)),
            reply=codec,
        )
        expected = tuple(travelling(meta, codec) for meta in outputs)
        reply, found = await self._peers.ask(work, peer_id, request, inputs, expected=expected)
        return Done(peer_id, rows, found, version_in(reply, peer_id))

    async def _odd(self, work: Work, latest: dict[PeerId, Version]) -> list[Rows]:
        """Return the rows that were computed with other weights than most, to be redone."""
        present = {each.peer_id for each in work.done}
        target = authoritative(latest[peer_id] for peer_id in work.peers if peer_id in present)
        odd = [each for each in work.done if each.version != target]
        work.done = [each for each in work.done if each.version == target]
        behind = [each for each in work.peers if latest.get(each, target) != target]
        for peer_id in behind:
            work.lose(peer_id, BehindError(f"{peer_id} has other weights than its swarm"))
        await self._peers.tell_behind(work, behind)
        return [each.rows for each in odd]

    # --- a step -----------------------------------------------------------------------------------

    async def _gather(self, work: Work, answered_by: Spans) -> list[PeerId]:
        """Do all of a step up to the sum; return the peers that have it.

        Raises:
            P2PNodeError: nobody has.
        """
        failure: P2PNodeError | None = None
        ready: list[PeerId] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_turns, work)
            try:
                await self._join(work)
                kept = [
                    (peer_id, part)
                    for peer_id, rows in answered_by
                    if peer_id in work.limits
                    for part in cut(rows, work.limits[peer_id])
                ]
                others = [rows for peer_id, rows in answered_by if peer_id not in work.limits]
                parts = [*kept, *self._assign(work, others)]
                await self._compute(work, parts, self._backward_part)
                ready = await self._prepare(work)
            except P2PNodeError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return ready

    async def _keep_turns(self, work: Work) -> None:
        """Let no turn end while other peers are waited for."""
        request = SplitRequest(operation="join", uid=work.uid, step_id=work.step_id)
        while True:
            await trio.sleep(self._settings.lease / _RENEWALS)
            await self._peers.tell(work.joined, request)

    async def _join(self, work: Work) -> None:
        """Wait for the step's turn at all peers, which then have one version of the weights.

        Raises:
            RemoteError: no peer is left.
        """
        versions: dict[PeerId, Version] = {}
        request = SplitRequest(operation="join", uid=work.uid, step_id=work.step_id)

        async def join(peer_id: PeerId) -> None:
            try:
                reply, _ = await self._peers.ask(work, peer_id, request)
                versions[peer_id] = version_in(reply, peer_id)
                work.joined.append(peer_id)
            except RemoteError as error:
                work.lose(peer_id, error)

        while not versions and work.limits:
            await self._timed(join, work.peers[0])
        async with trio.open_nursery() as nursery:
            for peer_id in work.peers[1:]:
                nursery.start_soon(self._timed, join, peer_id)
        work.check_peers()
        target = authoritative(versions.values())
        behind = [peer_id for peer_id, version in versions.items() if version != target]
        for peer_id in behind:
            work.lose(peer_id, BehindError(f"{peer_id} has other weights than its swarm"))
        await self._peers.tell_behind(work, behind)

    async def _timed(self, call: Callable[[PeerId], Awaitable[None]], peer_id: PeerId) -> None:
        """Make a call without rows, whose time is that of the way."""
        began = trio.current_time()
        await call(peer_id)
        for speeds in self._speeds:
            speeds.receive(peer_id, 0, trio.current_time() - began)

    async def _backward_part(self, work: Work, peer_id: PeerId, rows: Rows) -> Done:
        tensors = [each[rows.start : rows.stop] for each in work.tensors]
        metas = metas_of(tensors)
        codec = work.policy.codec
        inputs = metas[: len(metas) - work.gradients]
        info = await self._judged.info(peer_id, work.uid, work.give_up_at(), Attempt())
        info.check_gradients(inputs, metas[len(inputs) :])
        work.numbers += 1
        request = SplitRequest(
            operation="backward",
            uid=work.uid,
            step_id=work.step_id,
            part=work.numbers,
            tensors=tuple(travelling(meta, codec) for meta in metas),
            gradients=work.gradients,
            reply=codec,
        )
        expected = tuple(travelling(meta, codec) for meta in inputs)
        ask = partial(self._peers.ask, work, peer_id, request, tensors, expected=expected)
        reply, found = await twice(ask)
        work.parts[peer_id] += 1
        return Done(peer_id, rows, found, version_in(reply, peer_id))

    async def _prepare(self, work: Work) -> list[PeerId]:
        """Let the peers add up what they keep, and return those that have the sum.

        Raises:
            RemoteError: they could not, in several attempts.
        """
        failure: P2PNodeError | None = None
        for attempt in range(1, self._settings.reduce_tries + 1):
            group = tuple(work.peers)
            digests: dict[PeerId, bytes] = {}
            failures: dict[PeerId, RemoteError] = {}

            async def prepare(
                peer_id: PeerId,
                attempt: int = attempt,
                group: tuple[PeerId, ...] = group,
                digests: dict[PeerId, bytes] = digests,
                failures: dict[PeerId, RemoteError] = failures,
            ) -> None:
                request = SplitRequest(
                    operation="prepare",
                    uid=work.uid,
                    step_id=work.step_id,
                    parts=work.parts[peer_id],
                    attempt=attempt,
                    rows=work.rows,
                    group=group,
                )
                try:
                    reply, _ = await self._peers.ask(work, peer_id, request)
                    digests[peer_id] = reply.digest
                except RemoteError as error:
                    failures[peer_id] = error

            async with trio.open_nursery() as nursery:
                for peer_id in group:
                    nursery.start_soon(prepare, peer_id)
            well = [each for each, why in failures.items() if isinstance(why, OverloadedError)]
            if digests and not well and len(set(digests.values())) == 1:
                return [peer_id for peer_id in group if peer_id in digests]
            for peer_id in group:
                if peer_id in failures and peer_id not in well:
                    work.lose(peer_id, failures[peer_id])
            failure = next(iter(failures.values()), None) or failure
            if not work.limits:
                break
            redone = self._assign(work, work.take_back())
            await self._compute(work, redone, self._backward_part)
        raise failure or ExpertFailedError(
            f"the peers of {work.uid.name} add up different gradients; is one of them broken?"
        )

    async def _commit(self, work: Work, ready: Sequence[PeerId]) -> None:
        """Let the peers that have the sum step with it.

        Raises:
            StepLostError: none of them says that it has.
        """
        request = SplitRequest(operation="commit", uid=work.uid, step_id=work.step_id)
        taken: list[PeerId] = []
        failures: dict[PeerId, RemoteError] = {}
        until = trio.current_time() + self._settings.question_timeout
        work.until = max(work.until, until)

        async def commit(peer_id: PeerId) -> None:
            try:
                await twice(partial(self._peers.ask, work, peer_id, request))
                taken.append(peer_id)
            except RemoteError as error:
                failures[peer_id] = error

        abort = SplitRequest(operation="abort", uid=work.uid, step_id=work.step_id)
        async with trio.open_nursery() as nursery:
            for peer_id in ready:
                nursery.start_soon(commit, peer_id)
            nursery.start_soon(self._peers.tell, work.left, abort)
        if not taken:
            raise StepLostError(
                f"no peer of {work.uid.name} says that it has taken the step; go on with the next"
                f" ({failures[ready[0]]})"
            )
        missed = [each for each in ready if isinstance(failures.get(each), StepLostError)]
        await self._peers.tell_behind(work, missed)

    async def _abort(self, work: Work) -> None:
        """Spare the peers from waiting for a step that does not come."""
        request = SplitRequest(operation="abort", uid=work.uid, step_id=work.step_id)
        with trio.CancelScope(shield=True):
            await self._peers.tell([*work.peers, *work.left], request)


@contextlib.contextmanager
def _within(policy: CallPolicy, what: str) -> Iterator[None]:
    """Bound a call by its timeout.

    Raises:
        DeadlineExceededError: the time is up.
    """
    with trio.move_on_after(policy.timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceededError(f"{what} took longer than {policy.timeout:g} s")
