"""Requests to other peers: one answer each, over streams that are used again.

A stream that has carried an answer is kept for the next request to the same peer. The peer may end
it meanwhile, so a request that fails on a kept stream is sent once more on a new one.
"""

import contextlib
from collections.abc import Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import ProtocolError, RemoteError
from p2pnode.host import Host
from p2pnode.protocols.kad.framing import MessageStream
from p2pnode.protocols.kad.messages import Message, MessageType
from p2pnode.wire.peer_id import PeerId


class _Slots:
    """What bounds the requests to one peer that are under way; exists while there are any."""

    __slots__ = ("busy", "queue", "silent_at")

    def __init__(self) -> None:
        self.busy = 0
        self.queue: trio.lowlevel.ParkingLot | None = None
        self.silent_at = float("-inf")  # when a request last timed out


class Requester:
    """Sends requests, a bounded number to one peer at once."""

    def __init__(self, host: Host, settings: DhtSettings) -> None:
        self._host = host
        self._settings = settings
        self._idle: dict[PeerId, tuple[MessageStream, float]] = {}  # one per peer, and since when
        self._slots: dict[PeerId, _Slots] = {}

    async def request(
        self, peer: PeerId, message: Message, addresses: Sequence[Multiaddr] = ()
    ) -> Message:
        """Send `message` and return its answer; an ADD_PROVIDER, which has none, is returned.

        Args:
            peer: whom to ask.
            message: the request.
            addresses: where the peer may be, besides those that the host knows.

        Raises:
            RemoteError: the peer cannot be reached, or did not answer in time or properly.
        """
        asked_at = trio.current_time()
        slots = await self._enter(peer)
        try:
            if slots.silent_at <= asked_at:  # those that queued behind a silence end with it
                deadline = trio.current_time() + self._settings.query_timeout
                with trio.CancelScope(deadline=deadline):
                    return await self._exchange(peer, message, addresses)
                slots.silent_at = trio.current_time()
        finally:
            self._leave(peer, slots)
        raise RemoteError(f"{peer} did not answer within {self._settings.query_timeout:g} s")

    def next_idle(self) -> float:
        """Return when `close_idle` has something to do; infinity for never."""
        for _, since in self._idle.values():  # the one kept longest stands first
            return since + self._settings.stream_idle_timeout / 2
        return float("inf")

    async def close_idle(self, now: float) -> None:
        """End the streams that no request has used for a while."""
        least = now - self._settings.stream_idle_timeout / 2
        ended = [
            (peer, kept)
            for peer, (kept, since) in self._idle.items()
            if since <= least or kept.stream.connection.is_closed
        ]
        for peer, _ in ended:
            del self._idle[peer]
        for _, kept in ended:
            if not kept.stream.connection.is_closed:
                with contextlib.suppress(RemoteError):
                    await kept.stream.aclose()

    def reset_idle(self) -> None:
        """End all kept streams at once."""
        for kept, _ in self._idle.values():
            kept.stream.reset()
        self._idle.clear()

    async def _enter(self, peer: PeerId) -> _Slots:
        slots = self._slots.get(peer)
        if slots is None:
            slots = self._slots[peer] = _Slots()
        elif slots.busy >= self._settings.max_requests_per_peer:
            if slots.queue is None:
                slots.queue = trio.lowlevel.ParkingLot()
            await slots.queue.park()  # whoever ends hands its slot over
            return slots
        slots.busy += 1
        return slots

    def _leave(self, peer: PeerId, slots: _Slots) -> None:
        if slots.queue:
            slots.queue.unpark()
            return
        slots.busy -= 1
        if not slots.busy:
            self._slots.pop(peer, None)

    async def _exchange(
        self, peer: PeerId, message: Message, addresses: Sequence[Multiaddr]
    ) -> Message:
        kept, _ = self._idle.pop(peer, (None, 0.0))
        # No answer would tell that the peer has ended the stream long since.
        if kept is not None and message.type is MessageType.ADD_PROVIDER:
            with contextlib.suppress(RemoteError):
                await kept.stream.aclose()
        elif kept is not None and not kept.stream.connection.is_closed:
            try:
                return await self._talk(kept, message)
            except RemoteError:
                pass  # it may have ended while it was idle; a new stream tells
        stream = await self._host.open_stream(peer, [self._settings.protocol], addresses)
        return await self._talk(MessageStream(stream, self._settings.max_message_bytes), message)

    async def _talk(self, carrier: MessageStream, message: Message) -> Message:
        stream = carrier.stream
        try:
            await carrier.send(message)
            answer = message
            if message.type is not MessageType.ADD_PROVIDER:
                answer = _checked(await carrier.receive(), message.type)
        except BaseException:
            stream.reset()
            raise
        if stream.peer_id in self._idle:
            with contextlib.suppress(RemoteError):  # the answer is here
                await stream.aclose()
        else:
            self._idle[stream.peer_id] = (carrier, trio.current_time())
        return answer


def _checked(answer: Message | None, expected: MessageType) -> Message:
    if answer is None:
        raise ProtocolError("the peer ended the stream without an answer")
    if answer.type is not expected:
        raise ProtocolError(f"a {expected.name} was answered by a {answer.type.name}")
    return answer
