"""Answering others: the streams that peers open to this node's DHT.

A peer may send many requests on one stream. A request that breaks a rule ends its stream by the
error that the handler raises, which the host reports.
"""

import trio

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.host import Host, Stream
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.messages import decode, encode
from p2pnode.protocols.kad.peers import KadPeers
from p2pnode.wire import varint
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
        self._running = False

    def start(self) -> None:
        """Begin to serve."""
        self._running = True
        self._host.set_handler(self._settings.protocol, self.handle)

    def stop(self) -> None:
        """Stop serving, if it was begun, and end the streams that are being served."""
        if self._running:
            self._running = False
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
            while await self._serve_one(stream):
                pass
        finally:
            streams.pop(stream, None)
            if not streams:
                self._streams.pop(peer, None)

    async def _serve_one(self, stream: Stream) -> bool:
        """Answer one request; False when there is no further one."""
        data = None
        with trio.move_on_after(self._settings.stream_idle_timeout):
            data = await stream.receive_prefixed(self._settings.max_message_bytes)
        if data is None:
            return False
        peer = stream.peer_id
        answer = self._core.receive_request(peer, decode(data), self._peers.contact_of, wall_time())
        if peer in self._core.table:
            self._peers.receive_alive(peer)
        if answer is None:
            return True
        with trio.move_on_after(self._settings.query_timeout) as scope:
            await stream.send_all(varint.prefixed(encode(answer)))
        return not scope.cancelled_caught
