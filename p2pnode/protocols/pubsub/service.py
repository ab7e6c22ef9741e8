"""Gossipsub over a host: the trio shell around the router.

What a node does with it: subscribe, publish, judge and look. Who the peers are, and the streams to
and from them, is `p2pnode.protocols.pubsub.peers`.
"""

import dataclasses
import random

import trio

from p2pnode.clock import wall_time
from p2pnode.config import PubSubSettings
from p2pnode.errors import MessageTooLargeError, NoPeersError, ResourceLimitError
from p2pnode.host import Host
from p2pnode.protocols.pubsub.core import MessageIdFunction, Router, Verdict
from p2pnode.protocols.pubsub.dialling import Dialling
from p2pnode.protocols.pubsub.info import PeerInfo, PubSubInfo, TopicInfo
from p2pnode.protocols.pubsub.peers import PubSubPeers
from p2pnode.protocols.pubsub.scoring import AppScore, TopicScoreParams
from p2pnode.protocols.pubsub.state import (
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
        self._peers = PubSubPeers(host, self._router, self.settings, self._carry_out)
        self._validation = Validation(self.settings, self._conclude)
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in pub/sub until cancelled."""
        async with trio.open_nursery() as nursery:
            with self._peers.attended(nursery):
                self._nursery = nursery
                try:
                    if self._dialling.direct:
                        nursery.start_soon(self._dialling.run)
                    task_status.started()
                    await self._beat()
                finally:
                    self._nursery = None

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
                for peer_id, link in self._peers.links.items()
            },
            counts=dataclasses.replace(self._router.counts),
            validating=self._validation.running,
            validations_refused=self._validation.overloaded,
            validations_timed_out=self._validation.timed_out,
        )

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
                self._peers.report(output.peer_id, output.reason)

    def _queue(self, output: Send | Cancel) -> None:
        if (link := self._peers.links.get(output.peer_id)) is None:
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
