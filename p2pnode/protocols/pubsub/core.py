"""The gossipsub router of one node, as a state machine.

Source: libp2p/specs, gossipsub 1.0, 1.1 and 1.2. Inputs are what peers do and say (`receive_*`)
and the heartbeat; commands are what the application wants; `take_outputs` says what is to be done
about them. The path of a message from a peer:

    1. A message of a topic we do not want, or one we have seen, goes no further; duplicates count
       for their bringer's score.
    2. A message with a bad signature, or that claims to be ours, is refused, and its bringer
       blamed. Only now is its id remembered, so that a forgery cannot shut out what it imitates.
    3. Our mesh is told that a large message need not be sent to us again (IDONTWANT).
    4. `Validate` asks the application. Only what it accepts is delivered and forwarded: to the
       mesh, to direct peers, and to floodsub peers, except to those it came from.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto

from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub import signing
from p2pnode.protocols.pubsub.cache import SeenCache
from p2pnode.protocols.pubsub.deliveries import Deliveries
from p2pnode.protocols.pubsub.gossip import Gossip
from p2pnode.protocols.pubsub.mesh import Mesh
from p2pnode.protocols.pubsub.messages import (
    MAX_ID_BYTES,
    Control,
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    Prune,
    Rpc,
)
from p2pnode.protocols.pubsub.scoring import AppScore, Scores
from p2pnode.protocols.pubsub.state import (
    FLOODSUB,
    Chance,
    Deliver,
    Output,
    Peers,
    PeerState,
    RouterState,
    Send,
    Validate,
)
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

MessageIdFunction = Callable[[Message], bytes]


class Verdict(Enum):
    """What validation found.

    `ACCEPT` delivers and forwards the message. `REJECT` drops it and blames whoever brought it.
    `IGNORE` drops it, and is nobody's fault.
    """

    ACCEPT = auto()
    REJECT = auto()
    IGNORE = auto()


@dataclass(slots=True)
class Counts:
    """How many messages have met which fate, since the start."""

    published: int = 0
    delivered: int = 0
    forwarded: int = 0  # copies sent on
    duplicates: int = 0
    refused: int = 0  # badly signed or otherwise broken
    rejected: int = 0
    ignored: int = 0  # also for lack of room
    unwanted: int = 0  # of topics we have not subscribed to
    graylisted: int = 0  # RPCs from peers we no longer listen to


class Router:
    """The state machine.

    Args:
        key: our identity, which signs what we publish.
        settings: all parameters.
        rng: the source of chance.
        app_score: what the application thinks of a peer.
        direct: peers that are always sent everything, whatever their score.
    """

    def __init__(
        self,
        key: PrivateKey,
        settings: PubSubSettings,
        rng: Chance,
        *,
        app_score: AppScore | None = None,
        direct: Collection[PeerId] = (),
    ) -> None:
        self.scores = Scores(settings, app_score)
        self.counts = Counts()
        self._key = key
        self._peer_id = key.peer_id
        self._settings = settings
        self._direct = frozenset(direct)
        self._state = RouterState(settings, rng, self.scores)
        self._seen = SeenCache(settings.seen_ttl, settings.max_seen)
        self._deliveries = Deliveries(self.scores, settings.seen_ttl, settings.max_seen)
        self._mesh = Mesh(self._state)
        self._gossip = Gossip(self._state, self._seen)
        self._pending: dict[bytes, Validate] = {}
        self._id_functions: dict[str, MessageIdFunction] = {}
        self._seqno = 0
        self._tick = 0

    # --- what there is to see -------------------------------------------------------------------

    @property
    def topics(self) -> list[str]:
        """The topics we subscribe to."""
        return list(self._state.topics)

    @property
    def peers(self) -> list[PeerId]:
        """The peers that speak pubsub with us."""
        return list(self._state.peers)

    def peers_of(self, topic: str) -> list[PeerId]:
        """Return the peers that subscribe to a topic."""
        return list(self._state.peers_of(topic))

    def mesh_of(self, topic: str) -> list[PeerId]:
        """Return our mesh of a topic; empty if we do not subscribe to it."""
        return list(self._mesh.meshes.get(topic, ()))

    def meshes_with(self, peer_id: PeerId) -> list[str]:
        """Return the topics in whose mesh a peer is."""
        return [topic for topic, mesh in self._mesh.meshes.items() if peer_id in mesh]

    def accepts_from(self, peer_id: PeerId) -> bool:
        """Whether we listen to a peer at all."""
        is_direct = peer_id in self._direct
        return is_direct or self.scores.score(peer_id) >= self._settings.graylist_threshold

    def take_outputs(self) -> list[Output]:
        """Return what is to be done since the last call, in order."""
        outputs, self._state.outputs = self._state.outputs, []
        return outputs

    # --- peers ----------------------------------------------------------------------------------

    def add_peer(
        self, peer_id: PeerId, protocol: str, *, outbound: bool, network: str | None
    ) -> None:
        """Begin to speak with a peer, and tell it our topics.

        Args:
            peer_id: who it is; one that is known already only changes its protocol.
            protocol: the one of `PROTOCOLS` that it speaks.
            outbound: whether we dialled it.
            network: where it connects from; None if it does not matter how many do.
        """
        if (known := self._state.peers.get(peer_id)) is not None:
            known.protocol = protocol
            return
        self._state.peers[peer_id] = PeerState(protocol, outbound, peer_id in self._direct)
        self.scores.add_peer(peer_id, network)
        for topic in self._state.topics:
            self._state.send(peer_id, Interest(topic, wanted=True))

    def note_record(self, peer_id: PeerId, record: bytes) -> None:
        """Remember a peer's signed record, to be told to those we prune."""
        if (peer := self._state.peers.get(peer_id)) is not None:
            peer.record = record

    def remove_peer(self, peer_id: PeerId, now: float) -> None:
        """Forget a peer that has left, except for its bad deeds."""
        if (peer := self._state.peers.get(peer_id)) is None:
            return
        for topic in tuple(peer.topics):
            self._leave_topic(peer_id, topic)
        self._gossip.promises.forget(peer_id)
        self.scores.remove_peer(peer_id, now)
        del self._state.peers[peer_id]

    def blame(self, peer_id: PeerId, reason: str) -> None:
        """Note that a peer broke the rules in a way that only the shell can see."""
        self.scores.blame(peer_id)
        self._state.report(peer_id, reason)

    # --- what peers say -------------------------------------------------------------------------

    def receive_rpc(self, peer_id: PeerId, rpc: Rpc, now: float) -> None:
        """Take in all of an RPC but its messages, which `receive_message` takes one by one."""
        if peer_id not in self._state.peers or not self.accepts_from(peer_id):
            return
        for option in rpc.subscriptions:
            self._receive_subscription(peer_id, option, now)
        if self._state.peers[peer_id].protocol == FLOODSUB:
            return
        for control in rpc.control:
            if not self.accepts_from(peer_id):
                return  # what it has just said has cost it our ear
            self._receive_control(peer_id, control, now)

    def receive_message(self, peer_id: PeerId, message: Message, now: float) -> None:
        """Take in a message that a peer has sent."""
        if peer_id not in self._state.peers or not self.accepts_from(peer_id):
            return
        if message.topic not in self._state.topics:
            self.counts.unwanted += 1
            return
        message_id = self.id_of(message)
        if message_id in self._seen:
            self.counts.duplicates += 1
            self._gossip.promises.fulfil(message_id)
            self._deliveries.receive_duplicate(message_id, peer_id, now)
            return
        if (fault := self._find_fault(message, message_id)) is not None:
            self.counts.refused += 1
            self.scores.blame_invalid(peer_id, message.topic)
            self._state.report(peer_id, f"it sent a message that is refused: {fault}")
            return
        self._seen.add(message_id, now)
        self._gossip.promises.fulfil(message_id)
        self._deliveries.begin(message_id, peer_id, message.topic, now)
        mesh = self._mesh.meshes[message.topic]
        self._gossip.decline(message_id, message, mesh, peer_id)
        validate = Validate(message_id, message, peer_id)
        self._pending[message_id] = validate
        self._state.outputs.append(validate)

    def receive_verdict(self, message_id: bytes, verdict: Verdict, now: float) -> None:
        """Go on with a message whose validation is over."""
        if (pending := self._pending.pop(message_id, None)) is None:
            return
        if verdict is Verdict.REJECT:
            self.counts.rejected += 1
            self._deliveries.reject(message_id)
        elif verdict is Verdict.IGNORE:
            self.counts.ignored += 1
            self._deliveries.drop(message_id)
        else:
            self._deliveries.accept(message_id, now)
            self._spread(message_id, pending.message, self._forward_targets(pending.message.topic))
            self.counts.delivered += 1
            self._state.outputs.append(Deliver(message_id, pending.message, pending.received_from))

    # --- commands -------------------------------------------------------------------------------

    def set_message_id(self, topic: str, function: MessageIdFunction | None) -> None:
        """Make the ids of a topic's messages by `function`; all nodes must do the same."""
        if function is None:
            self._id_functions.pop(topic, None)
        else:
            self._id_functions[topic] = function

    def id_of(self, message: Message) -> bytes:
        """Return a message's id."""
        return self._id_functions.get(message.topic, signing.message_id)(message)

    def subscribe(self, topic: str, now: float) -> None:
        """Want a topic's messages from now on."""
        self._state.topics[topic] = None
        for peer_id in self._state.peers:
            self._state.send(peer_id, Interest(topic, wanted=True))
        self._mesh.join(topic, now)

    def unsubscribe(self, topic: str, now: float) -> None:
        """Want a topic's messages no longer."""
        del self._state.topics[topic]
        self._mesh.leave(topic, now)
        for peer_id in self._state.peers:
            self._state.send(peer_id, Interest(topic, wanted=False))

    def publish(self, topic: str, data: bytes, now: float, wall_ns: int) -> bytes:
        """Send a message of ours to the topic, and return its id.

        Args:
            topic: where to.
            data: the application's bytes.
            now: the time.
            wall_ns: nanoseconds since the Unix epoch. Sequence numbers begin there and rise, also
                over restarts, as some peers drop what does not.
        """
        if self._settings.strict_sign:
            self._seqno = max(self._seqno + 1, wall_ns)
            message = signing.sign(self._key, topic, data, self._seqno)
        else:
            message = Message(topic=topic, data=data)
        message_id = self.id_of(message)
        if message_id in self._seen:  # only where ids are made of the content
            return message_id
        self._seen.add(message_id, now)
        self._spread(message_id, message, self._publish_targets(topic, now), own=True)
        self.counts.published += 1
        if self._settings.emit_self and topic in self._state.topics:
            self._state.outputs.append(Deliver(message_id, message, self._peer_id))
        return message_id

    def heartbeat(self, now: float) -> None:
        """Do what is done every `heartbeat_interval`."""
        self._tick += 1
        self.scores.decay(now)
        self._gossip.begin_heartbeat(now)
        self._mesh.maintain(self._tick, now)
        for topic in self._gossip.cache.topics():
            self._gossip.tell(topic, self._mesh.members(topic))
        self._gossip.cache.shift()
        self._seen.expire(now)
        self._deliveries.expire(now)

    # --- within ---------------------------------------------------------------------------------

    def _receive_subscription(self, peer_id: PeerId, said: Interest, now: float) -> None:
        peer = self._state.peers[peer_id]
        if not said.wanted:
            self._leave_topic(peer_id, said.topic)
        elif said.topic not in peer.topics:
            too_long = len(said.topic.encode()) > self._settings.max_topic_bytes
            if too_long or len(peer.topics) >= self._settings.max_topics_per_peer:
                self.blame(peer_id, "it subscribes to more than it may")
                return
            peer.topics[said.topic] = None
            self._state.topic_peers.setdefault(said.topic, {})[peer_id] = None
            self._mesh.receive_subscription(said.topic, peer_id, now)

    def _receive_control(self, peer_id: PeerId, control: Control, now: float) -> None:
        match control:
            case IHave():
                self._gossip.receive_ihave(control, peer_id, now)
            case IWant():
                self._gossip.receive_iwant(control, peer_id)
            case IDontWant():
                self._gossip.receive_idontwant(control, peer_id)
            case Graft():
                self._mesh.receive_graft(control.topic, peer_id, now)
            case Prune():
                self._mesh.receive_prune(control, peer_id, now)

    def _leave_topic(self, peer_id: PeerId, topic: str) -> None:
        if topic not in self._state.peers[peer_id].topics:
            return
        del self._state.peers[peer_id].topics[topic]
        others = self._state.topic_peers[topic]
        del others[peer_id]
        if not others:
            del self._state.topic_peers[topic]
        self._mesh.remove(topic, peer_id)

    def _find_fault(self, message: Message, message_id: bytes) -> str | None:
        if not 0 < len(message_id) <= MAX_ID_BYTES:
            return "its id has a wrong length"
        if len(message.data) > self._settings.max_message_bytes:
            return "it is too large"
        if message.author == self._peer_id:
            return "it claims to be ours"
        return signing.find_fault(message, strict_sign=self._settings.strict_sign)

    def _spread(
        self, message_id: bytes, message: Message, targets: Peers, *, own: bool = False
    ) -> None:
        """Keep a message for gossip, and send it to `targets` who may not have it yet."""
        encoded = message.encode()
        self._gossip.cache.put(message_id, message, encoded)
        bringers = self._deliveries.bringers(message_id)
        for peer_id in targets:
            peer = self._state.peers[peer_id]
            if peer_id in bringers or peer_id == message.author or message_id in peer.unwanted:
                continue
            self.counts.forwarded += not own
            self._state.outputs.append(
                Send(
                    peer_id=peer_id,
                    piece=message,
                    encoded=encoded,
                    message_id=message_id,
                    own=own,
                )
            )

    def _forward_targets(self, topic: str) -> Peers:
        """Return the mesh, and the peers of a topic that are in no mesh by their nature."""
        targets = dict(self._mesh.meshes.get(topic, {}))
        for peer_id in self._state.peers_of(topic):
            peer = self._state.peers[peer_id]
            if peer.direct or (not peer.meshes and self._is_worthy(peer_id)):
                targets[peer_id] = None
        return targets

    def _publish_targets(self, topic: str, now: float) -> Peers:
        """Return whom our own message goes to: to all when flooding, else as if forwarded."""
        if self._settings.flood_publish:
            peers = self._state.peers_of(topic)
            return {each: None for each in peers if each in self._direct or self._is_worthy(each)}
        targets = self._forward_targets(topic)
        if topic not in self._state.topics:
            targets |= self._mesh.fanout(topic, now)
        return targets

    def _is_worthy(self, peer_id: PeerId) -> bool:
        return self.scores.score(peer_id) >= self._settings.publish_threshold
