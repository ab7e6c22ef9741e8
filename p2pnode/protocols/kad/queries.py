"""Asking many peers at once: step by step towards a key, or a few that are known already."""

from collections.abc import Callable, Sequence

import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import RemoteError
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.lookup import Lookup
from p2pnode.protocols.kad.messages import Message
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.wire.peer_id import PeerId

Receive = Callable[[PeerId, Message], bool]  # takes an answer; True ends the look-up


class Queries:
    """Requests to several peers; those still under way at the end stay in the caller's nursery."""

    def __init__(self, core: KadCore, peers: KadPeers, settings: DhtSettings) -> None:
        self._core = core
        self._peers = peers
        self._settings = settings

    async def iterate(
        self, message: Message, requests: trio.Nursery, receive: Receive | None = None
    ) -> Lookup:
        """Send `message` to peers ever closer to its key.

        Ends when the closest have answered, when `receive` says so, or after `lookup_timeout`.
        """
        settings, target = self._settings, point(message.key)
        lookup = Lookup(
            target,
            self._core.table.closest(target, settings.bucket_size),
            k=settings.bucket_size,
            alpha=settings.parallelism,
            beta=settings.resiliency,
            patience=settings.patience,
        )
        # Unbounded, but holds one outcome of each peer asked at most.
        send, outcomes = trio.open_memory_channel[tuple[PeerId, Message | None]](float("inf"))
        now = trio.current_time()
        deadline = now + settings.lookup_timeout
        while now < deadline and not lookup.is_finished(now):
            for peer in lookup.next_queries(now):
                requests.start_soon(self._ask, peer, message, send)
            with trio.move_on_at(min(lookup.next_deadline(now), deadline)):
                peer, answer = await outcomes.receive()
                if answer is None:
                    lookup.receive_failure(peer)
                else:
                    closer = self._peers.learn(answer.closer)
                    lookup.receive_answer(peer, closer, trio.current_time())
                    if receive is not None and receive(peer, answer):
                        break
            now = trio.current_time()
        if lookup.closest:
            self._core.table.receive_lookup(target, now)
        return lookup

    async def ask_all(
        self, peers: Sequence[PeerId], message: Message, requests: trio.Nursery
    ) -> dict[PeerId, Message]:
        """Send `message` to all of `peers`; returns who answered.

        Once one has answered, the others are waited for no longer than `patience`.
        """
        send, outcomes = trio.open_memory_channel[tuple[PeerId, Message | None]](len(peers))
        for peer in peers:
            requests.start_soon(self._ask, peer, message, send)
        answers: dict[PeerId, Message] = {}
        pending = len(peers)
        patience = trio.current_time() + self._settings.patience
        while pending:
            with trio.move_on_at(patience if answers else float("inf")) as scope:
                peer, answer = await outcomes.receive()
                pending -= 1
                if answer is not None:
                    answers[peer] = answer
            if scope.cancelled_caught:
                break
        return answers

    async def _ask(
        self,
        peer: PeerId,
        message: Message,
        send: trio.MemorySendChannel[tuple[PeerId, Message | None]],
    ) -> None:
        try:
            answer: Message | None = await self._peers.ask(peer, message)
        except RemoteError:
            answer = None
        send.send_nowait((peer, answer))
