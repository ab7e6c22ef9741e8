"""What the peers of a swarm settle among themselves: steps in doubt, and who is behind.

A peer whose caller is lost between the phases of a step asks the other peers of the group what
became of it. If one of them has taken it, it does so, too; if none of those that answer has, nobody
will (see `p2pnode.swarm.splitting.core`), and it drops the step.

Somebody may tell a peer that its weights are not its swarm's. It believes nobody, but asks the
others which version they have. If theirs is another, it serves no split calls until it has fetched
the weights of one of them. Since the swarm goes on meanwhile, the second attempt asks it to pause.
"""

import random
from collections.abc import Sequence

import trio

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import P2PNodeError, RemoteError
from p2pnode.events import EventBus
from p2pnode.rpc.messages import CALL_ID_BYTES
from p2pnode.swarm.splitting.client import SplitClient, version_in
from p2pnode.swarm.splitting.core import Turn
from p2pnode.swarm.splitting.events import CatchUpGivenUp, CaughtUp, FellBehind
from p2pnode.swarm.splitting.experts import SplitExperts
from p2pnode.swarm.splitting.messages import Outcome, SplitReply, SplitRequest
from p2pnode.swarm.splitting.steps import Steps
from p2pnode.swarm.splitting.versions import authoritative
from p2pnode.swarm.splitting.weights import SwarmWeights
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class Settling:
    """Asks the other peers of swarms, while `run` runs.

    Args:
        own: this peer.
        settings: timeouts.
        experts: what computes.
        steps: those under way here.
        client: the way to the other peers.
        weights: gives and takes the states of experts.
        events: where `FellBehind` and the others go.
        rng: makes the ids of pauses.
    """

    def __init__(
        self,
        own: PeerId,
        settings: SplittingSettings,
        *,
        experts: SplitExperts,
        steps: Steps,
        client: SplitClient,
        weights: SwarmWeights,
        events: EventBus,
        rng: random.Random,
    ) -> None:
        self._own = own
        self._settings = settings
        self._experts = experts
        self._steps = steps
        self._client = client
        self._weights = weights
        self._events = events
        self._rng = rng
        self._checking: set[Uid] = set()
        self._nursery: trio.Nursery | None = None
        steps.on_doubt = self.settle
        steps.on_suspicion = self.suspect

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle and catch up when it is needed, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(trio.sleep_forever)
            task_status.started()

    def settle(self, turn: Turn) -> None:
        """Find out soon what became of a step in doubt; does nothing if that is under way."""
        if self._nursery is not None and not turn.is_asked:
            turn.is_asked = True
            self._nursery.start_soon(self._settle, turn)

    def suspect(self, uid: Uid) -> None:
        """See soon whether an expert's weights are its swarm's, and fetch those if not."""
        if self._nursery is not None and uid not in self._checking:
            self._checking.add(uid)
            self._nursery.start_soon(self._catch_up, uid)

    # --- steps in doubt ---------------------------------------------------------------------------

    async def _settle(self, turn: Turn) -> None:
        request = SplitRequest(operation="outcome", uid=turn.uid, step_id=turn.key)
        answers = await self._ask_all([each for each in turn.group if each != self._own], request)
        taken = any(
            reply.outcome is Outcome.COMMITTED and reply.digest == turn.digest
            for reply in answers.values()
        )
        if not taken:
            self._steps.drop(turn, "its caller was lost, and no peer that answers has taken it")
        else:
            turn.settle()
            try:
                await self._steps.take(turn)
            except P2PNodeError as error:
                self._steps.drop(turn, str(error))
        self.suspect(turn.uid)

    # --- catching up ------------------------------------------------------------------------------

    async def _catch_up(self, uid: Uid) -> None:
        reason = ""
        try:
            with trio.move_on_after(self._settings.catch_up_timeout):
                for attempt in range(self._settings.catch_up_tries):
                    if attempt:
                        await trio.sleep(self._settings.catch_up_pause)
                    try:
                        if await self._is_like_the_others(uid, pause=attempt > 0):
                            self._steps.behind.discard(uid)
                            return
                    except P2PNodeError as error:
                        reason = str(error)
            self._events.emit(
                CatchUpGivenUp(uid=uid, reason=reason or "the swarm goes on faster, or is silent")
            )
        finally:
            self._checking.discard(uid)

    async def _is_like_the_others(self, uid: Uid, *, pause: bool) -> bool:
        """Compare versions, and fetch the swarm's weights where they are others.

        Returns:
            Whether they are the same, as far as is known.
        """
        members = await self._weights.members(uid)
        request = SplitRequest(operation="version", uid=uid)
        answers = await self._ask_all(members, request)
        versions = {
            peer_id: reply.version
            for peer_id, reply in answers.items()
            if reply.version is not None
        }
        own = await self._experts.version(uid)
        target = authoritative([own, *versions.values()])
        if target == own:
            return True
        if uid not in self._steps.behind:
            self._steps.behind.add(uid)
            self._events.emit(FellBehind(uid=uid, steps=own.steps, of_the_swarm=target.steps))
        holders = sorted(peer_id for peer_id, version in versions.items() if version == target)
        if pause:
            await self._fetch_in_a_pause(uid, holders)
            return True
        await self._fetch(uid, holders)
        return False  # unless the next comparison says so

    async def _fetch_in_a_pause(self, uid: Uid, holders: Sequence[PeerId]) -> None:
        """Fetch the weights while no step begins; callers go to the first peer first."""
        key = self._rng.randbytes(CALL_ID_BYTES)
        pause = SplitRequest(operation="pause", uid=uid, step_id=key)
        timeout = self._settings.catch_up_timeout
        await self._client.ask(holders[0], pause, timeout=timeout)
        try:
            await self._fetch(uid, holders)
            self._steps.behind.discard(uid)  # before the next step asks
        finally:
            with trio.CancelScope(shield=True):  # bounded by the timeout
                resume = SplitRequest(operation="resume", uid=uid, step_id=key)
                await self._ask(holders[0], resume)

    async def _fetch(self, uid: Uid, holders: Sequence[PeerId]) -> None:
        giver = holders[0]
        request = SplitRequest(operation="state", uid=uid)
        timeout = self._settings.catch_up_timeout
        reply, _ = await self._client.ask(giver, request, timeout=timeout)
        version = version_in(reply, giver)
        await self._weights.take(uid, reply.state, holders, version.steps)
        # No await from here on: weights and version belong together.
        self._experts.receive(uid, version)
        self._events.emit(CaughtUp(uid=uid, source=giver, steps=version.steps))

    async def _ask_all(
        self, peers: Sequence[PeerId], request: SplitRequest
    ) -> dict[PeerId, SplitReply]:
        """Ask several peers at once; those that do not answer in time are left out."""
        replies: dict[PeerId, SplitReply] = {}

        async def ask(peer_id: PeerId) -> None:
            reply = await self._ask(peer_id, request)
            if reply is not None:
                replies[peer_id] = reply

        async with trio.open_nursery() as nursery:
            for peer_id in peers:
                nursery.start_soon(ask, peer_id)
        return replies

    async def _ask(self, peer_id: PeerId, request: SplitRequest) -> SplitReply | None:
        try:
            reply, _ = await self._client.ask(
                peer_id, request, timeout=self._settings.question_timeout
            )
        except RemoteError:
            return None
        return reply
