"""One attempt to reduce for one view, and the giving to those that need more when it has succeeded.

An attempt has a stream to each member that reduces, on which we contribute and get a part, and one
from each member, if we reduce (`serving`).
"""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from p2pnode.errors import (
    AveragingError,
    ConnectionClosedError,
    DeadlineExceededError,
    P2PNodeError,
    ProtocolError,
    RemoteError,
    StreamResetError,
)
from p2pnode.host import Stream
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    Answer,
    Moved,
    Part,
    Refusal,
    Whole,
    decode_answer,
    encode_done,
)
from p2pnode.swarm.averaging.pace import Pace
from p2pnode.swarm.averaging.parts import Span, chunks, shares, spans
from p2pnode.swarm.averaging.serving import Serving
from p2pnode.swarm.averaging.terms import UploadMeter
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.swarm.averaging.round import Round


class Attempt:
    """One view's attempt, and after it has succeeded, the giving to those that need more.

    Attributes:
        number: of the view.
        members: of the view, with their bandwidths.
        complete: set when the whole result is here.
        serving: what other members get here.
    """

    def __init__(self, current: "Round") -> None:
        view = self._view = current.view
        self.number = view.attempt
        self._round = current
        self.members = view.members
        self.complete = trio.Event()
        self._settings = current.settings
        self._ours, self._results = current.reducible.ours, current.reducible.results
        self._carrier = current.carrier
        spans_in_order = _share_out(self.members.values(), self._ours.count)
        self._span_of = dict(zip(self.members, spans_in_order, strict=True))
        self._missing = {each for each in self.members if self._reduces(each)}
        self._total_weight: float | None = None  # as the parts that have come say
        self._given_by: PeerId | None = None  # who gave us the whole result, if we needed it
        self._meter = UploadMeter(trio.current_time(), self._settings.least_measured)
        self._answers = Pace(
            len(self._missing - {current.own}),
            trio.current_time(),
            least=2 * self._settings.patience,  # one to wait for somebody, one for a chunk
            most=self._settings.answer_patience,
        )
        self._waiting: dict[PeerId, trio.CancelScope] = {}  # for answers
        self._failure: P2PNodeError | None = None  # of the whole round
        self._scope = trio.CancelScope()
        self._asking: dict[PeerId, trio.CancelScope] = {}
        self._asked = trio.lowlevel.ParkingLot()  # of one member less
        self.serving = Serving(self, current, self._span_of.get(current.own, (0, 0)))

    def _reduces(self, peer_id: PeerId) -> bool:
        start, end = self._span_of[peer_id]
        return start < end

    async def run(self) -> None:
        """Go on until the round is over for all, or the view has changed."""
        own = self._round.own
        if not any(self.members.values()):
            raise AveragingError(
                self._round.describe("no member is left that could reduce anything")
            )
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for peer_id in self.members:
                        if peer_id != own and self._reduces(peer_id):
                            nursery.start_soon(self._ask, peer_id)
                    nursery.start_soon(self.serving.run)
                    await self.complete.wait()
                    self._round.on_complete()
                    await self._linger()
                    nursery.cancel_scope.cancel()
        finally:
            self.serving.close()
        if self._failure is not None:
            raise AveragingError(self._round.describe(str(self._failure))) from self._failure

    async def _linger(self) -> None:
        """Give to those that need more, until the round is over for all, or they are too late."""
        with trio.move_on_after(self._settings.linger):
            if self._given_by is None:
                await self.serving.await_informed()
            else:
                await self._tell_all(self._given_by)
            self._round.over.set()  # those that wait for it end their streams
            with trio.move_on_after(self._settings.patience):
                while self._asking:
                    await self._asked.park()

    def end(self) -> None:
        """Give up: the view has changed, or the round has ended."""
        self._scope.cancel()
        self.serving.close()

    def fail(self, error: P2PNodeError) -> None:
        """End the whole round without a result."""
        self._failure = error
        self._scope.cancel()

    def lose(self, peer_id: PeerId, reason: str) -> None:
        """Go on without a member in another attempt."""
        if self.number == self._view.attempt:  # else whoever is really lost will be found lost anew
            self._round.lose(peer_id, reason)

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
                if self.complete.is_set():
                    break
            if peer_id in self._missing:
                self.lose(peer_id, failure)
        del self._asking[peer_id]
        self._asked.unpark_all()

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
        """Tell a member that we wait, then that we have it all; it ends the stream."""
        while not self.complete.is_set():
            with trio.move_on_after(self._settings.patience / 2):
                await self.complete.wait()
                break
            await stream.send_all(encode_done(is_done=False))
        await stream.send_last(encode_done(is_done=True))
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
        if part.members != self.members:
            raise ProtocolError("its part is of other members' contributions")
        patience = self._settings.part_patience
        await self._carrier.receive(stream, self._results, self._span_of[peer_id], patience)
        self.finish_part(peer_id, part.weight)

    def finish_part(self, peer_id: PeerId, weight: float) -> None:
        """A member's part is here.

        Args:
            peer_id: whose it is.
            weight: of all contributions to it.

        Raises:
            ProtocolError: this is not that of the other parts.
        """
        if self.number != self._view.attempt or self._view.is_complete:
            return
        if self._total_weight not in {None, weight}:
            raise ProtocolError("the members' weights are not the same in all parts")
        self._total_weight = weight
        self._missing.discard(peer_id)
        if not self._missing:
            self._round.total_weight = weight
            self._view.receive_result()
            self.complete.set()

    async def _take_whole(self, peer_id: PeerId) -> None:
        """Take the result of a member that has ended the round without losing anybody."""
        for other, scope in self._asking.items():
            if other != peer_id:
                scope.cancel()
        self.serving.close()
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
                self.complete.set()
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


def _share_out(bandwidths: Iterable[float], count: int) -> list[Span]:
    """Cut the elements in parts for members with these bandwidths; none if nobody has any."""
    sizes = list(bandwidths)
    return spans(shares(sizes), count) if any(sizes) else [(0, 0)] * len(sizes)
