"""Requests to other peers: one answer each, over streams that are used again.

A stream that has carried an answer is kept for the next request to the same peer. The peer may end
it meanwhile, so a request that fails on a kept stream is sent once more on a new one.
"""

import contextlib
from collections.abc import AsyncIterator

import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import ProtocolError, RemoteError
from p2pnode.host import Host, Stream
from p2pnode.protocols.kad.messages import Message, MessageType, decode, encode
from p2pnode.wire import varint
from p2pnode.wire.peer_id import PeerId


class _Slots:
    """What bounds the requests to one peer that are under way; exists while there are any."""

    def __init__(self, limit: int) -> None:
        self.limiter = trio.CapacityLimiter(limit)
        self.silent_at = float("-inf")  # when a request last timed out

    @property
    def in_use(self) -> bool:
        statistics = self.limiter.statistics()
        return bool(statistics.borrowed_tokens or statistics.tasks_waiting)


class Requester:
    """Sends requests, a bounded number to one peer at once."""

    def __init__(self, host: Host, settings: DhtSettings) -> None:
        self._host = host
        self._settings = settings
        self._idle: dict[PeerId, tuple[Stream, float]] = {}  # one per peer, and since when
        self._slots: dict[PeerId, _Slots] = {}

    async def request(self, peer: PeerId, message: Message) -> Message:
        """Send `message` and return its answer; an ADD_PROVIDER, which has none, is returned.

        Raises:
            RemoteError: the peer cannot be reached, or did not answer in time or properly.
        """
        asked_at = trio.current_time()
        async with self._slot(peer) as slots:
            if slots.silent_at <= asked_at:  # those that queued behind a silence end with it
                with trio.move_on_after(self._settings.query_timeout):
                    return await self._exchange(peer, message)
                slots.silent_at = trio.current_time()
        raise RemoteError(f"{peer} did not answer within {self._settings.query_timeout:g} s")

    async def close_idle(self, now: float) -> None:
        """End the streams that no request has used for a while."""
        for peer, (stream, since) in list(self._idle.items()):
            if stream.connection.is_closed or since <= now - self._settings.stream_idle_timeout / 2:
                del self._idle[peer]
                with contextlib.suppress(RemoteError):
                    await stream.aclose()

    def reset_idle(self) -> None:
        """End all kept streams at once."""
        for stream, _ in self._idle.values():
            stream.reset()
        self._idle.clear()

    @contextlib.asynccontextmanager
    async def _slot(self, peer: PeerId) -> AsyncIterator[_Slots]:
        slots = self._slots.setdefault(peer, _Slots(self._settings.max_requests_per_peer))
        try:
            async with slots.limiter:
                yield slots
        finally:
            if not slots.in_use:
                self._slots.pop(peer, None)

    async def _exchange(self, peer: PeerId, message: Message) -> Message:
        kept, _ = self._idle.pop(peer, (None, 0.0))
        if kept is not None and not kept.connection.is_closed:
            try:
                return await self._talk(kept, message)
            except RemoteError:
                pass  # it may have ended while it was idle; a new stream tells
        return await self._talk(
            await self._host.open_stream(peer, [self._settings.protocol]), message
        )

    async def _talk(self, stream: Stream, message: Message) -> Message:
        try:
            await stream.send_all(varint.prefixed(encode(message)))
            answer = message
            if message.type is not MessageType.ADD_PROVIDER:
                answer = await self._receive_answer(stream, message.type)
        except BaseException:
            stream.reset()
            raise
        if stream.peer_id in self._idle:
            await stream.aclose()
        else:
            self._idle[stream.peer_id] = (stream, trio.current_time())
        return answer

    async def _receive_answer(self, stream: Stream, expected: MessageType) -> Message:
        data = await stream.receive_prefixed(self._settings.max_message_bytes)
        if data is None:
            raise ProtocolError("the peer ended the stream without an answer")
        answer = decode(data)
        if answer.type is not expected:
            raise ProtocolError(f"a {expected.name} was answered by a {answer.type.name}")
        return answer
