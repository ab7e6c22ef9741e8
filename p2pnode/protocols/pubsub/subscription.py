"""A subscription: the messages of a topic, for one reader of this node."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import trio

from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubMessage:
    """A valid message of a topic.

    Attributes:
        topic: where it was published.
        data: the author's bytes.
        source: its author; None under StrictNoSign.
        received_from: the peer that brought it first.
        seqno: what its author counts its messages by; None under StrictNoSign.
        message_id: what it is known by.
    """

    topic: str
    data: bytes
    source: PeerId | None
    received_from: PeerId
    seqno: int | None
    message_id: bytes


class Subscription:
    """A bounded queue of a topic's messages; iterate over it, and close it or leave its block.

    A reader that is too slow loses the oldest messages, since news is worth more than history;
    `dropped` counts them. Nobody else is slowed down by it.
    """

    def __init__(
        self,
        topic: str,
        max_messages: int,
        max_bytes: int,
        on_close: Callable[["Subscription"], None],
    ) -> None:
        self.topic = topic
        self.dropped = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._pending: deque[PubSubMessage] = deque()
        self._bytes = 0  # of data in them
        self._arrived = trio.Event()
        self._on_close = on_close
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PubSubMessage:
        try:
            return await self.receive()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    def __len__(self) -> int:
        """How many messages wait for the reader."""
        return len(self._pending)

    async def receive(self) -> PubSubMessage:
        """Wait for the next message.

        Raises:
            trio.ClosedResourceError: the subscription is closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._pending:
                return self._take()
            self._arrived = trio.Event()
            await self._arrived.wait()
        raise trio.ClosedResourceError(f"the subscription to {self.topic} is closed")

    def push(self, message: PubSubMessage) -> None:
        """Queue a message, in the place of the oldest ones if the queue is full."""
        self._pending.append(message)
        self._bytes += len(message.data)
        while len(self._pending) > self._max_messages or self._bytes > self._max_bytes:
            self._take()
            self.dropped += 1
        self._arrived.set()

    def _take(self) -> PubSubMessage:
        message = self._pending.popleft()
        self._bytes -= len(message.data)
        return message

    def close(self) -> None:
        """End the subscription; the last one of a topic leaves the topic. Never blocks."""
        if not self._closed:
            self._closed = True
            self._arrived.set()
            self._on_close(self)
