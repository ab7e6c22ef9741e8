"""Asking many peers at once: step by step towards a key, or a few that are known already."""

import math
from collections.abc import Callable, Sequence
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
        # Unbounded, but holds one outcome of each peer asked at most.
        send, outcomes = trio.open_memory_channel[tuple[PeerId, Message | None]](float("inf"))
        started = now = trio.current_time()
        deadline = now + settings.lookup_timeout
        while now < deadline and not lookup.is_finished(now):
            for peer in lookup.next_queries(now, math.inf if wanted is None else wanted()):
                requests.start_soon(self._ask, lookup.contact_of(peer), message, send)
            try:
                peer, answer = outcomes.receive_nowait()
            except trio.WouldBlock:
                with trio.CancelScope(deadline=min(lookup.next_deadline(now), deadline)) as scope:
                    peer, answer = await outcomes.receive()
                now = trio.current_time()
                if scope.cancelled_caught:
                    continue
            if answer is None:
                lookup.receive_failure(peer)
                continue
            named = self._peers.worth_asking(lookup.unknown(answer.closer), now)
            lookup.receive_answer(peer, named, now, self._peers.group_of(peer))
            if receive is not None and receive(peer, answer):
                break
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
        send, outcomes = trio.open_memory_channel[tuple[PeerId, Message | None]](len(peers))
        for peer in peers:
            requests.start_soon(self._ask, Contact(peer), message, send)
        answers: dict[PeerId, Message] = {}
        pending = len(peers)
        patience = trio.current_time() + self._settings.patience
        while pending:
            with trio.move_on_at(patience if answers or hurried else float("inf")) as scope:
                peer, answer = await outcomes.receive()
                pending -= 1
                if answer is not None:
                    answers[peer] = answer
            if scope.cancelled_caught:
                break
        return answers

    async def _ask(
        self,
        contact: Contact,
        message: Message,
        send: trio.MemorySendChannel[tuple[PeerId, Message | None]],
    ) -> None:
        try:
            answer: Message | None = await self._peers.ask(
                contact.peer_id, message, contact.addresses
            )
        except RemoteError:
            answer = None
        send.send_nowait((contact.peer_id, answer))
