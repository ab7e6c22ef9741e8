"""Asking many peers at once: step by step towards a key, or a few that are known already."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import RemoteError
from p2pnode.events import Event, EventBus
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.lookup import Lookup
from p2pnode.protocols.kad.messages import Contact, Message, MessageType
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.wire.peer_id import PeerId

Receive = Callable[[PeerId, Message], bool]  # takes an answer; True ends the look-up


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtLookupEnded(Event):
    """A look-up came to its end.

    Attributes:
        kind: what the peers were asked.
        key: what was looked up.
        seconds: how long it took.
        hops: the steps from this node to the closest peer that answered.
        asked: how many peers were asked.
        answered: how many of them answered while it went on.
    """

    kind: MessageType
    key: bytes
    seconds: float
    hops: int
    asked: int
    answered: int


class Queries:
    """Requests to several peers; those still under way at the end stay in the caller's nursery."""

    def __init__(
        self, core: KadCore, peers: KadPeers, events: EventBus, settings: DhtSettings
    ) -> None:
        self._core = core
        self._peers = peers
        self._events = events
        self._settings = settings

    async def iterate(
        self,
        message: Message,
        requests: trio.Nursery,
        receive: Receive | None = None,
        *,
        breadth: int | None = None,
        wanted: Callable[[], int] | None = None,
    ) -> Lookup:
        """Send `message` to peers ever closer to its key.

        Ends when the closest have answered, when `receive` says so, or after `lookup_timeout`.

        Args:
            message: the request.
            requests: where requests run.
            receive: takes each answer.
            breadth: how many of the closest must have answered; k by default. Fewer do for a
                look at a range, which nobody relies on: then one path is enough, too.
            wanted: how many answers such as have come are still of use; no more are asked at once.
        """
        settings, target = self._settings, point(message.key)
        k = settings.bucket_size
        seeds = self._core.table.closest(target, max(k, breadth or 0))
        lookup = Lookup(
            target,
            [(Contact(peer), self._core.table.group_of(peer)) for peer in seeds],
            k=breadth or k,
            alpha=settings.parallelism if breadth is None else min(breadth, settings.parallelism),
            beta=settings.resiliency,
            patience=settings.patience,
            paths=settings.disjoint_paths if breadth is None else 1,
            max_per_group=settings.max_peers_per_network_in_lookup,
        )
        started = trio.current_time()
        walk = _Walk(
            self._peers,
            lookup,
            message,
            requests,
            receive=receive or _go_on,
            wanted=wanted or _no_end,
            patience=settings.patience,
            until=started + settings.lookup_timeout,
        )
        await walk.run()
        now = trio.current_time()
        if lookup.answered:
            self._core.table.receive_lookup(target, now)
        self._events.emit(
            DhtLookupEnded(
                kind=message.type,
                key=message.key,
                seconds=now - started,
                hops=lookup.hops,
                asked=lookup.asked,
                answered=lookup.answered,
            )
        )
        return lookup

    async def ask_all(
        self,
        peers: Sequence[PeerId],
        message: Message,
        requests: trio.Nursery,
        *,
        hurried: bool = False,
    ) -> dict[PeerId, Message]:
        """Send `message` to all of `peers`; returns who answered.

        Once one has answered, or from the start when it is `hurried`, the others are waited for no
        longer than `patience`.
        """
        answers: dict[PeerId, Message] = {}
        if not peers:
            await trio.lowlevel.checkpoint()
            return answers
        patience = trio.current_time() + self._settings.patience
        all_ended, pending = trio.Event(), len(peers)
        scope = trio.CancelScope(deadline=patience if hurried else math.inf)

        async def ask(peer: PeerId) -> None:
            nonlocal pending
            with contextlib.suppress(RemoteError):
                answer = await self._peers.ask(peer, message)
                if not scope.cancelled_caught:
                    answers[peer] = answer
                    scope.deadline = patience
            pending -= 1
            if not pending:
                all_ended.set()

        for peer in peers:
            requests.start_soon(ask, peer)
        with scope:
            await all_ended.wait()
        return answers


class _Walk:
    """One look-up under way.

    Whoever gets an answer takes it in, asks one of the peers that are to be asked next by itself,
    and starts a task for each of the others: nobody else is woken for it.

    Args:
        peers: whom to ask by.
        lookup: who is to be asked.
        message: what.
        requests: where requests run; those that are left in the end go on there.
        receive: takes each answer; True ends the look-up.
        wanted: how many may be under way.
        patience: no request is slow before so many seconds.
        until: when to end, whatever is left.
    """

    def __init__(
        self,
        peers: KadPeers,
        lookup: Lookup,
        message: Message,
        requests: trio.Nursery,
        *,
        receive: Receive,
        wanted: Callable[[], float],
        patience: float,
        until: float,
    ) -> None:
        self._peers = peers
        self._lookup = lookup
        self._message = message
        self._requests = requests
        self._receive = receive
        self._wanted = wanted
        self._patience = patience
        self._until = until
        self._is_over = False
        self._ended = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Walk until the look-up has finished; call it once."""
        try:
            self._start(self._proceed(trio.current_time()))
            while not self._ended.is_set():
                # Only slow requests make anything happen by themselves.
                due = min(self._lookup.next_deadline(trio.current_time()), self._until)
                with trio.CancelScope(deadline=due) as self._scope:
                    await self._ended.wait()
                self._start(self._proceed(trio.current_time()))
        finally:
            self._is_over = True

    def _proceed(self, now: float) -> Sequence[PeerId]:
        """Name the peers to ask now, or end the look-up."""
        if self._is_over:
            return ()
        if now >= self._until or self._lookup.is_finished(now):
            self._end()
            return ()
        chosen = self._lookup.next_queries(now, self._wanted())
        if chosen and self._scope.deadline > now + self._patience:
            self._scope.deadline = now + self._patience
        return chosen

    def _end(self) -> None:
        self._is_over = True
        self._ended.set()

    def _start(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            self._requests.start_soon(self._ask, peer)

    async def _ask(self, peer: PeerId | None) -> None:
        """Ask a peer, and then others, as long as there is one to ask after an answer."""
        while peer is not None:
            contact = self._lookup.contact_of(peer)
            try:
                answer = await self._peers.ask(peer, self._message, contact.addresses)
            except RemoteError:
                peer = self._receive_outcome(peer, None)
            else:
                peer = self._receive_outcome(peer, answer)

    def _receive_outcome(self, peer: PeerId, answer: Message | None) -> PeerId | None:
        """Take in what came of a request; returns whom its task is to ask next."""
        if self._is_over:
            return None
        now, lookup = trio.current_time(), self._lookup
        if answer is None:
            lookup.receive_failure(peer)
        else:
            named = self._peers.worth_asking(lookup.unknown(answer.closer), now)
            lookup.receive_answer(peer, named, now, self._peers.group_of(peer))
            if self._receive(peer, answer):
                self._end()
                return None
        chosen = self._proceed(now)
        self._start(chosen[1:])
        return chosen[0] if chosen else None


def _go_on(_peer: PeerId, _answer: Message) -> bool:
    return False


def _no_end() -> float:
    return math.inf
