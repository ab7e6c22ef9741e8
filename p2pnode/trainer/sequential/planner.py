"""Which hosts a chain of blocks goes through now: the swarm's facts, made into routes.

Hosts come from the book that all calls of this trainer are judged by, so a host that failed
anywhere is gone around everywhere until its ban ends.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import trio

from p2pnode.config import Settings
from p2pnode.errors import DeadlineExceededError, NotAMemberError, OverloadedError, RemoteError
from p2pnode.swarm.lookup import HostEntry
from p2pnode.trainer.hosts import HOST_FAILURES
from p2pnode.trainer.judged import FINAL, JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sequential.lines import Lines
from p2pnode.trainer.sequential.paces import Paces
from p2pnode.trainer.sequential.routing import Hop, Offer, Route, cheapest_route, settle
from p2pnode.trainer.sources import CallPolicy
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(slots=True, eq=False)
class Pass:
    """One micro-batch, or one step of a session, on its way through the blocks.

    Attributes:
        policy: whether answers are searched for NaN.
        until: when it is given up, on trio's clock.
        trace: by which logs tell of its calls.
        alone: peers that are asked for one block at a time.
        avoid: peers that are asked where nobody else is left.
        lines: when calls of each peer may be sent, shared by micro-batches; None for at once.
    """

    policy: CallPolicy
    until: float
    trace: bytes = b""
    alone: set[PeerId] = field(default_factory=set)
    avoid: set[PeerId] = field(default_factory=set)
    lines: Lines | None = None

    @classmethod
    def begin(
        cls,
        policy: CallPolicy,
        trace: bytes = b"",
        lines: Lines | None = None,
    ) -> Self:
        """Start the clock."""
        until = trio.current_time() + policy.timeout
        return cls(policy, until, trace, lines=lines)

    @contextlib.asynccontextmanager
    async def turn_at(self, peer_id: PeerId) -> AsyncIterator[bool]:
        """Wait until a peer is to be sent the next call, and hold a place in its line.

        Yields:
            Whether no other call of this pass is under way to it.

        Raises:
            OverloadedError: the time was up before.
        """
        if self.lines is None:
            yield True
            return
        async with contextlib.AsyncExitStack() as held:
            with trio.move_on_at(self.until) as scope:
                is_alone = await held.enter_async_context(self.lines.to(peer_id).turn())
            if scope.cancelled_caught:
                raise OverloadedError(f"too many micro-batches wait for {peer_id}")
            yield is_alone

    def receive_failure(self, hop: Hop, error: RemoteError) -> None:
        """A hop failed; the book of hosts has judged its peer already.

        Raises:
            RemoteError: `error`, when no other host would do, or there is no time for one.
        """
        if isinstance(error, FINAL) or trio.current_time() >= self.until:
            raise error
        if isinstance(error, (*HOST_FAILURES, OverloadedError)):
            self.avoid.add(hop.peer_id)
        elif hop.span > 1:
            self.alone.add(hop.peer_id)


@dataclass(frozen=True, slots=True)
class _Survey:
    """Who hosts which block, and what that costs."""

    hosted: Sequence[Sequence[PeerId]]
    offers: Mapping[PeerId, Offer]


class Planner:
    """Makes routes through the blocks of one stack.

    Args:
        client: makes the calls that show round trips, and knows the hosts.
        block: the blocks' name without their number.
        paces: how fast calls were.
        settings: limits and intervals.
        gain: the part of a route's expected cost that another one must save to be taken.
        served: the numbers of the blocks that have had hosts; shared by planners of one stack.
    """

    def __init__(
        self,
        client: JudgedClient,
        block: str,
        paces: Paces,
        settings: Settings,
        *,
        gain: float,
        served: set[int],
    ) -> None:
        self.paces = paces
        self._client = client
        self._block = block
        self._settings = settings.sequential
        self._gain = gain
        self._served = served
        self._used: dict[int, PeerId] = {}  # by block
        self._surveying = trio.Lock()  # who never answered is probed once, not by every call

    def uid(self, number: int) -> Uid:
        """Return the uid of one block."""
        return Uid(self._client.run_id, f"{self._block}.{number}")

    async def route(self, start: int, stop: int, on_way: Pass) -> Route:
        """Find a route from block `start` up to, but not including, `stop`.

        A block that has lost its last host is waited for as long as the settings' patience lasts.

        Raises:
            NoLiveExpertError: a block has no live host.
            NotAMemberError: its hosts refuse this trainer.
            DeadlineExceededError: the time was up before all hosts were looked up.
            NoPeersError: the node knows nobody to ask.
        """
        patient_until = min(on_way.until, trio.current_time() + self._settings.patience)
        while True:
            with trio.move_on_at(on_way.until) as scope:
                survey = await self._survey(start, stop, on_way)
            if scope.cancelled_caught:
                raise DeadlineExceededError(
                    f"the hosts of {self._block}.{start} to {stop - 1} could not be looked up in"
                    " time"
                )
            gap = next((n for n, peers in enumerate(survey.hosted, start) if not peers), None)
            if gap is None:
                return self._choose(start, stop, survey)
            error = self._client.book.none_left(self.uid(gap))
            now = trio.current_time()
            if isinstance(error, NotAMemberError) or now >= patient_until:
                raise error
            if gap not in self._served:
                patient_until = now
            with trio.move_on_at(on_way.until):
                await trio.sleep(self._settings.retry_interval if now < patient_until else 0)
                await self._client.book.look_again(self.uid(gap))

    async def standing(self, hop: Hop) -> tuple[bool, bool]:
        """Tell whether the hop's peer still hosts all its blocks, and whether others do.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        itself, others = True, True
        for number in range(hop.start, hop.stop):
            entries = await self._client.book.candidates(self.uid(number))
            peers = [entry.peer_id for entry in entries]
            itself = itself and hop.peer_id in peers
            others = others and any(peer_id != hop.peer_id for peer_id in peers)
        return itself, others

    async def limit(self, hop: Hop, on_way: Pass) -> float:
        """Return until when to wait for a host: half of the time where there are others.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        _, others = await self.standing(hop)
        now = trio.current_time()
        return now + (on_way.until - now) / 2 if others else on_way.until

    async def _survey(self, start: int, stop: int, on_way: Pass) -> _Survey:
        async with self._surveying:
            rows = await self._shortlist(start, stop)
            if await self._probe(rows, start):
                rows = await self._shortlist(start, stop)  # without those that did not answer
        rows = [[e for e in row if e.peer_id not in on_way.avoid] or row for row in rows]
        offers = {
            entry.peer_id: self.paces.offer(
                entry.peer_id,
                load=entry.load,
                surcharge=self._settings.relay_penalty * self._client.book.needs_relay(entry),
                joins=entry.peer_id not in on_way.alone,
            )
            for row in rows
            for entry in row
        }
        return _Survey([[entry.peer_id for entry in row] for row in rows], offers)

    async def _shortlist(self, start: int, stop: int) -> list[list[HostEntry]]:
        """List the hosts of each block: in large swarms those that host most of the blocks."""
        rows = [await self._client.book.candidates(self.uid(n)) for n in range(start, stop)]
        blocks = Counter(entry.peer_id for row in rows for entry in row)
        if len(blocks) <= self._settings.hosts_considered:
            return rows
        relayed = {e.peer_id: self._client.book.needs_relay(e) for row in rows for e in row}
        order = sorted(blocks, key=lambda peer_id: (relayed[peer_id], -blocks[peer_id]))
        chosen = set(order[: self._settings.hosts_considered])
        return [[each for each in row if each.peer_id in chosen] or row[:1] for row in rows]

    def _choose(self, start: int, stop: int, survey: _Survey) -> Route:
        found = cheapest_route(survey.hosted, survey.offers, start)
        used = [self._used.get(number) for number in range(start, stop)]
        route = settle(found, used, survey.hosted, survey.offers, self._gain)
        for hop in route:
            self._used.update(dict.fromkeys(range(hop.start, hop.stop), hop.peer_id))
        self._served.update(self._used)
        return route

    async def _probe(self, rows: Sequence[Sequence[HostEntry]], start: int) -> bool:
        """Measure the round trip to hosts that were never called; False when there is none."""
        new = {
            entry.peer_id: self.uid(number)
            for number, row in enumerate(rows, start)
            for entry in row
            if not self.paces.has_round_trip(entry.peer_id)
        }
        give_up = trio.current_time() + self._settings.probe_timeout
        async with trio.open_nursery() as nursery:
            for peer_id, uid in new.items():
                nursery.start_soon(self._measure, peer_id, uid, give_up)
        return bool(new)

    async def _measure(self, peer_id: PeerId, uid: Uid, give_up: float) -> None:
        async def ask(limit: float) -> None:
            await self._client.client.info(peer_id, uid, timeout=limit)

        started = 0.0
        try:
            for _ in range(2):  # the first may have to dial, and to be authorised
                started = trio.current_time()
                await self._client.judge(peer_id, uid, give_up, Attempt(), ask, timed=False)
        except RemoteError:
            return  # the book knows; the route goes around
        self.paces.receive_round_trip(peer_id, trio.current_time() - started)
