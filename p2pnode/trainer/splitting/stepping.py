"""The calls of a step: its parts, their sum, and the word to take it."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import (
    ExpertFailedError,
    OverloadedError,
    P2PNodeError,
    RemoteError,
    StepLostError,
)
from p2pnode.rpc.codecs.names import find_codec, travelling
from p2pnode.rpc.tensors import metas_of
from p2pnode.swarm.splitting.client import version_in
from p2pnode.swarm.splitting.core import Plan
from p2pnode.swarm.splitting.messages import SplitRequest
from p2pnode.swarm.splitting.versions import Version, authoritative
from p2pnode.trainer.judged import JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.splitting.parts import Parts
from p2pnode.trainer.splitting.peers import PeerCalls, twice
from p2pnode.trainer.splitting.shares import Rows, cut
from p2pnode.trainer.splitting.work import Done, Spans, Work
from p2pnode.wire.peer_id import PeerId

_RENEWALS: Final = 3  # in the time of a lease


class Stepping:
    """Takes steps with the peers of swarms.

    Args:
        judged: says what peers take, and makes ids.
        peers: makes calls of single peers.
        parts: shares the rows out.
        settings: limits, and how sums travel.
    """

    def __init__(
        self,
        judged: JudgedClient,
        peers: PeerCalls,
        parts: Parts,
        settings: SplittingSettings,
    ) -> None:
        self._judged = judged
        self._peers = peers
        self._parts = parts
        self._settings = settings
        self._codec = find_codec(settings.codec)

    async def compute(self, work: Work, answered_by: Spans) -> None:
        """Join a step at all peers, and let each compute the gradients of its rows.

        Raises:
            StepUnderWayError: the step was to be joined at once, and another one has its turn.
            P2PNodeError: no peer is left, or the tensors fit none.
        """
        work.step_id = self._judged.new_call_id()
        failure: P2PNodeError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_turns, work)
            try:
                if not work.now:
                    await self._join(work)
                parts = self._share_out(work, answered_by)
                await self._parts.compute(work, parts, self._compute_part)
                await self._compute_anew_what_is_odd(work)
            except P2PNodeError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def finish(self, work: Work) -> None:
        """Let the peers add up the gradients that they have computed, and step with the sum.

        Raises:
            StepLostError: the step was not taken, or it is not known whether it was.
            RemoteError: it was not taken, for this reason.
        """
        ready: list[PeerId] = []
        failure: P2PNodeError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_turns, work)
            try:
                ready = await self._prepare(work)
            except P2PNodeError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        with trio.CancelScope(shield=True):  # all of them, or none; bounded by timeouts
            await self._commit(work, ready)

    async def abort(self, work: Work) -> None:
        """Spare the peers from waiting for a step that does not come."""
        request = SplitRequest(operation="abort", uid=work.uid, step_id=work.step_id)
        with trio.CancelScope(shield=True):
            await self._peers.tell([*work.peers, *work.left], request)

    # --- turns ------------------------------------------------------------------------------------

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
                work.receive_joined(peer_id)
            except RemoteError as error:
                work.lose(peer_id, error)

        while not versions and work.limits:
            await join(work.peers[0])
        async with trio.open_nursery() as nursery:
            for peer_id in work.peers[1:]:
                nursery.start_soon(join, peer_id)
        work.check_peers()
        target = authoritative(versions.values(), work.known)
        odd = [peer_id for peer_id, version in versions.items() if version != target]
        await self._parts.leave_out(work, odd)

    # --- parts ------------------------------------------------------------------------------------

    def _share_out(self, work: Work, answered_by: Spans) -> list[tuple[PeerId, Rows]]:
        """Give rows to those that computed them forward, and tell those without rows the plan."""
        kept = [
            (peer_id, part)
            for peer_id, rows in answered_by
            if peer_id in work.limits
            for part in cut(rows, work.limits[peer_id])
        ]
        others = [rows for peer_id, rows in answered_by if peer_id not in work.limits]
        parts = [*kept, *self._parts.assign(work, others)]
        busy = [peer_id for peer_id, _ in parts]
        work.plan({peer_id: busy.count(peer_id) for peer_id in work.peers}, self._codec)
        return [*parts, *((peer_id, Rows(0, 0)) for peer_id in work.peers if peer_id not in busy)]

    async def _compute_part(self, work: Work, peer_id: PeerId, rows: Rows) -> Done:
        """Let a peer compute some rows' gradients, or join only, if there are none.

        Raises:
            P2PNodeError: as it answered, or why it did not.
        """
        tensors = [each[rows.start : rows.stop] for each in work.tensors] if rows else []
        metas = metas_of(tensors)
        codec = work.policy.codec
        gradients = work.gradients if rows else 0
        inputs = metas[: len(metas) - gradients]
        if rows:
            info = await self._judged.info(peer_id, work.uid, work.give_up_at(), Attempt())
            info.check_gradients(inputs, metas[len(inputs) :])
            work.numbers += 1
        request = SplitRequest(
            operation="backward" if rows else "join",
            uid=work.uid,
            step_id=work.step_id,
            now=work.now,
            plan=work.plans.get(peer_id) if work.is_planned else None,
            part=work.numbers if rows else 0,
            tensors=tuple(travelling(meta, codec) for meta in metas),
            gradients=gradients,
            reply=codec if rows else "none",
        )
        expected = tuple(travelling(meta, codec) for meta in inputs)
        ask = partial(self._peers.ask, work, peer_id, request, tensors, expected=expected)
        reply, found = await twice(ask)
        work.receive_joined(peer_id)
        work.parts[peer_id] += bool(rows)
        return Done(peer_id, rows, found, version_in(reply, peer_id), reply.microseconds / 1e6)

    async def _compute_anew_what_is_odd(self, work: Work) -> None:
        """Leave out peers that have joined with other weights than most.

        Raises:
            P2PNodeError: no peer is left.
        """
        versions = {each.peer_id: each.version for each in work.done}
        work.check_peers()
        target = authoritative(versions.values(), work.known)
        odd = [peer_id for peer_id, version in versions.items() if version != target]
        if odd:
            await self._parts.leave_out(work, odd)
            await self._compute_lost(work)

    async def _compute_lost(self, work: Work) -> None:
        lost = self._parts.assign(work, work.take_back())
        await self._parts.compute(work, lost, self._compute_part)

    # --- the two phases ---------------------------------------------------------------------------

    async def _prepare(self, work: Work) -> list[PeerId]:
        """Let the peers add up what they keep, and return those that have the sum.

        Raises:
            RemoteError: they could not, in several attempts.
        """
        failure: P2PNodeError | None = None
        for _ in range(self._settings.reduce_tries):
            if not work.is_planned:
                work.plan(work.parts, self._codec)
            digests: dict[PeerId, bytes] = {}
            failures: dict[PeerId, RemoteError] = {}
            async with trio.open_nursery() as nursery:
                for peer_id, plan in work.plans.items():
                    nursery.start_soon(self._prepare_at, work, peer_id, plan, digests, failures)
            well = [each for each, why in failures.items() if isinstance(why, OverloadedError)]
            if digests and not well and len(set(digests.values())) == 1:
                return [peer_id for peer_id in work.plans if peer_id in digests]
            work.is_planned = False
            for peer_id in work.peers:
                if peer_id in failures and peer_id not in well:
                    work.lose(peer_id, failures[peer_id])
            failure = next(iter(failures.values()), None) or failure
            if not work.limits:
                break
            await self._compute_lost(work)
        raise failure or ExpertFailedError(
            f"the peers of {work.uid.name} add up different gradients; is one of them broken?"
        )

    async def _prepare_at(
        self,
        work: Work,
        peer_id: PeerId,
        plan: Plan,
        digests: dict[PeerId, bytes],
        failures: dict[PeerId, RemoteError],
    ) -> None:
        request = SplitRequest(operation="prepare", uid=work.uid, step_id=work.step_id, plan=plan)
        try:
            reply, _ = await self._peers.ask(work, peer_id, request)
            digests[peer_id] = reply.digest
        except RemoteError as error:
            failures[peer_id] = error

    async def _commit(self, work: Work, ready: Sequence[PeerId]) -> None:
        """Let the peers that have the sum step with it.

        Raises:
            StepLostError: none of them says that it has.
        """
        request = SplitRequest(operation="commit", uid=work.uid, step_id=work.step_id)
        taken: list[Version] = []
        failures: dict[PeerId, RemoteError] = {}
        until = trio.current_time() + self._settings.question_timeout
        work.until = max(work.until, until)

        async def commit(peer_id: PeerId) -> None:
            began = trio.current_time()
            try:
                reply, _ = await twice(partial(self._peers.ask, work, peer_id, request))
                taken.append(version_in(reply, peer_id))
            except RemoteError as error:
                failures[peer_id] = error
                return
            on_the_way = trio.current_time() - began - reply.microseconds / 1e6
            self._parts.speeds.receive_latency(peer_id, max(0.0, on_the_way))

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
        self._parts.known[work.uid] = authoritative(taken, work.known)
        missed = [each for each in ready if isinstance(failures.get(each), StepLostError)]
        await self._peers.tell_behind(work, missed)
