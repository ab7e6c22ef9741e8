"""What a member gives the others in one attempt: its part, or all of the result if they lack it.

The part is reduced from the contributions that come on the streams on which it is given, chunk by
chunk. Those that are silent meanwhile are lost.
"""

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
import trio

from p2pnode.errors import (
    AveragingError,
    DeadlineExceededError,
    P2PNodeError,
    RemoteError,
    RoundError,
    StreamResetError,
)
from p2pnode.host import Stream
from p2pnode.rpc.budget import Charge
from p2pnode.swarm.averaging.aggregation import aggregate, is_quick, needs_whole_part
from p2pnode.swarm.averaging.elements import is_finite
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    Join,
    Part,
    Whole,
    decode_done,
    encode_answer,
)
from p2pnode.swarm.averaging.pace import Pace
from p2pnode.swarm.averaging.parts import Span, chunks
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.swarm.averaging.attempt import Attempt
    from p2pnode.swarm.averaging.round import Round

_LOOK_PAUSE: Final = 0.1  # seconds between two looks for members that do not come


@dataclass(slots=True)
class _Slot:
    """What has come of one member's contribution to our part."""

    weight: float = 0.0
    chunks: list[torch.Tensor] = field(default_factory=list)
    is_live: bool = False  # a stream is there
    has_come: bool = False  # one was there before
    active_at: float = -math.inf  # when it last took what it is given, or said that it waits
    is_lost_at: float = 0.0  # unless it comes back before


class Serving:
    """The streams of one attempt that others have opened to this member.

    Args:
        attempt: this is of.
        current: the round.
        span: of the part that this member reduces; empty if it reduces none.
    """

    def __init__(self, attempt: "Attempt", current: "Round", span: Span) -> None:
        self._attempt = attempt
        self._round, self._view = current, current.view
        self._members = attempt.members
        self._settings, self._carrier = current.settings, current.carrier
        self._ours, self._results = current.reducible.ours, current.reducible.results
        self._share = (span[1] - span[0]) / max(1, self._ours.count)  # of all elements
        self._chunks = chunks(span)
        self._slots = {each: _Slot() for each in self._members if each != current.own}
        self._weight = 0.0  # of all contributions to our part, once it is known
        self._reduced: list[memoryview] = []  # chunks of our part, as they travel
        self._informed = {current.own}  # who has the result, as far as we know
        self._progress = trio.lowlevel.ParkingLot()
        self._scopes: list[trio.CancelScope] = []
        patience = self._settings.patience
        self._arrivals = Pace(
            len(self._slots),
            trio.current_time(),
            least=patience,
            most=patience if attempt.number else self._settings.arrival_timeout,
        )

    async def run(self) -> None:
        """Reduce our part, if we have one, until the attempt has the whole result."""
        if self._chunks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reduce)
                nursery.start_soon(self._watch)

    def close(self) -> None:
        """Let go of all that are served."""
        for scope in self._scopes:
            scope.cancel()

    async def _reduce(self) -> None:
        """Reduce chunk after chunk, as soon as all contributions to it are there."""
        count = len(self._chunks)
        step = count if needs_whole_part(self._round.group.aggregator) else 1
        try:
            for first in range(0, count, step):
                behind = first + step
                while any(len(slot.chunks) < behind for slot in self._slots.values()):
                    await self._progress.park()
                if not first:
                    self._weight = math.fsum(self._weights())
                result = await self._aggregate(range(first, behind))
                if result is None:
                    return
                await self._pass_on(range(first, behind), result)
            self._attempt.finish_part(self._round.own, self._weight)
        except P2PNodeError as error:
            self._attempt.fail(error)

    async def _aggregate(self, numbers: range) -> torch.Tensor | None:
        """Reduce some chunks as one; None if contributions to them are not numbers."""
        contributions = [await self._contribution(each, numbers) for each in self._members]
        aggregator, weights = self._round.group.aggregator, self._weights()

        def work() -> torch.Tensor:
            return aggregate(aggregator, contributions, weights, share=self._share)

        size = 0 if is_quick(aggregator) else sum(each.nbytes for each in contributions)
        result = await self._round.transcoder.do(work, size)
        if is_finite(result):
            return result
        pairs = zip(self._members, contributions, strict=True)
        liars = [peer_id for peer_id, each in pairs if not is_finite(each)]
        if not liars:
            raise AveragingError(
                "the contributions are finite, but what they reduce to is not: scale them down"
            )
        for peer_id in liars:
            self._round.lose(peer_id, "contributed NaN or infinite values")
        return None

    async def _contribution(self, peer_id: PeerId, numbers: range) -> torch.Tensor:
        if peer_id == self._round.own:
            return self._ours.get((self._chunks[numbers[0]][0], self._chunks[numbers[-1]][1]))
        received = self._slots[peer_id].chunks
        decoded = [
            await self._carrier.decode(received[number], self._chunks[number]) for number in numbers
        ]
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)

    async def _pass_on(self, numbers: range, result: torch.Tensor) -> None:
        """Make reduced chunks ready for the others, and keep what they make of them."""
        at = 0
        for number in numbers:
            start, end = self._chunks[number]
            travelling = await self._carrier.encode(result[at : at + end - start])
            self._results.put((start, end), travelling.decoded)
            self._reduced.append(travelling.buffer)
            self._progress.unpark_all()
            at += end - start

    def _weights(self) -> list[float]:
        return [
            self._round.weight if peer_id == self._round.own else self._slots[peer_id].weight
            for peer_id in self._members
        ]

    async def _watch(self) -> None:
        """Lose members that do not come, or do not come back."""
        while not self._attempt.complete.is_set():
            now = trio.current_time()
            awaited = {
                peer_id: slot.is_lost_at if slot.has_come else self._arrivals.limit
                for peer_id, slot in self._slots.items()
                if not slot.is_live and len(slot.chunks) < len(self._chunks)
            }
            for peer_id, is_lost_at in awaited.items():
                if is_lost_at <= now:
                    self._attempt.lose(peer_id, "did not contribute in time")
            with trio.move_on_at(max(min(awaited.values(), default=math.inf), now + _LOOK_PAUSE)):
                await self._progress.park()

    async def serve(self, stream: Stream, join: Join, charge: Charge) -> None:
        """Take a member's contribution, and give it what it is to have; see `Round.serve`."""
        peer_id = stream.peer_id
        takes = join.wants == "whole"
        if self._view.is_complete and not takes:
            await stream.send_all(encode_answer(self._whole()))
            return
        slot = self._slots.setdefault(peer_id, _Slot())
        if slot.is_live:
            raise RoundError("you contribute already; do so once in a round")
        if not self._view.is_complete and (takes or not self._chunks):
            raise RoundError("this member has nothing to give; the members' groups differ")
        slot.is_live = True
        if not slot.has_come:
            slot.has_come = True
            self._arrivals.receive_done(trio.current_time())
            self._progress.unpark_all()
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            stream.cancel_when_lost(scope)
            try:
                if takes:
                    slot.active_at = math.inf
                    await stream.send_all(encode_answer(self._whole()))
                    await self._carrier.send_exactly(stream, self._results)
                    slot.active_at = trio.current_time()
                else:
                    slot.weight = join.weight
                    await self._exchange(stream, slot, charge)
                await self._hear_done(stream, slot)
                await self._round.over.wait()
                return
            finally:
                slot.is_live = False
                slot.is_lost_at = trio.current_time() + self._settings.patience
                self._scopes.remove(scope)
                if stream.connection.is_closed:
                    self._attempt.lose(peer_id, "is gone")
                    self.receive_informed(peer_id)  # there is nobody to inform any more
                self._progress.unpark_all()
        raise StreamResetError("the attempt is over, or its other side has given it up")

    def _whole(self) -> Whole:
        return Whole(members=self._view.members, weight=self._round.total_weight)

    async def _exchange(self, stream: Stream, slot: _Slot, charge: Charge) -> None:
        """Take a contribution, and give the reduced part."""
        charge.add(self._carrier.size(self._chunks))
        failure: RemoteError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_part, stream, slot)
            slot.chunks.clear()
            try:
                for chunk in self._chunks:
                    patience = self._settings.patience
                    slot.chunks.append(await self._carrier.receive_chunk(stream, chunk, patience))
                    self._progress.unpark_all()
            except RemoteError as error:
                failure = error
                nursery.cancel_scope.cancel()
        if isinstance(failure, DeadlineExceededError):  # at once: others wait for our part
            self._attempt.lose(stream.peer_id, f"fell silent: {failure}")
        if failure is not None:
            raise failure

    async def _give_part(self, stream: Stream, slot: _Slot) -> None:
        with contextlib.suppress(RemoteError):  # whoever reads the stream meets it, and tells
            for number in range(len(self._chunks)):
                while len(self._reduced) <= number:
                    await self._progress.park()
                if not number:
                    answer = Part(members=self._members, weight=self._weight)
                    await stream.send_all(encode_answer(answer))
                await stream.send_all(self._reduced[number])
                slot.active_at = trio.current_time()

    async def _hear_done(self, stream: Stream, slot: _Slot) -> None:
        is_done = False
        while not is_done:
            data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
            if data is None:
                raise StreamResetError("it ended the stream without having the result")
            is_done = decode_done(data)
            slot.active_at = trio.current_time()
        self.receive_informed(stream.peer_id)

    def receive_informed(self, peer_id: PeerId) -> None:
        """A member has the result."""
        self._informed.add(peer_id)
        self._progress.unpark_all()

    async def await_informed(self) -> None:
        """Wait for those that can still be reached to have the result.

        Who waits for another one's part says so every now and then. Whoever neither takes what it
        is given, nor says anything, is silent.
        """
        if not self._chunks:
            return  # nobody asks us: those that reduce wait for the others
        began = trio.current_time()
        while missing := [each for each in self._view.members if each not in self._informed]:
            active = (self._slots[each].active_at for each in missing if each in self._slots)
            limit = max(began, max(active, default=began)) + self._settings.patience
            if trio.current_time() >= limit:
                return
            with trio.move_on_at(limit):
                await self._progress.park()
