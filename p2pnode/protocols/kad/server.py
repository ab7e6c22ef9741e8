"""Answering others: the streams that peers open to this node's DHT.

A peer may send many requests on one stream. A request that breaks a rule ends its stream by the
error that the handler raises, which the host reports.
"""

import trio

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.host import Host, Stream
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.framing import MessageStream
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.wire.peer_id import PeerId

_Served = dict[PeerId, dict[Stream, None]]


class KadServer:
    """Serves the DHT's protocol between `start` and `stop`."""

    def __init__(self, host: Host, core: KadCore, peers: KadPeers, settings: DhtSettings) -> None:
        self._host = host
        self._core = core
        self._peers = peers
        self._settings = settings
        self._streams: _Served = {}
        self.is_running = False

    def start(self) -> None:
        """Begin to serve, and to be announced as a server."""
        if not self.is_running:
            self.is_running = True
            self._host.set_handler(self._settings.protocol, self.handle)

    def stop(self) -> None:
        """Stop serving, if it was begun, and end the streams that are being served."""
        if self.is_running:
            self.is_running = False
            self._host.remove_handler(self._settings.protocol)
        for stream in [each for streams in self._streams.values() for each in streams]:
            stream.reset()

    async def handle(self, stream: Stream) -> None:
        """Answer the requests of one stream.

        Raises:
            RemoteError: the stream broke, or a request broke a rule.
        """
        peer = stream.peer_id
        streams = self._streams.setdefault(peer, {})
        if len(streams) >= self._settings.max_streams_per_peer:
            stream.reset()
            return
        streams[stream] = None
        try:
            await self._serve(MessageStream(stream, self._settings.max_message_bytes), peer)
        finally:
            streams.pop(stream, None)
            if not streams:
                self._streams.pop(peer, None)

    async def _serve(self, carrier: MessageStream, peer: PeerId) -> None:
        idle, slow = self._settings.stream_idle_timeout, self._settings.query_timeout
        with trio.CancelScope() as scope:  # one for all requests: they are many and short
            while True:
                scope.deadline = trio.current_time() + idle
                request = await carrier.receive()
                if request is None:
                    return
                now = trio.current_time()
                self._peers.forget_contacts(now)
                answer = self._core.receive_request(
                    peer, request, self._peers.contact_of, now, wall_time()
                )
                self._core.table.renew(peer, now)
                if answer is not None:
                    scope.deadline = now + slow
                    await carrier.send(answer)
