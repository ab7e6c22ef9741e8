"""The peers that speak pub/sub: how they are found, what is sent to each, and what each sends.

Each has a `Link`, one task that writes to it, and one that reads from it, which is the handler of
the stream the peer opened. Neither waits for the other, nor for another peer: what the router says
is queued at once, in bounded queues that drop.

We learn that a peer speaks pub/sub by identify, by a stream it opens to us, or, if it never tells,
by trying.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    ProtocolNotSupportedError,
)
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    PeerIdentified,
    PeerMisbehaved,
    Stream,
)
from p2pnode.protocols.pubsub.colocation import Networks
from p2pnode.protocols.pubsub.core import Router
from p2pnode.protocols.pubsub.framing import FrameSplitter
from p2pnode.protocols.pubsub.info import PeerGivenUp
from p2pnode.protocols.pubsub.link import Link
from p2pnode.protocols.pubsub.messages import RpcLimits, decode
from p2pnode.protocols.pubsub.state import PROTOCOLS
from p2pnode.protocols.pubsub.unfinished import Unfinished
from p2pnode.wire.peer_id import PeerId


class PubSubPeers:
    """Those of the connected peers that speak pub/sub; see the module.

    Args:
        host: the node's network side.
        router: told who is there and what it sends.
        settings: all parameters.
        carry_out: does what the router wants done, whenever it was told something.

    Attributes:
        links: what is kept of each.
    """

    def __init__(
        self,
        host: Host,
        router: Router,
        settings: PubSubSettings,
        carry_out: Callable[[], None],
    ) -> None:
        self.links: dict[PeerId, Link] = {}
        self._host = host
        self._router = router
        self._settings = settings
        self._carry_out = carry_out
        self._networks = Networks(settings)
        self._limits = RpcLimits(
            messages=settings.max_messages_per_rpc,
            controls=settings.max_controls_per_rpc,
            ids=settings.max_ihave_length,
        )
        self._unfinished = Unfinished(settings.max_partial_bytes, settings.receive_timeout)
        self._nursery: trio.Nursery | None = None

    @contextmanager
    def attended(self, nursery: trio.Nursery) -> Iterator[None]:
        """Keep linked to all that come, by tasks in `nursery`, until the block ends."""
        self._nursery = nursery
        with ExitStack() as undo:
            undo.callback(self._leave_all)
            undo.callback(self._host.events.on(ConnectionOpened, self._receive_opened))
            undo.callback(self._host.events.on(ConnectionEnded, self._receive_ended))
            undo.callback(self._host.events.on(PeerIdentified, self._receive_identified))
            for protocol in PROTOCOLS:
                self._host.set_handler(protocol, self._serve)
                undo.callback(self._host.remove_handler, protocol)
            for connection in self._host.connections():
                self._receive_opened(ConnectionOpened(connection=connection))
            yield

    def _leave_all(self) -> None:
        """Leave all peers at once, and be as before."""
        self._nursery = None
        for link in tuple(self.links.values()):
            link.scope.cancel()
            self._forget(link)

    def report(self, peer_id: PeerId, reason: str) -> None:
        """Tell the node that a peer misbehaves."""
        connection = self._host.connection_to(peer_id)
        address = connection.remote_address if connection else None
        self._host.events.emit(
            PeerMisbehaved(peer_id=peer_id, address=address, reason=f"pubsub: {reason}")
        )

    # --- they come and go -----------------------------------------------------------------------

    def _receive_opened(self, event: ConnectionOpened) -> None:
        peer_id = event.connection.peer_id
        if event.connection.is_limited:
            return
        if self._host.protocols_of(peer_id).intersection(PROTOCOLS):
            self._link_to(peer_id)
        elif self._nursery is not None:
            self._nursery.start_soon(self._try_the_silent, peer_id)

    def _receive_identified(self, event: PeerIdentified) -> None:
        connection = self._host.connection_to(event.peer_id)
        if connection is not None and connection.is_limited:
            return
        if event.protocols.intersection(PROTOCOLS):
            link = self._link_to(event.peer_id)
            link.record = event.record or link.record
            self._router.note_record(event.peer_id, link.record)

    def _receive_ended(self, event: ConnectionEnded) -> None:
        peer_id = event.connection.peer_id
        if peer_id in self.links and self._connection_to(peer_id) is None:
            self.links[peer_id].scope.cancel()
            self._forget(self.links[peer_id])  # now, as the peer may be back before its task ends

    async def _try_the_silent(self, peer_id: PeerId) -> None:
        """Try a peer that has not said by identify which protocols it speaks."""
        await trio.sleep(self._settings.identify_patience)
        if self._connection_to(peer_id) and not self._host.protocols_of(peer_id):
            self._link_to(peer_id)

    def _connection_to(self, peer_id: PeerId) -> Connection | None:
        """The connection to a peer, unless it is one that is not meant for so much."""
        connection = self._host.connection_to(peer_id)
        return None if connection is None or connection.is_limited else connection

    def _link_to(self, peer_id: PeerId) -> Link:
        if (link := self.links.get(peer_id)) is None:
            if self._nursery is None:
                raise ConnectionClosedError("pub/sub is not running")
            link = self.links[peer_id] = Link(peer_id, self._settings)
            self._nursery.start_soon(self._keep_linked, link)
        return link

    async def _keep_linked(self, link: Link) -> None:
        """Keep a stream to a peer open while it is connected and takes it."""
        peer_id = link.peer_id
        try:
            with link.scope:
                while (connection := self._connection_to(peer_id)) is not None:
                    failure = await self._write_on(connection, link)
                    if isinstance(failure, ProtocolNotSupportedError):
                        return
                    self._note_failure(connection, failure)
                    self._remove_peer(link)  # what it was told is uncertain: begin anew
                    if not connection.is_closed:
                        await trio.sleep(self._settings.retry_interval)
        finally:
            self._forget(link)

    def _note_failure(self, connection: Connection, failure: P2PNodeError) -> None:
        peer_id = connection.peer_id
        if isinstance(failure, ProtocolError):
            self._router.blame(peer_id, str(failure))
        elif not connection.is_closed:
            self._host.events.emit(PeerGivenUp(peer_id=peer_id, reason=str(failure)))

    def _forget(self, link: Link) -> None:
        if self.links.get(link.peer_id) is link:
            self._remove_peer(link)
            del self.links[link.peer_id]

    async def _write_on(self, connection: Connection, link: Link) -> P2PNodeError:
        """Open a stream and write on it until that fails; returns why."""
        known = self._host.protocols_of(link.peer_id)
        try:
            stream = await link.open(
                connection, [each for each in PROTOCOLS if each in known] or PROTOCOLS
            )
        except P2PNodeError as error:
            return error
        self._add_peer(link, stream)
        return await link.write(stream)

    def _add_peer(self, link: Link, stream: Stream) -> None:
        self._router.add_peer(
            link.peer_id,
            stream.protocol,
            outbound=stream.connection.direction == "outbound",
            network=self._networks.of(stream.connection.remote_address),
        )
        self._router.note_record(link.peer_id, link.record)
        self._carry_out()

    def _remove_peer(self, link: Link) -> None:
        if link.inbound is not None:
            link.inbound.reset()
            link.inbound = None
        self._router.remove_peer(link.peer_id, trio.current_time())
        self._carry_out()

    # --- what they send -------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """Read a peer's RPCs, in its own time."""
        link = self._link_to(stream.peer_id)
        if link.inbound is not None:
            link.inbound.reset()  # a peer has one stream; the newest counts
        link.inbound = stream
        self._add_peer(link, stream)
        splitter = FrameSplitter(self._settings.max_rpc_bytes)
        deadline: float | None = math.inf
        try:
            while link.inbound is stream and deadline is not None:
                deadline = await self._read_on(link, stream, splitter, deadline)
        except ProtocolError as error:
            self._router.blame(link.peer_id, f"it sent a malformed RPC: {error}")
            self._carry_out()
            raise
        finally:
            if link.inbound is stream:
                link.inbound = None

    async def _read_on(
        self, link: Link, stream: Stream, splitter: FrameSplitter, deadline: float
    ) -> float | None:
        """Take in what comes next.

        Nothing of it is kept here while the next read waits, which may be for long.

        Args:
            link: the peer.
            stream: what it sends on.
            splitter: holds the part of an RPC that has come.
            deadline: when that RPC must be whole.

        Returns:
            The deadline of the RPC that has begun now, or None at the end of the stream.
        """
        if not (data := await self._unfinished.receive(stream, len(splitter), deadline)):
            return None
        is_new = not len(splitter)
        for frame in splitter.feed(data):
            is_new = True
            await self._take_in(link, frame)
        return self._unfinished.deadline() if is_new else deadline

    async def _take_in(self, link: Link, frame: bytes) -> None:
        if not self._router.accepts_from(link.peer_id):
            self._router.counts.graylisted += 1
            if not link.is_shunned:
                link.is_shunned = True
                self.report(link.peer_id, "its score is so low that it is no longer heard")
            await trio.lowlevel.checkpoint()
            return
        link.is_shunned = False
        rpc = decode(frame, self._limits)
        self._router.receive_rpc(link.peer_id, rpc, trio.current_time())
        self._carry_out()
        for message in rpc.messages:
            self._router.receive_message(link.peer_id, message, trio.current_time())
            self._carry_out()
            # Others get their turn behind each signature; and nothing is lost of a peer that
            # sends too many, but it is read more slowly.
            await trio.sleep(link.pace.take(trio.current_time()))
        if not rpc.messages:
            await trio.lowlevel.checkpoint()  # thousands of small RPCs can come at once
