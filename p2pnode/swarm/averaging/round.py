"""One member's part in one round: it asks the others for its parts, and reduces its own.

A round is one attempt after the other, each for one view (`core`), until one succeeds. An attempt
has a stream to each member that reduces, on which we contribute and get a part, and one from each
member, if we reduce. The round ends when all have said that they have the result: until then, who
has it all gives it to those that have lost whoever was to give them the rest.
"""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Final

import torch
import trio

from p2pnode.config import AveragingSettings
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
from p2pnode.events import Event
from p2pnode.host import Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.budget import Charge
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.swarm.averaging.aggregation import aggregate
from p2pnode.swarm.averaging.core import Verdict, View, ranks
from p2pnode.swarm.averaging.elements import Reducible, is_finite
from p2pnode.swarm.averaging.group import Group
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Answer,
    Join,
    Moved,
    Part,
    Refusal,
    Wants,
    Whole,
    decode_answer,
    decode_done,
    encode_answer,
    encode_done,
    encode_join,
)
from p2pnode.swarm.averaging.parts import Span, chunks, shares, spans
from p2pnode.swarm.averaging.travel import Carrier
from p2pnode.wire.peer_id import PeerId

_LOOK_PAUSE: Final = 0.1  # seconds between two looks for members that do not come


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What became of a round.

    Attributes:
        tensors: the result, of the shapes, dtypes and devices of what was given.
        contributors: whose tensors it was made of.
        weight: the sum of their weights.
    """

    tensors: list[torch.Tensor]
    contributors: tuple[PeerId, ...]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnded(Event):
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
        group: who reduces what.
        own: this member's rank.
        view: whose contributions count.
        reducible: what is reduced.
        carrier: how elements travel.
        over: set when the round has ended here.
    """

    def __init__(
        self,
        group: Group,
        own: int,
        reducible: Reducible,
        *,
        weight: float,
        quorum: int,
        token: bytes | None,
        access: Access,
        settings: AveragingSettings,
        transcoder: Transcoder,
    ) -> None:
        self.group = group
        self.own = own
        self.view = View(len(group.members), own, quorum)
        self.reducible = reducible
        self.weight = weight
        self.carrier = Carrier(group.codec, reducible.precision, transcoder)
        self.settings = settings
        self.over = trio.Event()
        self.total_weight = 0.0
        self._digest = group.digest(reducible.metas)
        self._token = token
        self._access = access
        self._reasons: dict[int, str] = {}  # why members are lost, by rank
        self._attempt: _Attempt | None = None
        self._changed = trio.Event()  # another attempt has begun

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Of whose tensors the result is; none before it is there."""
        if not self.view.is_complete:
            return ()
        return tuple(self.group.members[rank].peer_id for rank in ranks(self.view.members))

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
            self._attempt = _Attempt(self)
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
        lost = "; ".join(
            f"{self.group.members[rank].peer_id.short} {why}"
            for rank, why in sorted(self._reasons.items())
        )
        return f"the round ended without a result, since {reason}" + (f" ({lost})" if lost else "")

    def _why_failed(self) -> str:
        if self.view.is_excluded:
            return "the others went on without this node"
        return f"only {self.view.members.bit_count()} of {len(self.group.members)} members are left"

    # --- for attempts ---------------------------------------------------------------------------

    def join(self, wants: Wants = "part") -> bytes:
        """Return the message that our streams begin with."""
        return encode_join(
            Join(
                run_id=self.group.run_id,
                round_id=self.group.round_id,
                digest=self._digest,
                members=self.view.members,
                weight=self.weight,
                wants=wants,
                token=self._token,
            )
        )

    def lose(self, rank: int, reason: str) -> None:
        """Go on without a member."""
        if not self.view.is_complete and self.view.members >> rank & 1:
            self._reasons[rank] = reason
            self.view.receive_lost(rank)
            self._follow_view()

    def move(self, members: int) -> None:
        """Go on with fewer members, as another one does."""
        before = self.view.members
        self.view.receive_moved(members)
        for rank in ranks(before & ~self.view.members):
            self._reasons.setdefault(rank, "was lost to another member")
        self._follow_view()

    def _follow_view(self) -> None:
        if self._attempt is not None and self._attempt.number != self.view.attempt:
            self._attempt.end()

    async def open(self, rank: int) -> Stream:
        """Open a stream to a member; see `Access.connect` for what it raises."""
        connection = await self._access.connect(self.group.members[rank].peer_id)
        return await connection.open_stream([PROTOCOL])

    # --- for the members that we serve ----------------------------------------------------------

    def admit(self, peer_id: PeerId, join: Join) -> int:
        """Return the rank of a peer that wants to contribute.

        Raises:
            RoundError: it is not in the group, or its group or tensors are others than ours.
        """
        rank = self.group.rank(peer_id)
        if rank is None or rank == self.own:
            raise RoundError("you are not in this round's group here; the members must agree on it")
        if join.digest != self._digest:
            raise RoundError(
                "your group or your tensors' shapes are not those of this member; all must agree"
            )
        return rank

    async def serve(self, stream: Stream, rank: int, join: Join, charge: Charge) -> None:
        """Take a member's contribution, and give it what it is to have.

        Raises:
            RoundError: it comes late, or twice.
            OverloadedError: it holds too much memory here.
            RemoteError: it broke a rule, or is gone.
        """
        if join.wants == "nothing":
            if self._attempt is not None:
                self._attempt.receive_informed(rank)
            return
        verdict = self.view.receive_join(rank, join.members)
        self._follow_view()
        if verdict is Verdict.STRANGER or self.over.is_set():
            raise RoundError("this round goes on without you; come to the next one")
        if verdict is Verdict.MOVED:
            await stream.send_all(encode_answer(Moved(members=self.view.members)))
            return
        if verdict is not Verdict.WHOLE:
            while self._attempt is None or self._attempt.number != self.view.attempt:
                await self._changed.wait()
                if self.over.is_set():
                    raise RoundError("this round has failed here")
        assert self._attempt is not None  # nothing is complete without one
        await self._attempt.serve(stream, rank, join, charge)


@dataclass(slots=True)
class _Slot:
    """What has come of one member's contribution to our part."""

    weight: float = 0.0
    chunks: list[torch.Tensor] = field(default_factory=list)
    is_live: bool = False  # a stream is there
    is_lost_at: float = 0.0  # unless it comes before


class _Attempt:
    """One view's attempt, and after it has succeeded, the giving to those that need more."""

    def __init__(self, current: Round) -> None:
        view = self._view = current.view
        self.number = view.attempt
        self._round = current
        self._members = view.members
        self._settings = current.settings
        self._ours, self._results = current.reducible.ours, current.reducible.results
        self._carrier = current.carrier
        bandwidths = [
            member.bandwidth if self._members >> rank & 1 else 0.0
            for rank, member in enumerate(current.group.members)
        ]
        self._spans = (
            spans(_shares_within(bandwidths, self._members), self._ours.count)
            if any(bandwidths)
            else []
        )
        self._chunks = chunks(self._span(current.own))
        self._missing = {rank for rank in ranks(self._members) if self._reduces(rank)}
        self._slots = {rank: _Slot() for rank in ranks(self._members) if rank != current.own}
        self._weight = 0.0  # of all contributions to our part, once it is known
        self._total_weight: float | None = None  # as the parts that have come say
        self._reduced: list[memoryview] = []  # chunks of our part, as they travel
        self._progress = trio.lowlevel.ParkingLot()
        self._complete = trio.Event()
        self._given_by: int | None = None  # who gave us the whole result, if we needed it
        self._informed = 1 << current.own  # who has the result, as far as we know
        self._failure: P2PNodeError | None = None  # of the whole round
        self._scope = trio.CancelScope()
        self._asking: dict[int, trio.CancelScope] = {}
        self._serving: list[trio.CancelScope] = []

    def _span(self, rank: int) -> Span:
        return self._spans[rank] if self._spans else (0, 0)

    def _reduces(self, rank: int) -> bool:
        start, end = self._span(rank)
        return start < end

    async def run(self) -> None:
        """Go on until the round is over for all, or the view has changed."""
        own, began = self._round.own, trio.current_time()
        limit = self._settings.patience if self.number else self._settings.arrival_timeout
        if not self._spans:
            raise AveragingError(
                self._round.describe("no member is left that could reduce anything")
            )
        for slot in self._slots.values():
            slot.is_lost_at = began + limit
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for rank in ranks(self._members):
                        if rank != own and self._reduces(rank):
                            nursery.start_soon(self._ask, rank)
                    if self._chunks:
                        nursery.start_soon(self._reduce)
                        nursery.start_soon(self._watch)
                    await self._complete.wait()
                    with trio.move_on_after(self._settings.linger):
                        if self._given_by is None:
                            await self._await_informed()
                        else:
                            await self._tell_all(self._given_by)
                        self._round.over.set()  # those that wait for it end their streams
                        while self._asking:
                            await self._progress.park()
                    nursery.cancel_scope.cancel()
        finally:
            self._drop_served()
        if self._failure is not None:
            raise AveragingError(self._round.describe(str(self._failure))) from self._failure

    def end(self) -> None:
        """Give up: the view has changed, or the round has ended."""
        self._scope.cancel()
        self._drop_served()

    def _drop_served(self) -> None:
        for scope in self._serving:
            scope.cancel()

    def _lose(self, rank: int, reason: str) -> None:
        if self.number == self._view.attempt:  # else whoever is really lost will be found lost anew
            self._round.lose(rank, reason)

    # --- the parts of others --------------------------------------------------------------------

    async def _ask(self, rank: int) -> None:
        """Contribute to a member's part, and get it reduced; or lose the member."""
        failure = "gave no answer"
        with trio.CancelScope() as self._asking[rank]:
            for _ in range(self._settings.asks):
                try:
                    await self._converse(rank)
                    break
                except (StreamResetError, ConnectionClosedError) as error:  # it may have moved on
                    failure = f"is gone: {error}"
                except RemoteError as error:
                    failure = f"failed: {error}"
                    break
                if self._complete.is_set():
                    break
            if rank in self._missing:
                self._lose(rank, failure)
        del self._asking[rank]
        self._progress.unpark_all()

    async def _converse(self, rank: int) -> None:
        stream = await self._round.open(rank)
        is_over = False
        try:
            answer = await self._exchange_parts(stream, rank)
            match answer:
                case Refusal(error=error):
                    raise error
                case Moved(members=members):
                    if self._members & members == self._members:
                        raise ProtocolError("it says that it has lost members, and has not")
                    self._round.move(members)
                    return
                case Whole():
                    await self._take_whole(rank)
                    return
            is_over = await self._say_done(stream)
        finally:
            if not is_over:
                stream.reset()
        await stream.aclose()

    async def _exchange_parts(self, stream: Stream, rank: int) -> Answer:
        """Contribute to a member's part, and receive its answer, which may come at any time."""
        outcome: Answer | RemoteError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._contribute, stream, rank)
            try:
                outcome = await self._receive_answer(stream)
                if isinstance(outcome, Part):
                    await self._receive_part(stream, rank, outcome)
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

    async def _contribute(self, stream: Stream, rank: int) -> None:
        with contextlib.suppress(RemoteError):  # whoever waits for the answer meets it, and tells
            await stream.send_all(self._round.join())
            await self._carrier.send(stream, self._ours, self._spans[rank])

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

    async def _receive_part(self, stream: Stream, rank: int, part: Part) -> None:
        if part.members != self._members:
            raise ProtocolError("its part is of other members' contributions")
        patience = self._settings.answer_patience
        await self._carrier.receive(stream, self._results, self._spans[rank], patience)
        self._finish_part(rank, part.weight)

    def _finish_part(self, rank: int, weight: float) -> None:
        if self.number != self._view.attempt or self._view.is_complete:
            return
        if self._total_weight not in {None, weight}:
            raise ProtocolError("the members' weights are not the same in all parts")
        self._total_weight = weight
        self._missing.discard(rank)
        if not self._missing:
            self._round.total_weight = weight
            self._view.receive_result()
            self._complete.set()

    async def _take_whole(self, rank: int) -> None:
        """Take the result of a member that has ended the round without losing anybody."""
        for other, scope in self._asking.items():
            if other != rank:
                scope.cancel()
        self._drop_served()
        stream = await self._round.open(rank)
        is_over = False
        try:
            await stream.send_all(self._round.join("whole"))
            answer = await self._receive_answer(stream)
            if isinstance(answer, Refusal):
                raise answer.error
            if not isinstance(answer, Whole):
                raise ProtocolError("it has the result, and does not give it")
            patience = self._settings.patience
            await self._carrier.receive_exactly(stream, self._results, patience)
            if self.number == self._view.attempt and not self._view.is_complete:
                self._round.total_weight = answer.weight
                self._given_by = rank
                self._view.receive_whole(answer.members)
                self._complete.set()
            is_over = await self._say_done(stream)
        finally:
            if not is_over:
                stream.reset()
        await stream.aclose()

    async def _tell_all(self, giver: int) -> None:
        """Tell those that may wait for us that we were given the result."""
        async with trio.open_nursery() as nursery:
            for rank in ranks(self._view.members & ~(1 << giver)):
                if rank != self._round.own and self._round.group.members[rank].bandwidth:
                    nursery.start_soon(self._tell, rank)

    async def _tell(self, rank: int) -> None:
        with contextlib.suppress(RemoteError):  # it is gone, or waits for us in vain
            stream = await self._round.open(rank)
            async with stream:
                await stream.send_last(self._round.join("nothing"))

    # --- our part -------------------------------------------------------------------------------

    async def _reduce(self) -> None:
        """Reduce chunk after chunk, as soon as all contributions to it are there."""
        try:
            for number, span in enumerate(self._chunks):
                while any(len(slot.chunks) <= number for slot in self._slots.values()):
                    await self._progress.park()
                if not number:
                    self._weight = math.fsum(self._weights())
                if not await self._reduce_chunk(number, span):
                    return
                self._progress.unpark_all()
            self._finish_part(self._round.own, self._weight)
        except P2PNodeError as error:
            self._failure = error
            self._scope.cancel()

    async def _reduce_chunk(self, number: int, span: Span) -> bool:
        """Reduce one chunk; false if contributions to it are not numbers."""
        contributions = [
            self._ours.get(span)
            if rank == self._round.own
            else await self._carrier.decode(self._slots[rank].chunks[number], span)
            for rank in ranks(self._members)
        ]
        result = aggregate(self._round.group.aggregator, contributions, self._weights())
        if not is_finite(result):
            pairs = zip(ranks(self._members), contributions, strict=True)
            liars = [rank for rank, each in pairs if not is_finite(each)]
            if not liars:
                raise AveragingError(
                    "the contributions are finite, but what they reduce to is not: scale them down"
                )
            for rank in liars:
                self._lose(rank, "contributed NaN or infinite values")
            return False
        travelling = await self._carrier.encode(result)
        self._results.put(span, travelling.decoded)
        self._reduced.append(travelling.buffer)
        return True

    def _weights(self) -> list[float]:
        return [
            self._round.weight if rank == self._round.own else self._slots[rank].weight
            for rank in ranks(self._members)
        ]

    async def _watch(self) -> None:
        """Lose members that do not come, or do not come back."""
        while not self._complete.is_set():
            now = trio.current_time()
            awaited = {
                rank: slot.is_lost_at
                for rank, slot in self._slots.items()
                if not slot.is_live and len(slot.chunks) < len(self._chunks)
            }
            for rank, is_lost_at in awaited.items():
                if is_lost_at <= now:
                    self._lose(rank, "did not contribute in time")
            with trio.move_on_at(max(min(awaited.values(), default=math.inf), now + _LOOK_PAUSE)):
                await self._progress.park()

    async def serve(self, stream: Stream, rank: int, join: Join, charge: Charge) -> None:
        """See `Round.serve`."""
        takes = join.wants == "whole"
        if self._view.is_complete and not takes:
            await stream.send_all(encode_answer(self._whole()))
            return
        slot = self._slots.setdefault(rank, _Slot())
        if slot.is_live:
            raise RoundError("you contribute already; do so once in a round")
        if not self._view.is_complete and (takes or not self._chunks):
            raise RoundError("this member has nothing to give; the members' groups differ")
        slot.is_live = True
        with trio.CancelScope() as scope:
            self._serving.append(scope)
            stream.cancel_when_lost(scope)
            try:
                if takes:
                    await stream.send_all(encode_answer(self._whole()))
                    await self._carrier.send_exactly(stream, self._results)
                else:
                    slot.weight = join.weight
                    await self._exchange(stream, slot, charge)
                await self._hear_done(stream, rank)
                await self._round.over.wait()
                return
            finally:
                slot.is_live = False
                slot.is_lost_at = trio.current_time() + self._settings.patience
                self._serving.remove(scope)
                if stream.connection.is_closed:
                    self._lose(rank, "is gone")
                    self.receive_informed(rank)  # there is nobody to inform any more
                self._progress.unpark_all()
        raise StreamResetError("the attempt is over, or its other side has given it up")

    def _whole(self) -> Whole:
        return Whole(members=self._view.members, weight=self._round.total_weight)

    async def _exchange(self, stream: Stream, slot: _Slot, charge: Charge) -> None:
        """Take a contribution, and give the reduced part."""
        charge.add(self._carrier.size(self._chunks))
        failure: RemoteError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_part, stream)
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

    async def _give_part(self, stream: Stream) -> None:
        with contextlib.suppress(RemoteError):  # whoever reads the stream meets it, and tells
            for number in range(len(self._chunks)):
                while len(self._reduced) <= number:
                    await self._progress.park()
                if not number:
                    answer = Part(members=self._members, weight=self._weight)
                    await stream.send_all(encode_answer(answer))
                await stream.send_all(self._reduced[number])

    async def _hear_done(self, stream: Stream, rank: int) -> None:
        data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if data is None:
            raise StreamResetError("it ended the stream without having the result")
        decode_done(data)
        self.receive_informed(rank)

    def receive_informed(self, rank: int) -> None:
        """A member has the result."""
        self._informed |= 1 << rank
        self._progress.unpark_all()

    async def _await_informed(self) -> None:
        """Wait for those that can still be reached to have the result."""
        if not self._chunks:
            return  # nobody asks us: those that reduce wait for the others
        while any(not self._informed >> rank & 1 for rank in ranks(self._view.members)):
            await self._progress.park()


def _shares_within(bandwidths: list[float], members: int) -> list[float]:
    """Share out among the members of a view only: those that are lost have nothing."""
    within = list(ranks(members))
    found = [0.0] * len(bandwidths)
    for rank, share in zip(within, shares([bandwidths[rank] for rank in within]), strict=True):
        found[rank] = share
    return found
