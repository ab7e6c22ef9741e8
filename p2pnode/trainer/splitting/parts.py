"""The parts of split calls: which peers of a swarm there are, and who computes which rows."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import torch
import trio

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import (
    BehindError,
    P2PNodeError,
    RemoteError,
    StepUnderWayError,
)
from p2pnode.rpc.codecs.names import travelling
from p2pnode.rpc.tensors import metas_of
from p2pnode.swarm.splitting.client import version_in
from p2pnode.swarm.splitting.messages import SplitRequest
from p2pnode.swarm.splitting.versions import Version, authoritative
from p2pnode.swarm.weights.standby import distance
from p2pnode.trainer.judged import FINAL, JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sources import CallPolicy
from p2pnode.trainer.splitting.peers import PeerCalls
from p2pnode.trainer.splitting.shares import Rows, Speeds, assign
from p2pnode.trainer.splitting.work import Done, Work, most_rows
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

Compute = Callable[[Work, PeerId, Rows], Awaitable[Done]]


class Parts:
    """Shares the rows of calls out to peers.

    Args:
        judged: chooses peers, and judges them by how their calls end.
        peers: makes calls of single peers.
        settings: limits.

    Attributes:
        speeds: of the peers.
        known: the newest version of each expert that a step of ours has made.
    """

    def __init__(self, judged: JudgedClient, peers: PeerCalls, settings: SplittingSettings) -> None:
        self._judged = judged
        self._peers = peers
        self._settings = settings
        self.speeds = Speeds(settings.speed_parts)
        self.known: dict[Uid, Version] = {}

    async def begin(
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
            known=self.known.get(uid),
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

    def assign(self, work: Work, spans: Sequence[Rows]) -> list[tuple[PeerId, Rows]]:
        """Share rows out among the peers, by their speeds."""
        if not spans:
            return []
        return assign(spans, self.speeds.of(work.peers), work.limits)

    async def compute(
        self, work: Work, parts: Sequence[tuple[PeerId, Rows]], compute: Compute
    ) -> None:
        """Let peers compute parts, those of one peer one after the other.

        The rows of peers that fail go to the others, until there is none.

        Raises:
            StepUnderWayError: the step was to be joined at once, and cannot be.
            P2PNodeError: no peer is left, or the tensors fit none.
        """
        while parts:
            failed: list[Rows] = []
            by_peer: dict[PeerId, list[Rows]] = {}
            for peer_id, rows in parts:
                by_peer.setdefault(peer_id, []).append(rows)
            async with trio.open_nursery() as nursery:

                async def work_at(
                    peer_id: PeerId,
                    spans: Sequence[Rows],
                    failed: list[Rows] = failed,
                    scope: trio.CancelScope = nursery.cancel_scope,
                ) -> None:
                    await self._compute_at(work, peer_id, spans, compute, failed)
                    if work.fatal is not None:  # what the others compute is of no use
                        scope.cancel()

                for peer_id, spans in by_peer.items():
                    nursery.start_soon(work_at, peer_id, spans)
            if work.fatal is not None:
                raise work.fatal
            if work.gradients:  # what it kept is lost with it
                failed += work.take_back()
            if failed:
                work.check_peers()
            parts = self.assign(work, failed)

    async def _compute_at(
        self,
        work: Work,
        peer_id: PeerId,
        spans: Sequence[Rows],
        compute: Compute,
        failed: list[Rows],
    ) -> None:
        """Let one peer compute some parts; those that it fails to are added to `failed`."""
        for at, rows in enumerate(spans):
            began = trio.current_time()
            try:
                done = await compute(work, peer_id, rows)
            except P2PNodeError as error:
                is_refused = work.now and isinstance(error, StepUnderWayError)
                if isinstance(error, FINAL) or is_refused or not isinstance(error, RemoteError):
                    work.fatal = error
                else:
                    work.lose(peer_id, error)
                    failed.extend(each for each in spans[at:] if each)
                return
            work.done.append(done)
            seconds = max(0.0, trio.current_time() - began - done.waited)
            if rows:
                self.speeds.receive(peer_id, len(rows), seconds, backward=work.gradients > 0)
            else:
                self.speeds.receive_latency(peer_id, seconds)

    async def compute_forward(self, work: Work, peer_id: PeerId, rows: Rows) -> Done:
        """Let a peer compute some rows' outputs.

        Raises:
            P2PNodeError: as it answered, or why it did not.
        """
        inputs = [each[rows.start : rows.stop] for each in work.tensors]
        info = await self._judged.info(peer_id, work.uid, work.give_up_at(), Attempt())
        _, outputs = info.check_forward(metas_of(inputs))
        codec = work.policy.codec
        step = work.after
        after = b"" if step is None or step.over.is_set() else step.step_id
        request = SplitRequest(
            operation="forward",
            uid=work.uid,
            after=after,
            tensors=tuple(travelling(meta, codec) for meta in metas_of(inputs)),
            reply=codec,
        )
        expected = tuple(travelling(meta, codec) for meta in outputs)
        while True:
            try:
                reply, found = await self._peers.ask(
                    work, peer_id, request, inputs, expected=expected
                )
            except StepUnderWayError:
                if step is None or not request.after:
                    raise
                await step.over.wait()  # it takes longer than usual; nobody is to blame here
                request = replace(request, after=b"")
            else:
                return Done(
                    peer_id, rows, found, version_in(reply, peer_id), reply.microseconds / 1e6
                )

    async def take_odd(self, work: Work) -> list[Rows]:
        """Return the rows that were computed with other weights than most, to be redone.

        Steps reach the peers one by one, so weights may differ for a moment. A peer whose weights
        are odd once more in the same call is left out.
        """
        versions = {each.peer_id: each.version for each in work.done}
        target = authoritative(versions.values(), work.known)
        odd = [each for each in work.done if each.version != target]
        work.done = [each for each in work.done if each.version == target]
        peers = list(dict.fromkeys(each.peer_id for each in odd))
        await self.leave_out(work, [each for each in peers if each in work.odd])
        work.odd += [each for each in peers if each not in work.odd]
        return [each.rows for each in odd]

    async def leave_out(self, work: Work, behind: Sequence[PeerId]) -> None:
        """Go on without peers whose weights are not those of most, and tell them."""
        for peer_id in behind:
            work.lose(peer_id, BehindError(f"{peer_id} has other weights than its swarm"))
        await self._peers.tell_behind(work, behind)
