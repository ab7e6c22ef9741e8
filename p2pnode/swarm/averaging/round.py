"""One member's part in one round: one attempt after the other, until one succeeds.

Each attempt is for one view (`core`); `attempt` says what happens in it. The round ends when all
have said that they have the result: until then, who has it all gives it to those that have lost
whoever was to give them the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import trio

from p2pnode.config import AveragingSettings
from p2pnode.errors import AveragingError, RoundError
from p2pnode.events import Event
from p2pnode.host import Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.budget import Charge
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.swarm.averaging.attempt import Attempt
from p2pnode.swarm.averaging.core import Verdict, View
from p2pnode.swarm.averaging.elements import Reducible
from p2pnode.swarm.averaging.group import Group
from p2pnode.swarm.averaging.messages import (
    PROTOCOL,
    Join,
    Members,
    Moved,
    Wants,
    encode_answer,
    encode_join,
)
from p2pnode.swarm.averaging.travel import Carrier
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What became of a round.

    Attributes:
        tensors: the result, of the shapes, dtypes and devices of what was given.
        contributors: whose tensors it was made of, in the order of their peer ids.
        weight: the sum of their weights.
    """

    tensors: list[torch.Tensor]
    contributors: tuple[PeerId, ...]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducingEnded(Event):
    """A round of reducing ended; `error` names why there is no result, if there is none."""

    run_id: str
    round_id: bytes
    members: int
    contributors: tuple[PeerId, ...]
    attempts: int
    bytes: int  # of the tensors
    seconds: float
    error: str | None


class Round:
    """See `AllReduce.reduce`, which makes it and runs it once.

    Attributes:
        group: what is to be done.
        own: this member.
        view: whose contributions count.
        reducible: what is reduced.
        weight: of our contribution.
        settings: limits and times.
        carrier: how elements travel.
        transcoder: does beside the network what takes long.
        on_complete: called when the result is here.
        over: set when the round has ended here.
        total_weight: of the result.
        upload: bytes a second that we have sent; 0 if too few were sent to tell.
    """

    def __init__(
        self,
        group: Group,
        own: PeerId,
        reducible: Reducible,
        *,
        weight: float,
        quorum: int,
        token: bytes | None,
        access: Access,
        settings: AveragingSettings,
        transcoder: Transcoder,
        on_complete: Callable[[], None],
    ) -> None:
        self.group = group
        self.own = own
        members = {member.peer_id: float(member.bandwidth) for member in group.members}
        self.view: View[PeerId] = View(members, own, quorum)
        self.reducible = reducible
        self.weight = weight
        self.carrier = Carrier(group.codec, reducible.precision, transcoder)
        self.settings = settings
        self.transcoder = transcoder
        self.on_complete = on_complete
        self.over = trio.Event()
        self.total_weight = 0.0
        self.upload = 0.0
        self._digest = group.digest(reducible.metas)
        self._token = token
        self._access = access
        self._reasons: dict[PeerId, str] = {}  # why members are lost
        self._attempt: Attempt | None = None
        self._changed = trio.Event()  # another attempt has begun

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Of whose tensors the result is; none before it is there."""
        return tuple(self.view.members) if self.view.is_complete else ()

    @property
    def attempts(self) -> int:
        """How many there were."""
        return self.view.attempt + 1

    async def run(self) -> None:
        """Reduce with the others, until all of them have the result.

        May be cancelled when there is a result: the others then have to do without this node.

        Raises:
            AveragingError: there is none.
            NonFiniteError: what is to be reduced is not finite.
        """
        self.reducible.check()
        while not self.view.is_complete:
            if self.view.is_failed:
                raise AveragingError(self.describe(self._why_failed()))
            self._attempt = Attempt(self)
            self._changed.set()
            self._changed = trio.Event()
            await self._attempt.run()

    def finish(self) -> Reduced:
        """Return what became of the round when it has ended, or its time is up.

        Raises:
            AveragingError: there is no result.
        """
        if not self.view.is_complete:
            raise AveragingError(self.describe("its time is up"))
        return Reduced(
            tensors=self.reducible.finished(),
            contributors=self.contributors,
            weight=self.total_weight,
        )

    def end(self) -> None:
        """Let go of members that are still served."""
        self.over.set()
        self._changed.set()
        if self._attempt is not None:
            self._attempt.end()

    def describe(self, reason: str) -> str:
        """Say why there is no result, and what became of the members that were lost."""
        lost = "; ".join(f"{peer_id.short} {why}" for peer_id, why in self._reasons.items())
        return f"the round ended without a result, since {reason}" + (f" ({lost})" if lost else "")

    def _why_failed(self) -> str:
        if self.view.is_excluded:
            return "the others went on without this node"
        return f"only {len(self.view.members)} of {len(self.group.members)} members are left"

    # --- for attempts ---------------------------------------------------------------------------

    def join(self, peer_id: PeerId, wants: Wants = "part") -> bytes:
        """Return the message that our streams to a member begin with."""
        return encode_join(
            Join(
                run_id=self.group.run_id,
                round_id=self.group.id_at(peer_id),
                digest=self._digest,
                members=self.view.members,
                weight=self.weight,
                wants=wants,
                token=self._token,
            )
        )

    def lose(self, peer_id: PeerId, reason: str) -> None:
        """Go on without a member."""
        if not self.view.is_complete and peer_id in self.view.members:
            self._reasons[peer_id] = reason
            self.view.receive_lost(peer_id)
            self._follow_view()

    def move(self, members: Members) -> None:
        """Go on with what another member's view has in common with ours."""
        before = self.view.members
        self.view.receive_moved(members)
        for peer_id in before:
            if peer_id not in self.view.members:
                self._reasons.setdefault(peer_id, "is lost, or not known, to another member")
        self._follow_view()

    def _follow_view(self) -> None:
        if self._attempt is not None and self._attempt.number != self.view.attempt:
            self._attempt.end()

    async def open(self, peer_id: PeerId) -> Stream:
        """Open a stream to a member; see `Access.connect` for what it raises."""
        connection = await self._access.connect(peer_id)
        return await connection.open_stream([PROTOCOL])

    # --- for the members that we serve ----------------------------------------------------------

    async def serve(self, stream: Stream, join: Join, charge: Charge) -> None:
        """Take a member's contribution, and give it what it is to have.

        Raises:
            RoundError: it comes late, or twice, or is of other tensors.
            OverloadedError: it holds too much memory here.
            RemoteError: it broke a rule, or is gone.
        """
        self._check(join)
        if join.wants == "nothing":
            if self._attempt is not None:
                self._attempt.serving.receive_informed(stream.peer_id)
            return
        verdict = self.view.receive_join(stream.peer_id, join.members)
        self._follow_view()
        if verdict is Verdict.LOST:
            raise RoundError("one of us two has lost the other in this round")
        if verdict is Verdict.MOVED:
            await stream.send_all(encode_answer(Moved(members=self.view.members)))
            return
        if verdict is not Verdict.WHOLE:
            while self._attempt is None or self._attempt.number != self.view.attempt:
                await self._changed.wait()
                if self.over.is_set():
                    raise RoundError("this round has failed here")
        assert self._attempt is not None  # nothing is complete without one
        await self._attempt.serving.serve(stream, join, charge)

    def _check(self, join: Join) -> None:
        if self.over.is_set():
            raise RoundError("this round is over here; come earlier to the next one")
        if join.digest != self._digest:
            raise RoundError(
                "your tensors' shapes, codec or aggregator are not those of this member; all of a"
                " group must agree on them"
            )
        if not math.isfinite(join.weight * self.weight):
            raise RoundError("the weights of this round are too large to be added up")
