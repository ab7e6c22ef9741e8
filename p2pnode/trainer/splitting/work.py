"""One split call while it is worked on: who computes what, and what is there already."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import trio

from p2pnode.config.experts import Codec
from p2pnode.errors import P2PNodeError, RemoteError
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.tensors import metas_of
from p2pnode.swarm.splitting.core import Plan
from p2pnode.swarm.splitting.versions import Version
from p2pnode.trainer.sources import CallPolicy
from p2pnode.trainer.splitting.shares import Rows
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

Spans = tuple[tuple[PeerId, Rows], ...]
"""Who computed which rows: what `Answer.by` is of a split call."""


@dataclass(slots=True, eq=False)
class Step:
    """A step of one layer, from its place in line to its end."""

    over: trio.Event = field(default_factory=trio.Event)
    step_id: bytes = b""  # once nothing but sum and commit is left


@dataclass(slots=True)
class Done:
    """A part that was computed; one without rows is of a peer that has joined the step only."""

    peer_id: PeerId
    rows: Rows
    tensors: Sequence[torch.Tensor]
    version: Version
    waited: float  # seconds, of the call's, in which the peer did something else


@dataclass(slots=True, eq=False)
class Work:
    """One split call: what is computed of it, and by whom."""

    uid: Uid
    until: float  # on trio's clock
    policy: CallPolicy
    tensors: tuple[torch.Tensor, ...]  # inputs, and in backward the gradients behind them
    gradients: int  # so many of them
    limits: dict[PeerId, int]  # of the peers that take part still, the most rows of one part
    known: Version | None = None  # the expert's newest one that the caller has seen
    done: list[Done] = field(default_factory=list)
    parts: Counter[PeerId] = field(default_factory=Counter)  # kept by each peer, in backward
    numbers: int = 0  # of parts that were begun
    odd: list[PeerId] = field(default_factory=list)  # whose weights were not those of most, once
    failure: RemoteError | None = None  # of the last peer that failed
    fatal: P2PNodeError | None = None  # for which no peer is to blame
    after: "Step | None" = None  # the one before, which a forward call need not wait for here
    step_id: bytes = b""
    now: bool = False  # the step is joined with its parts, or not at all
    plans: dict[PeerId, Plan] = field(default_factory=dict)  # the last ones to add up
    is_planned: bool = False  # they hold
    joined: list[PeerId] = field(default_factory=list)  # where the step has its turn
    left: list[PeerId] = field(default_factory=list)  # where it had it, and goes on without

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.tensors[0])

    @property
    def peers(self) -> list[PeerId]:
        """Who takes part still, in the order that all callers share."""
        return list(self.limits)

    def lose(self, peer_id: PeerId, error: RemoteError) -> None:
        """Take in that a peer takes no part any more."""
        self.limits.pop(peer_id, None)
        self.is_planned = False
        if peer_id in self.joined:
            self.joined.remove(peer_id)
            self.left.append(peer_id)
        self.failure = error

    def receive_joined(self, peer_id: PeerId) -> None:
        """Take in that the step has its turn at a peer."""
        if peer_id not in self.joined:
            self.joined.append(peer_id)

    def plan(self, parts: Mapping[PeerId, int], codec: Codec) -> None:
        """Make another plan for all who take part still.

        Args:
            parts: how many each of them has, 0 by default.
            codec: how their gradients travel.
        """
        attempt = 1 + max((plan.attempt for plan in self.plans.values()), default=0)
        group = tuple(self.limits)
        self.plans = {
            peer_id: Plan(
                attempt=attempt,
                parts=parts.get(peer_id, 0),
                rows=self.rows,
                group=group,
                codec=codec,
            )
            for peer_id in group
        }
        self.is_planned = True

    def check_peers(self) -> None:
        """Return if somebody takes part still.

        Raises:
            RemoteError: nobody does; why the last one does not.
        """
        if not self.limits:
            assert self.failure is not None
            raise self.failure

    def give_up_at(self) -> float:
        """Return until when to wait for one peer: there is time left for others."""
        now = trio.current_time()
        return self.until if len(self.limits) < 2 else now + (self.until - now) / 2

    def take_back(self) -> list[Rows]:
        """Return the rows that were computed by peers that take no part any more, to be redone."""
        lost = [each for each in self.done if each.peer_id not in self.limits]
        self.done = [each for each in self.done if each.peer_id in self.limits]
        return [each.rows for each in lost if each.rows]

    def answer(self) -> tuple[torch.Tensor, ...]:
        """Put the parts together."""
        parts = sorted((each for each in self.done if each.rows), key=lambda each: each.rows.start)
        columns = zip(*(each.tensors for each in parts), strict=True)
        return tuple(map(torch.cat, columns)) if len(parts) > 1 else tuple(parts[0].tensors)

    def spans(self) -> Spans:
        """Return who computed which rows."""
        return tuple((each.peer_id, each.rows) for each in self.done if each.rows)


def most_rows(
    info: ExpertInfo, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> int:
    """Return how many rows a peer takes in one call, at least one.

    Raises:
        SchemaError: the inputs do not fit it.
    """
    rows = len(inputs[0])
    if rows:
        one = metas_of([each[:1] for each in inputs])
        info.check_inputs(one)
        positions = info.positions_of([meta.shape for meta in one])
        size = sum(each.nbytes for each in (*inputs, *gradients)) // rows
        return max(1, min(info.max_rows // positions, info.max_bytes // max(1, size)))
    info.check_inputs(metas_of(inputs))  # says that there are no rows
    return 1
