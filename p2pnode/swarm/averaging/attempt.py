"""One attempt to reduce for one view, and the giving to those that need more when it has succeeded.

An attempt has a stream to each member that reduces, on which we contribute and get a part, and one
from each member, if we reduce.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
import trio

from p2pnode.errors import (
    AveragingError,
    ConnectionClosedError,
    DeadlineExceededError,
    P2PNodeError,
    ProtocolError,
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
    Answer,
    Join,
    Moved,
    Part,
    Refusal,
    Whole,
    decode_answer,
    decode_done,
    encode_answer,
    encode_done,
)
from p2pnode.swarm.averaging.pace import Pace
from p2pnode.swarm.averaging.parts import Span, chunks, shares, spans
from p2pnode.swarm.averaging.terms import UploadMeter
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.swarm.averaging.round import Round

_LOOK_PAUSE: Final = 0.1  # seconds between two looks for members that do not come


@dataclass(slots=True)
class _Slot:
    """What has come of one member's contribution to our part."""

    weight: float = 0.0
    chunks: list[torch.Tensor] = field(default_factory=list)
    is_live: bool = False  # a stream is there
    has_come: bool = False  # one was there before
    active_at: float = -math.inf  # when it last took something of what it is given
    is_lost_at: float = 0.0  # unless it comes back before


class Attempt:
    """One view's attempt, and after it has succeeded, the giving to those that need more."""

    def __init__(self, current: "Round") -> None:
        view = self._view = current.view
        self.number = view.attempt
        self._round = current
        self._members = view.members
        self._settings = current.settings
        self._ours, self._results = current.reducible.ours, current.reducible.results
        self._carrier = current.carrier
        spans_in_order = _share_out(self._members.values(), self._ours.count)
        self._span_of = dict(zip(self._members, spans_in_order, strict=True))
        self._span = self._span_of.get(current.own, (0, 0))
        self._chunks = chunks(self._span)
        self._missing = {each for each in self._members if self._reduces(each)}
        self._slots = {each: _Slot() for each in self._members if each != current.own}
        self._weight = 0.0  # of all contributions to our part, once it is known
        self._total_weight: float | None = None  # as the parts that have come say
        self._reduced: list[memoryview] = []  # chunks of our part, as they travel
        self._progress = trio.lowlevel.ParkingLot()
        self._complete = trio.Event()
        self._given_by: PeerId | None = None  # who gave us the whole result, if we needed it
        self._informed = {current.own}  # who has the result, as far as we know
        self._meter = UploadMeter(trio.current_time(), self._settings.least_measured)
        patience, now = self._settings.patience, trio.current_time()
        self._arrivals = Pace(
            len(self._slots),
            now,
            least=patience,
            most=patience if self.number else self._settings.arrival_timeout,
        )
        self._answers = Pace(
            len(self._missing - {current.own}),
            now,
            least=2 * patience,  # it may have waited for somebody to arrive
            most=self._settings.answer_patience,
        )
        self._waiting: dict[PeerId, trio.CancelScope] = {}  # for answers
        self._failure: P2PNodeError | None = None  # of the whole round
        self._scope = trio.CancelScope()
        self._asking: dict[PeerId, trio.CancelScope] = {}
        self._serving: list[trio.CancelScope] = []

    def _reduces(self, peer_id: PeerId) -> bool:
        start, end = self._span_of[peer_id]
        return start < end

    async def run(self) -> None:
        """Go on until the round is over for all, or the view has changed."""
        own = self._round.own
        if not any(self._members.values()):
            raise AveragingError(
                self._round.describe("no member is left that could reduce anything")
            )
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for peer_id in self._members:
                        if peer_id != own and self._reduces(peer_id):
                            nursery.start_soon(self._ask, peer_id)
                    if self._chunks:
                        nursery.start_soon(self._reduce)
                        nursery.start_soon(self._watch)
                    await self._complete.wait()
                    self._round.on_complete()
                    await self._linger()
                    nursery.cancel_scope.cancel()
        finally:
            self._drop_served()
        if self._failure is not None:
            raise AveragingError(self._round.describe(str(self._failure))) from self._failure

    async def _linger(self) -> None:
        """Give to those that need more, until the round is over for all, or they are too late."""
        with trio.move_on_after(self._settings.linger):
            if self._given_by is None:
                await self._await_informed()
            else:
                await self._tell_all(self._given_by)
            self._round.over.set()  # those that wait for it end their streams
            with trio.move_on_after(self._settings.patience):
                while self._asking:
                    await self._progress.park()

    def end(self) -> None:
        """Give up: the view has changed, or the round has ended."""
        self._scope.cancel()
        self._drop_served()

    def _drop_served(self) -> None:
        for scope in self._serving:
            scope.cancel()

    def _lose(self, peer_id: PeerId, reason: str) -> None:
        if self.number == self._view.attempt:  # else whoever is really lost will be found lost anew
            self._round.lose(peer_id, reason)

    # --- the parts of others --------------------------------------------------------------------

    async def _ask(self, peer_id: PeerId) -> None:
        """Contribute to a member's part, and get it reduced; or lose the member."""
        failure = "gave no answer"
        with trio.CancelScope() as self._asking[peer_id]:
            for _ in range(self._settings.asks):
                try:
                    await self._converse(peer_id)
                    break
                except (StreamResetError, ConnectionClosedError) as error:  # it may have moved on
                    failure = f"is gone: {error}"
                except RemoteError as error:
                    failure = f"failed: {error}"
                    break
                if self._complete.is_set():
                    break
            if peer_id in self._missing:
                self._lose(peer_id, failure)
        del self._asking[peer_id]
        self._progress.unpark_all()

    async def _converse(self, peer_id: PeerId) -> None:
        stream = await self._round.open(peer_id)
        is_over = False
        try:
            answer = await self._exchange_parts(stream, peer_id)
            match answer:
                case Refusal(error=error):
                    raise error
                case Moved(members=members):
                    self._round.move(members)
                    if self.number == self._view.attempt:
                        raise ProtocolError("it says that its view is smaller, and it is not")
                    return
                case Whole():
                    await self._take_whole(peer_id)
                    return
            is_over = await self._say_done(stream)
        finally:
            if not is_over:
                stream.reset()
        await stream.aclose()

    async def _exchange_parts(self, stream: Stream, peer_id: PeerId) -> Answer:
        """Contribute to a member's part, and receive its answer, which may come at any time."""
        outcome: Answer | RemoteError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._contribute, stream, peer_id)
            try:
                outcome = await self._await_answer(stream, peer_id)
                if isinstance(outcome, Part):
                    await self._receive_part(stream, peer_id, outcome)
            except RemoteError as error:
                outcome = error
            if not isinstance(outcome, Part):
                nursery.cancel_scope.cancel()
        if isinstance(outcome, RemoteError):
            raise outcome
        return outcome

    async def _say_done(self, stream: Stream) -> bool:
        """Tell a member when we have the whole result, and wait for it to end the stream."""
        await self._complete.wait()
        await stream.send_last(encode_done())
        return not await stream.receive_some(1)

    async def _contribute(self, stream: Stream, peer_id: PeerId) -> None:
        with contextlib.suppress(RemoteError):  # whoever waits for the answer meets it, and tells
            await stream.send_all(self._round.join(peer_id))
            await self._carrier.send(stream, self._ours, self._span_of[peer_id])
            size = self._carrier.size(chunks(self._span_of[peer_id]))
            self._meter.receive_sent(size, trio.current_time())
            self._round.upload = self._meter.rate

    async def _await_answer(self, stream: Stream, peer_id: PeerId) -> Answer:
        """Receive a member's answer, unless it is late by the pace of the others."""
        answer: Answer | None = None
        try:
            with trio.CancelScope(deadline=self._answers.limit) as self._waiting[peer_id]:
                answer = await self._receive_answer(stream)
        finally:
            del self._waiting[peer_id]
        if answer is None:
            raise DeadlineExceededError(f"it gave no part within {self._answers.seconds:.3g} s")
        self._answers.receive_done(trio.current_time())
        for scope in self._waiting.values():
            scope.deadline = self._answers.limit
        return answer

    async def _receive_answer(self, stream: Stream) -> Answer:
        patience = self._settings.answer_patience
        data: bytes | None = None
        with trio.move_on_after(patience) as scope:
            data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"it gave no part within {patience:g} s")
        if data is None:
            raise StreamResetError("it ended the stream")
        return decode_answer(data)

    async def _receive_part(self, stream: Stream, peer_id: PeerId, part: Part) -> None:
        if part.members != self._members:
            raise ProtocolError("its part is of other members' contributions")
        patience = self._settings.part_patience
        await self._carrier.receive(stream, self._results, self._span_of[peer_id], patience)
        self._finish_part(peer_id, part.weight)

    def _finish_part(self, peer_id: PeerId, weight: float) -> None:
        if self.number != self._view.attempt or self._view.is_complete:
            return
        if self._total_weight not in {None, weight}:
            raise ProtocolError("the members' weights are not the same in all parts")
        self._total_weight = weight
        self._missing.discard(peer_id)
        if not self._missing:
            self._round.total_weight = weight
            self._view.receive_result()
            self._complete.set()

    async def _take_whole(self, peer_id: PeerId) -> None:
        """Take the result of a member that has ended the round without losing anybody."""
        for other, scope in self._asking.items():
            if other != peer_id:
                scope.cancel()
        self._drop_served()
        stream = await self._round.open(peer_id)
        is_over = False
        try:
            await stream.send_all(self._round.join(peer_id, "whole"))
            answer = await self._receive_answer(stream)
            if isinstance(answer, Refusal):
                raise answer.error
            if not isinstance(answer, Whole):
                raise ProtocolError("it has the result, and does not give it")
            patience = self._settings.patience
            await self._carrier.receive_exactly(stream, self._results, patience)
            if self.number == self._view.attempt and not self._view.is_complete:
                if not self._view.receive_whole(answer.members):
                    raise ProtocolError("its result is not of enough members of our group")
                self._round.total_weight = answer.weight
                self._given_by = peer_id
                self._complete.set()
            is_over = await self._say_done(stream)
        finally:
            if not is_over:
                stream.reset()
        await stream.aclose()

    async def _tell_all(self, giver: PeerId) -> None:
        """Tell those that may wait for us that we were given the result."""
        async with trio.open_nursery() as nursery:
            for peer_id in self._view.members:
                if peer_id not in {giver, self._round.own} and self._view.members[peer_id]:
                    nursery.start_soon(self._tell, peer_id)

    async def _tell(self, peer_id: PeerId) -> None:
        with contextlib.suppress(RemoteError):  # it is gone, or waits for us in vain
            stream = await self._round.open(peer_id)
            async with stream:
                await stream.send_last(self._round.join(peer_id, "nothing"))

    # --- our part -------------------------------------------------------------------------------

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
            self._finish_part(self._round.own, self._weight)
        except P2PNodeError as error:
            self._failure = error
            self._scope.cancel()

    async def _aggregate(self, numbers: range) -> torch.Tensor | None:
        """Reduce some chunks as one; None if contributions to them are not numbers."""
        contributions = [await self._contribution(each, numbers) for each in self._members]
        aggregator, weights = self._round.group.aggregator, self._weights()
        share = (self._span[1] - self._span[0]) / self._ours.count

        def work() -> torch.Tensor:
            return aggregate(aggregator, contributions, weights, share=share)

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
        while not self._complete.is_set():
            now = trio.current_time()
            awaited = {
                peer_id: slot.is_lost_at if slot.has_come else self._arrivals.limit
                for peer_id, slot in self._slots.items()
                if not slot.is_live and len(slot.chunks) < len(self._chunks)
            }
            for peer_id, is_lost_at in awaited.items():
                if is_lost_at <= now:
                    self._lose(peer_id, "did not contribute in time")
            with trio.move_on_at(max(min(awaited.values(), default=math.inf), now + _LOOK_PAUSE)):
                await self._progress.park()

    async def serve(self, stream: Stream, join: Join, charge: Charge) -> None:
        """See `Round.serve`."""
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
            self._serving.append(scope)
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
                await self._hear_done(stream, peer_id)
                await self._round.over.wait()
                return
            finally:
                slot.is_live = False
                slot.is_lost_at = trio.current_time() + self._settings.patience
                self._serving.remove(scope)
                if stream.connection.is_closed:
                    self._lose(peer_id, "is gone")
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

    async def _hear_done(self, stream: Stream, peer_id: PeerId) -> None:
        data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if data is None:
            raise StreamResetError("it ended the stream without having the result")
        decode_done(data)
        self.receive_informed(peer_id)

    def receive_informed(self, peer_id: PeerId) -> None:
        """A member has the result."""
        self._informed.add(peer_id)
        self._progress.unpark_all()

    async def _await_informed(self) -> None:
        """Wait for those that can still be reached to have the result.

        Of several that have not, one may wait for another one, which it has yet to find lost. The
        last one waits for nobody; it takes what it is given, or it is silent.
        """
        if not self._chunks:
            return  # nobody asks us: those that reduce wait for the others
        began = trio.current_time()
        while missing := [each for each in self._view.members if each not in self._informed]:
            settings = self._settings
            least = settings.part_patience if len(missing) > 1 else settings.patience
            active = (self._slots[each].active_at for each in missing if each in self._slots)
            limit = max(began, max(active, default=began)) + least
            if trio.current_time() >= limit:
                return
            with trio.move_on_at(limit):
                await self._progress.park()


def _share_out(bandwidths: Iterable[float], count: int) -> list[Span]:
    """Cut the elements in parts for members with these bandwidths; none if nobody has any."""
    sizes = list(bandwidths)
    return spans(shares(sizes), count) if any(sizes) else [(0, 0)] * len(sizes)
