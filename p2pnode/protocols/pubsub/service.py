"""Gossipsub over a host: the trio shell around the router.

Each peer that speaks pubsub has a `Link`, one task that writes to it, and one that reads from it,
which is the handler of the stream the peer opened. Neither waits for the other, nor for another
peer: what the router says is queued at once, in bounded queues that drop.

We learn that a peer speaks pubsub by identify, by a stream it opens to us, or, if it never tells,
by trying.
"""

import dataclasses
import math
import random
from contextlib import ExitStack

import trio

from p2pnode.clock import wall_time
from p2pnode.config import PubSubSettings
from p2pnode.errors import (
    ConnectionClosedError,
    MessageTooLargeError,
    NoPeersError,
    P2PNodeError,
    ProtocolError,
    ProtocolNotSupportedError,
    ResourceLimitError,
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
from p2pnode.protocols.pubsub.core import MessageIdFunction, Router, Verdict
from p2pnode.protocols.pubsub.dialling import Dialling
from p2pnode.protocols.pubsub.framing import FrameSplitter
from p2pnode.protocols.pubsub.info import PeerGivenUp, PeerInfo, PubSubInfo, TopicInfo
from p2pnode.protocols.pubsub.link import Link
from p2pnode.protocols.pubsub.messages import RpcLimits, decode
from p2pnode.protocols.pubsub.scoring import AppScore, TopicScoreParams
from p2pnode.protocols.pubsub.state import (
    PROTOCOLS,
    Cancel,
    Deliver,
    Dial,
    MeshChanged,
    Output,
    Report,
    Send,
    Validate,
)
from p2pnode.protocols.pubsub.subscription import PubSubMessage, Subscription
from p2pnode.protocols.pubsub.unfinished import Unfinished
from p2pnode.protocols.pubsub.validation import Validation, Validator
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId


class PubSub:
    """A node's pub/sub; its methods work at once, its network while `run` runs.

    Args:
        host: the node's network side.
        key: the node's identity, which signs what it publishes.
        settings: all parameters.
        rng: the source of chance.
        app_score: what the application thinks of a peer (P5 of the score).

    Raises:
        InvalidAddressError: a direct peer's address is malformed or lacks its `/p2p` part.
    """

    def __init__(
        self,
        host: Host,
        key: PrivateKey,
        settings: PubSubSettings | None = None,
        *,
        rng: random.Random,
        app_score: AppScore | None = None,
    ) -> None:
        self.settings = settings or PubSubSettings()
        self._host = host
        self._rng = rng
        self._dialling = Dialling(host, self.settings)
        self._router = Router(
            key, self.settings, rng, app_score=app_score, direct=self._dialling.direct
        )
        self._networks = Networks(self.settings)
        self._validation = Validation(self.settings, self._conclude)
        self._limits = RpcLimits(
            messages=self.settings.max_messages_per_rpc,
            controls=self.settings.max_controls_per_rpc,
            ids=self.settings.max_ihave_length,
        )
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._links: dict[PeerId, Link] = {}
        self._unfinished = Unfinished(
            self.settings.max_partial_bytes, self.settings.receive_timeout
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in pub/sub until cancelled."""
        async with trio.open_nursery() as nursery:
            with ExitStack() as undo:
                self._nursery = nursery
                undo.callback(self._stop)
                undo.callback(self._host.events.on(ConnectionOpened, self._receive_opened))
                undo.callback(self._host.events.on(ConnectionEnded, self._receive_ended))
                undo.callback(self._host.events.on(PeerIdentified, self._receive_identified))
                for protocol in PROTOCOLS:
                    self._host.set_handler(protocol, self._serve)
                    undo.callback(self._host.remove_handler, protocol)
                for connection in self._host.connections():
                    self._receive_opened(ConnectionOpened(connection=connection))
                if self._dialling.direct:
                    nursery.start_soon(self._dialling.run)
                task_status.started()
                await self._beat()

    # --- commands -------------------------------------------------------------------------------

    def subscribe(
        self, topic: str, *, validator: Validator | None = None, queue: int | None = None
    ) -> Subscription:
        """Get a topic's messages from now on.

        Args:
            topic: the topic.
            validator: judges the topic's messages before they are delivered and forwarded, as by
                `set_validator`; None leaves the validator as it is.
            queue: how many messages may wait for the reader; by the settings if None.

        Raises:
            ResourceLimitError: the node subscribes to as many topics as it may.
            ValueError: the topic's name is too long.
        """
        if len(topic.encode()) > self.settings.max_topic_bytes:
            raise ValueError(f"a topic's name has at most {self.settings.max_topic_bytes} bytes")
        if validator is not None:
            self._validation.set_validator(topic, validator)
        limit = self.settings.subscription_queue if queue is None else queue
        subscription = Subscription(
            topic, limit, self.settings.subscription_queue_bytes, self._forget_subscription
        )
        if topic not in self._subscriptions:
            if len(self._subscriptions) >= self.settings.max_topics:
                raise ResourceLimitError("this node subscribes to as many topics as it may")
            self._subscriptions[topic] = []
            self._router.subscribe(topic, trio.current_time())
        self._subscriptions[topic].append(subscription)
        self._carry_out()
        return subscription

    async def publish(self, topic: str, data: bytes, *, need_peers: bool = False) -> bytes:
        """Send a message to all who subscribe to the topic.

        It is queued for peers when this returns, and kept for a few heartbeats for those who come
        late. Our own messages are not validated.

        Args:
            topic: where to; we need not subscribe to it.
            data: at most `max_message_bytes`.
            need_peers: whether to raise when no peer is known to subscribe to the topic.

        Returns:
            The message's id.

        Raises:
            MessageTooLargeError: `data` is too large.
            NoPeersError: nobody is there to get it, and `need_peers` is set.
        """
        await trio.lowlevel.checkpoint()
        if len(data) > self.settings.max_message_bytes:
            raise MessageTooLargeError(
                f"a message of {len(data)} bytes exceeds the {self.settings.max_message_bytes} "
                "that pubsub carries; publish a digest, and serve the rest on request"
            )
        if need_peers and not self._router.peers_of(topic):
            raise NoPeersError(f"no peer is known to subscribe to {topic!r}")
        wall_ns = int(wall_time() * 1e9)
        message_id = self._router.publish(topic, bytes(data), trio.current_time(), wall_ns)
        self._carry_out()
        return message_id

    def set_validator(self, topic: str, validator: Validator | None) -> None:
        """Judge a topic's messages by `validator` from now on; None accepts them all."""
        self._validation.set_validator(topic, validator)

    def set_message_id(self, topic: str, function: MessageIdFunction | None) -> None:
        """Make the ids of a topic's messages by `function`; all nodes must do the same."""
        self._router.set_message_id(topic, function)

    def set_score_params(self, topic: str, params: TopicScoreParams) -> None:
        """Count a topic in the scores of peers differently from the settings."""
        self._router.scores.set_params(topic, params)

    # --- what there is to see -------------------------------------------------------------------

    @property
    def topics(self) -> list[str]:
        """The topics this node subscribes to."""
        return self._router.topics

    def peers_of(self, topic: str) -> list[PeerId]:
        """Return the connected peers that subscribe to a topic."""
        return self._router.peers_of(topic)

    def mesh_of(self, topic: str) -> list[PeerId]:
        """Return the peers with which full messages of a topic are exchanged."""
        return self._router.mesh_of(topic)

    def score_of(self, peer_id: PeerId) -> float:
        """Return a peer's score; 0 of one that is unknown."""
        return self._router.scores.score(peer_id)

    def info(self) -> PubSubInfo:
        """Return the state of pub/sub."""
        return PubSubInfo(
            topics={
                topic: TopicInfo(len(self.peers_of(topic)), len(self.mesh_of(topic)))
                for topic in self.topics
            },
            peers={
                peer_id: PeerInfo(
                    score=self.score_of(peer_id),
                    meshes=tuple(self._router.meshes_with(peer_id)),
                    queued_pieces=len(link.outbox),
                    queued_bytes=link.outbox.size,
                    dropped=link.dropped,
                )
                for peer_id, link in self._links.items()
            },
            counts=dataclasses.replace(self._router.counts),
            validating=self._validation.running,
            validations_refused=self._validation.overloaded,
            validations_timed_out=self._validation.timed_out,
        )

    # --- peers come and go ----------------------------------------------------------------------

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
        if peer_id in self._links and self._connection_to(peer_id) is None:
            self._links[peer_id].scope.cancel()
            self._forget(self._links[peer_id])  # now, as the peer may be back before its task ends

    async def _try_the_silent(self, peer_id: PeerId) -> None:
        """Try a peer that has not said by identify which protocols it speaks."""
        await trio.sleep(self.settings.identify_patience)
        if self._connection_to(peer_id) and not self._host.protocols_of(peer_id):
            self._link_to(peer_id)

    def _connection_to(self, peer_id: PeerId) -> Connection | None:
        """The connection to a peer, unless it is one that is not meant for so much."""
        connection = self._host.connection_to(peer_id)
        return None if connection is None or connection.is_limited else connection

    def _link_to(self, peer_id: PeerId) -> Link:
        if (link := self._links.get(peer_id)) is None:
            if self._nursery is None:
                raise ConnectionClosedError("pub/sub is not running")
            link = self._links[peer_id] = Link(peer_id, self.settings)
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
                        await trio.sleep(self.settings.retry_interval)
        finally:
            self._forget(link)

    def _note_failure(self, connection: Connection, failure: P2PNodeError) -> None:
        peer_id = connection.peer_id
        if isinstance(failure, ProtocolError):
            self._router.blame(peer_id, str(failure))
        elif not connection.is_closed:
            self._host.events.emit(PeerGivenUp(peer_id=peer_id, reason=str(failure)))

    def _forget(self, link: Link) -> None:
        if self._links.get(link.peer_id) is link:
            self._remove_peer(link)
            del self._links[link.peer_id]

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

    # --- what peers send ------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """Read a peer's RPCs, in its own time."""
        link = self._link_to(stream.peer_id)
        if link.inbound is not None:
            link.inbound.reset()  # a peer has one stream; the newest counts
        link.inbound = stream
        self._add_peer(link, stream)
        splitter = FrameSplitter(self.settings.max_rpc_bytes)
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
                self._tell_of(link.peer_id, "its score is so low that it is no longer heard")
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

    # --- what the router says -------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Do what the router wants done; it may want more in consequence."""
        while outputs := self._router.take_outputs():
            for output in outputs:
                self._do(output)

    def _do(self, output: Output) -> None:
        match output:
            case Send() | Cancel():
                self._queue(output)
            case Validate():
                self._validate(output)
            case Deliver():
                self._deliver(output)
            case MeshChanged(joined=True):
                self._host.protect(output.peer_id, f"pubsub:{output.topic}")
            case MeshChanged():
                self._host.unprotect(output.peer_id, f"pubsub:{output.topic}")
            case Dial() if self._nursery is not None:
                self._dialling.follow(output, self._nursery)
            case Report():
                self._tell_of(output.peer_id, output.reason)

    def _queue(self, output: Send | Cancel) -> None:
        if (link := self._links.get(output.peer_id)) is None:
            return
        if isinstance(output, Send):
            link.push(output)
        else:
            link.outbox.cancel(output.ids)

    def _deliver(self, output: Deliver) -> None:
        message = _for_reader(output)
        for subscription in self._subscriptions.get(message.topic, ()):
            subscription.push(message)

    def _validate(self, request: Validate) -> None:
        if self._nursery is None:
            return
        message = _for_reader(request)
        verdict = self._validation.judge(message, self._nursery)
        if verdict is not None:
            self._router.receive_verdict(message.message_id, verdict, trio.current_time())

    def _conclude(self, message: PubSubMessage, verdict: Verdict) -> None:
        self._router.receive_verdict(message.message_id, verdict, trio.current_time())
        self._carry_out()

    def _tell_of(self, peer_id: PeerId, reason: str) -> None:
        connection = self._host.connection_to(peer_id)
        address = connection.remote_address if connection else None
        self._host.events.emit(
            PeerMisbehaved(peer_id=peer_id, address=address, reason=f"pubsub: {reason}")
        )

    def _forget_subscription(self, subscription: Subscription) -> None:
        remaining = self._subscriptions[subscription.topic]
        remaining.remove(subscription)
        if not remaining:
            del self._subscriptions[subscription.topic]
            self._router.unsubscribe(subscription.topic, trio.current_time())
            self._carry_out()

    # --- background -----------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Call the router's heartbeat; nodes that start together do not beat together."""
        await trio.sleep(self._rng.uniform(0, self.settings.heartbeat_interval))
        while True:
            self._router.heartbeat(trio.current_time())
            self._carry_out()
            await trio.sleep(self.settings.heartbeat_interval)

    def _stop(self) -> None:
        """Leave all peers at once, and be as before `run`."""
        self._nursery = None
        for link in tuple(self._links.values()):
            link.scope.cancel()
            self._forget(link)


def _for_reader(output: Deliver | Validate) -> PubSubMessage:
    message = output.message
    return PubSubMessage(
        topic=message.topic,
        data=message.data,
        source=message.author,
        received_from=output.received_from,
        seqno=int.from_bytes(message.seqno, "big") if message.seqno else None,
        message_id=output.message_id,
    )
