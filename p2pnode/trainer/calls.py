"""Calls of remote experts, and what happens when a host fails.

A *forward* call is tried on each live host of the expert, the fastest first, until one answers. A
*backward* call goes to the host that answered the forward call, since the hosts of one expert may
differ a little in their weights. When a host is lost during a backward call, the call is repeated
to it once under the same id, so that the host steps its optimiser at most once; after that the
other hosts are tried. A lost host may have taken the step before it was lost, and then two hosts
of the expert have taken it, each once.

When all hosts that are known have failed, the expert is looked up anew: a host that leaves hands
its experts to another one, and says so by not knowing them any more. If nobody else is found, and
it was a host that failed, not the expert, a call of a single expert waits and looks again, at
intervals that double: the DHT may name the old host for a moment longer, and a host that has died
may be coming back. It waits until its timeout, and no expert is waited for longer than the
settings' patience, however many calls are made: after that each call looks but once, until one has
been answered again. A layer of experts does not wait: it goes on with those that live.

An expert that fails on NaN or infinite values is not to blame for them: the caller is told, and the
expert stays in use.

While another host is left to try, one attempt gets at most half of the remaining time.
"""

import contextlib
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import trio

from p2pnode.config import Settings
from p2pnode.errors import (
    DeadlineExceededError,
    NoPeersError,
    P2PNodeError,
    RemoteError,
    UnknownExpertError,
)
from p2pnode.host import Host
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.security.tokens import Membership
from p2pnode.swarm.beam import Scores, beam_search, list_experts
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.trainer.hosts import HOST_FAILURES, HostBook
from p2pnode.trainer.judged import FINAL, JudgedClient
from p2pnode.trainer.quorum import Attempt, gather
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

T = TypeVar("T")

_MAX_VACANT: Final = 1024  # experts known to have no host; those looked for first are forgotten


class ExpertCaller:
    """Calls the experts of one run, one by one or a layer's at once.

    Args:
        host: the network, asked which peers are connected.
        directory: says who hosts an expert.
        membership: of the run whose experts are called.
        settings: limits and intervals.
        rng: makes call ids, and orders hosts that seem equally fast.
    """

    def __init__(
        self,
        host: Host,
        directory: ExpertDirectory,
        membership: Membership,
        *,
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self.book = HostBook(directory, settings, rng)
        self.client = JudgedClient(
            TensorClient(host, settings.rpc, {membership.name: membership}),
            self.book,
            membership.run_id,
            settings=settings.trainer,
            rng=rng,
        )
        self._host = host
        self._directory = directory
        self._run_id = membership.run_id
        self._settings = settings.trainer
        self._vacant_since: OrderedDict[Uid, float] = OrderedDict()

    # --- a layer's experts ----------------------------------------------------------------------

    async def choose(
        self, block: str, scores: Sequence[Scores], k: int
    ) -> list[list[tuple[str, float]]]:
        """See `ExpertSource.choose`: beam search over the DHT.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        spare = 0
        while True:
            found = await beam_search(self._directory, self._run_id, block, scores, k + spare)
            names = dict.fromkeys(name for sample in found for name, _ in sample)
            unusable = await self.book.unusable([Uid(self._run_id, name) for name in names])
            if len(unusable) <= spare:  # nobody was crowded out by those that cannot be called
                left_out = {uid.name for uid in unusable}
                return [[each for each in row if each[0] not in left_out][:k] for row in found]
            spare = len(unusable)

    async def forward_all(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource.forward`."""
        return await self._call_all(self.forward, calls, policy)

    async def backward_all(
        self, calls: Sequence[ExpertCall], policy: CallPolicy
    ) -> list[Answer | P2PNodeError]:
        """See `ExpertSource.backward`."""
        return await self._call_all(self.backward, calls, policy)

    async def live_experts(self, block: str, grid: Sequence[int]) -> list[str]:
        """List the experts of a block that are announced and whose hosts have not failed lately.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        return await list_experts(self._directory, self._run_id, block, grid)

    async def _call_all(
        self,
        make: Callable[..., Awaitable[Answer]],
        calls: Sequence[ExpertCall],
        policy: CallPolicy,
    ) -> list[Answer | P2PNodeError]:
        outcomes, late = await gather(
            calls, lambda call, attempt: make(call, policy, attempt, waits=False), policy
        )
        for peer_id in late:
            self.book.receive_straggle(peer_id)
        self.book.recorder.add("stragglers", outcomes.count(None))
        return [
            DeadlineExceededError(
                f"{call.name} was cut off {policy.timeout_after_k_min:g} s after enough others"
                " had answered"
            )
            if outcome is None
            else outcome
            for call, outcome in zip(calls, outcomes, strict=True)
        ]

    # --- one expert -----------------------------------------------------------------------------

    async def info(self, name: str, timeout: float) -> ExpertInfo:
        """Return what an expert takes and gives.

        Raises:
            NoLiveExpertError: no live host is known.
            RemoteError: what the last host tried answered.
        """
        uid = Uid.parse(name, self._run_id)

        async def ask(peer_id: PeerId, give_up: float) -> ExpertInfo:
            return await self.client.info(peer_id, uid, give_up, Attempt())

        return await self._try_hosts(uid, timeout, ask, waits=True)

    async def forward(
        self,
        call: ExpertCall,
        policy: CallPolicy,
        attempt: Attempt | None = None,
        *,
        waits: bool = True,
    ) -> Answer:
        """Compute an expert's outputs on one of its hosts.

        Args:
            call: the expert, its inputs, and who is to be asked first, if anybody is.
            policy: the timeout, and whether answers are searched for NaN.
            attempt: kept up to date with the host that is waited for.
            waits: whether an expert that has just lost its hosts is waited for.

        Raises:
            SchemaError, TensorTooLargeError: the inputs do not fit; they were not sent.
            NonFiniteError: the expert failed on inputs that are not finite.
            NoLiveExpertError: no live host is known.
            RemoteError: what the last host tried answered.
        """
        watched = attempt or Attempt()
        call = replace(call, trace=self.client.new_trace())

        async def ask(peer_id: PeerId, give_up: float) -> Answer:
            return await self.client.forward(peer_id, call, policy, give_up, watched)

        uid = Uid.parse(call.name, self._run_id)
        return await self._try_hosts(
            uid, policy.timeout, ask, waits=waits, preferred=call.answered_by
        )

    async def backward(
        self,
        call: ExpertCall,
        policy: CallPolicy,
        attempt: Attempt | None = None,
        *,
        waits: bool = True,
    ) -> Answer:
        """Step an expert's optimiser, and return the gradients of its inputs.

        Args:
            call: the expert, its inputs, the gradients of its outputs, and who gave those.
            policy: the timeout, and whether answers are searched for NaN.
            attempt: kept up to date with the host that is waited for.
            waits: whether an expert that has just lost its hosts is waited for.

        Raises:
            SchemaError, TensorTooLargeError: the tensors do not fit; they were not sent.
            NonFiniteError: the expert failed on tensors that are not finite.
            AlreadyAppliedError: the step was taken, but the answer is lost for good.
            NoLiveExpertError: no live host is known.
            RemoteError: what the last host tried answered.
        """
        watched = attempt or Attempt()
        call = replace(call, trace=self.client.new_trace())
        call_id = self.client.new_call_id()

        async def ask(peer_id: PeerId, give_up: float) -> Answer:
            return await self.client.backward(
                peer_id, call, policy, give_up, watched, call_id=call_id
            )

        uid = Uid.parse(call.name, self._run_id)
        return await self._try_hosts(
            uid, policy.timeout, ask, waits=waits, preferred=call.answered_by
        )

    # --- one host after the other ---------------------------------------------------------------

    async def _try_hosts(
        self,
        uid: Uid,
        timeout: float,
        ask: Callable[[PeerId, float], Awaitable[T]],
        *,
        waits: bool,
        preferred: PeerId | None = None,
    ) -> T:
        until = trio.current_time() + timeout
        tried: set[PeerId] = set()
        failure: RemoteError | None = None
        looked_again = False
        pause = self._settings.retry_interval
        while True:
            order = await self._order(uid, preferred, until)
            if order is None:
                raise failure or DeadlineExceededError(
                    f"the hosts of {uid.name} could not be looked up within {timeout:g} s"
                )
            order = [peer_id for peer_id in order if peer_id not in tried]
            changed_hands = failure or (waits and self.book.reason(uid))  # it may have, at least
            if not order and changed_hands and not looked_again:
                looked_again = True
                await self._look_again(uid, until)
                continue
            if not order:
                wake = trio.current_time() + pause
                if not waits or wake >= self._patient_until(uid, failure, until):
                    raise failure or self.book.none_left(uid)
                await trio.sleep_until(wake)
                await self._look_again(uid, until)
                pause = min(2 * pause, self._settings.max_retry_interval)
                tried.clear()  # whoever is worth another call is listed again
                preferred = None
                continue
            peer_id = order[0]
            tried.add(peer_id)
            remaining = until - trio.current_time()
            give_up = until if len(order) == 1 else until - remaining / 2
            try:
                answer = await ask(peer_id, give_up)
            except FINAL:
                raise
            except RemoteError as error:
                failure = error
            else:
                self._vacant_since.pop(uid, None)
                return answer

    def _patient_until(self, uid: Uid, failure: RemoteError | None, until: float) -> float:
        """Return until when to look for a host of an expert that has none left now."""
        reason = failure or self.book.reason(uid)
        if reason is None:
            patience = self._settings.search_patience
        elif isinstance(reason, (*HOST_FAILURES, UnknownExpertError)):
            patience = self._settings.patience
        else:
            return float("-inf")  # another host would fail, too
        since = self._vacant_since.setdefault(uid, trio.current_time())
        if len(self._vacant_since) > _MAX_VACANT:
            self._vacant_since.popitem(last=False)
        return min(until, since + patience)

    async def _look_again(self, uid: Uid, until: float) -> None:
        with trio.move_on_at(until), contextlib.suppress(NoPeersError):
            await self._directory.look_again(uid)

    async def _order(self, uid: Uid, preferred: PeerId | None, until: float) -> list[PeerId] | None:
        """List the hosts to try, the best first; None when the time is up."""
        with trio.move_on_at(until):
            found = [entry.peer_id for entry in await self.book.candidates(uid)]
            if preferred is None:
                return found
            if preferred in found or self._host.connection_to(preferred) is not None:
                return [preferred, *(peer_id for peer_id in found if peer_id != preferred)]
            return found
        return None
