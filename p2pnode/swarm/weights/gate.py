"""Which of a host's experts others may call now: between the tensor server and the experts.

Replicas that stand by are hosted, but not served. An expert that is being handed over is served by
nobody for a moment: calls of it wait, since its state is on the way, and are then told to look up
who serves it. So no call is lost, and none is applied on both hosts.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence

import torch
import trio

from p2pnode.errors import DeadlineExceededError, UnknownExpertError
from p2pnode.rpc.age import Age
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.server import CallHandler
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class Gate(CallHandler):
    """Lets calls through to the experts that are open; all are, but those that were closed.

    Args:
        experts: who computes.
    """

    def __init__(self, experts: CallHandler) -> None:
        self._experts = experts
        self._closed: set[Uid] = set()
        self._held: dict[Uid, trio.Event] = {}  # being handed over; set when that is decided
        self._running: Counter[Uid] = Counter()
        self._changed = trio.Event()

    def is_open(self, uid: Uid) -> bool:
        """Whether calls of an expert are let through, perhaps after a moment."""
        return uid not in self._closed

    def close(self, uids: Iterable[Uid]) -> None:
        """Refuse calls of some experts from now on; those under way go on."""
        self._closed.update(uids)

    def open(self, uids: Iterable[Uid]) -> None:
        """Let calls of some experts through."""
        self._closed.difference_update(uids)

    @contextlib.asynccontextmanager
    async def holding(self, uid: Uid) -> AsyncIterator[None]:
        """Let new calls of an expert wait, while the block runs; it begins when none is under way.

        At the end they are let through, or refused if `close` was called meanwhile.
        """
        decided = self._held[uid] = trio.Event()
        try:
            while self._running[uid]:
                await self._changed.wait()
            yield
        finally:
            del self._held[uid]
            decided.set()

    def info(self, uid: Uid, span: int = 1) -> ExpertInfo:
        """See `CallHandler`."""
        self._check_open(uid.span(span))
        return self._experts.info(uid, span)

    def check(self, uid: Uid, span: int = 1, *, caller: PeerId) -> None:
        """See `CallHandler`."""
        self._check_open(uid.span(span))
        self._experts.check(uid, span, caller=caller)

    async def forward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        deadline: float,
        age: Age | None = None,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        uids = uid.span(span)
        await self._pass(uids, deadline)
        self._begin(uids)
        try:
            return await self._experts.forward(
                uid, inputs, span=span, caller=caller, deadline=deadline, age=age
            )
        finally:
            self._end(uids)

    async def backward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        call_id: bytes,
        deadline: float,
        age: Age | None = None,
        wants_gradients: bool = True,
    ) -> list[torch.Tensor]:
        """See `CallHandler`."""
        uids = uid.span(span)
        await self._pass(uids, deadline)
        self._begin(uids)
        try:
            return await self._experts.backward(
                uid,
                inputs,
                gradients,
                span=span,
                caller=caller,
                call_id=call_id,
                deadline=deadline,
                age=age,
                wants_gradients=wants_gradients,
            )
        finally:
            self._end(uids)

    async def _pass(self, uids: Sequence[Uid], deadline: float) -> None:
        """Wait until none of some experts is being handed over; they are open then."""
        if self._held:
            with trio.move_on_at(deadline):
                while (held := self._first_held(uids)) is not None:
                    await held.wait()
            if self._first_held(uids) is not None:
                raise DeadlineExceededError("the expert is still being handed over to another host")
        self._check_open(uids)

    def _first_held(self, uids: Sequence[Uid]) -> trio.Event | None:
        return next((self._held[uid] for uid in uids if uid in self._held), None)

    def _check_open(self, uids: Sequence[Uid]) -> None:
        if not self._closed:
            return
        for uid in uids:
            if uid in self._closed:
                raise UnknownExpertError(
                    f"this host does not serve {uid.name} now; look up who does"
                )

    def _begin(self, uids: Sequence[Uid]) -> None:
        for uid in uids:
            self._running[uid] += 1

    def _end(self, uids: Sequence[Uid]) -> None:
        for uid in uids:
            self._running[uid] -= 1
        if self._held:
            self._changed.set()
            self._changed = trio.Event()
