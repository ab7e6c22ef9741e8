"""One peer's way out: its outbox, and the one-way stream that empties it.

Source: libp2p/specs, pubsub: each side opens a stream of its own and only writes on it.
"""

from collections.abc import Sequence

import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import P2PNodeError, ProtocolError, StreamResetError
from p2pnode.host import Connection, Stream
from p2pnode.protocols.pubsub.outbox import Outbox
from p2pnode.protocols.pubsub.pace import Pace
from p2pnode.protocols.pubsub.state import Send
from p2pnode.wire import varint
from p2pnode.wire.peer_id import PeerId


class Link:
    """What we keep of a peer that speaks pubsub, besides what the router knows of it.

    Attributes:
        peer_id: who it is.
        scope: cancelled to leave the peer.
        outbox: what waits to be sent.
        inbound: the stream it sends on, if it has opened one.
        is_shunned: whether its RPCs were not listened to the last time.
        record: its signed peer record, or empty.
        pace: how fast its messages are taken in.
    """

    def __init__(self, peer_id: PeerId, settings: PubSubSettings) -> None:
        self.peer_id = peer_id
        self.scope = trio.CancelScope()
        self.inbound: Stream | None = None
        self.is_shunned = False
        self.record = b""
        self.pace = Pace(settings.messages_per_second_per_peer, settings.message_burst_per_peer)
        self._settings = settings
        self.outbox = self._new_outbox()
        self._changed = trio.Event()
        self._sending = trio.CancelScope()
        self._dropped_before = 0

    @property
    def dropped(self) -> int:
        """How many pieces found no room."""
        return self._dropped_before + self.outbox.dropped

    def push(self, send: Send) -> None:
        """Queue a piece; never blocks."""
        self.outbox.push(send.piece, send.encoded, send.message_id, own=send.own)
        self._changed.set()
        if self.outbox.overflowed:
            self._sending.cancel()

    async def open(self, connection: Connection, protocols: Sequence[str]) -> Stream:
        """Open our stream to the peer.

        Raises:
            ProtocolNotSupportedError: the peer speaks none of `protocols`.
            StreamResetError: it took too long.
            RemoteError: it could not be opened otherwise.
        """
        with trio.move_on_after(self._settings.open_timeout):
            return await connection.open_stream(protocols)
        raise StreamResetError("the peer did not agree on a protocol in time")

    async def write(self, stream: Stream) -> P2PNodeError:
        """Send what is queued until that fails; returns why. The outbox is then a new one."""
        failure: list[P2PNodeError] = []

        async def watch(scope: trio.CancelScope) -> None:
            """Learn of a refusal or a reset also while there is nothing to send."""
            try:
                if await stream.receive_some(1):
                    raise ProtocolError("a peer writes on the stream that is ours to write on")
            except P2PNodeError as error:
                failure.append(error)
                scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                failure.append(await self._empty_into(stream))
                nursery.cancel_scope.cancel()
        finally:
            stream.reset()
            self._dropped_before += self.outbox.dropped + len(self.outbox)
            self.outbox = self._new_outbox()
        return failure[0]

    async def _empty_into(self, stream: Stream) -> P2PNodeError:
        while not self.outbox.overflowed:
            if (rpc := self.outbox.take(self._settings.rpc_bytes)) is None:
                self._changed = trio.Event()
                await self._changed.wait()
                continue
            try:
                with trio.move_on_after(self._settings.send_timeout) as self._sending:
                    await stream.send_all(varint.prefixed(rpc))
            except P2PNodeError as error:
                return error
            if self._sending.cancelled_caught and not self.outbox.overflowed:
                return StreamResetError("the peer does not read what we send")
        return StreamResetError("the peer is too slow for the control messages alone")

    def _new_outbox(self) -> Outbox:
        return Outbox(self._settings.max_queue_messages, self._settings.max_queue_bytes)
