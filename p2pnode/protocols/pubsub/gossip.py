"""Gossip: telling peers outside the mesh what we have, and asking for what we lack.

Source: libp2p/specs, gossipsub 1.0 ("IHAVE", "IWANT"), 1.1 ("Adaptive Gossip Dissemination",
"Spam Protection Measures") and 1.2 (IDONTWANT). All of it is bounded per peer and heartbeat: what
goes beyond is not heeded.
"""

from collections.abc import Collection

from p2pnode.protocols.pubsub.cache import MessageCache, SeenCache
from p2pnode.protocols.pubsub.messages import IDontWant, IHave, IWant, Message
from p2pnode.protocols.pubsub.state import Cancel, Peers, RouterState, Send
from p2pnode.wire.peer_id import PeerId


class Promises:
    """Messages that peers said they have, and that we asked them for.

    Of each IWANT one message is watched, drawn by chance: who breaks promises on purpose cannot
    know which ones are.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._until: dict[bytes, dict[PeerId, float]] = {}

    def add(self, message_id: bytes, peer_id: PeerId, now: float) -> None:
        """Watch for a message that a peer has promised."""
        self._until.setdefault(message_id, {}).setdefault(peer_id, now + self._patience)

    def fulfil(self, message_id: bytes) -> None:
        """Note that the message has come, from whomever."""
        self._until.pop(message_id, None)

    def forget(self, peer_id: PeerId) -> None:
        """Forget the promises of a peer that has left."""
        for message_id in [key for key, promised in self._until.items() if peer_id in promised]:
            del self._until[message_id][peer_id]
            if not self._until[message_id]:
                del self._until[message_id]

    def take_broken(self, now: float) -> dict[PeerId, int]:
        """Return how many promises each peer has broken, and forget them."""
        broken: dict[PeerId, int] = {}
        for message_id, promised in list(self._until.items()):
            for peer_id in [each for each, until in promised.items() if until <= now]:
                broken[peer_id] = broken.get(peer_id, 0) + 1
                del promised[peer_id]
            if not promised:
                del self._until[message_id]
        return broken


class Gossip:
    """What is told, asked for and kept to be given."""

    def __init__(self, state: RouterState, seen: SeenCache) -> None:
        self._state = state
        self._settings = state.settings
        self._seen = seen
        self.promises = Promises(self._settings.iwant_followup_time)
        self.cache = MessageCache(
            self._settings.mcache_len, self._settings.mcache_gossip, self._settings.max_mcache_bytes
        )

    # --- what peers say -------------------------------------------------------------------------

    def receive_ihave(self, ihave: IHave, peer_id: PeerId, now: float) -> None:
        """Ask for what we have not seen, within what we may ask of one peer."""
        peer = self._state.peers[peer_id]
        settings = self._settings
        peer.ihaves += 1
        room = settings.max_ihave_length - peer.asked
        if peer.ihaves > settings.max_ihave_messages or room <= 0:
            return
        if self._state.scores.score(peer_id) < settings.gossip_threshold:
            return
        if ihave.topic not in self._state.topics:
            return
        wanted = [each for each in dict.fromkeys(ihave.ids) if each not in self._seen]
        if wanted:
            asked = tuple(self._state.rng.sample(wanted, min(len(wanted), room)))
            peer.asked += len(asked)
            self.promises.add(asked[0], peer_id, now)
            self._state.send(peer_id, IWant(asked))

    def receive_iwant(self, iwant: IWant, peer_id: PeerId) -> None:
        """Send what is asked for and still kept, but none of it over and over."""
        if self._state.scores.score(peer_id) < self._settings.gossip_threshold:
            return
        unwanted = self._state.peers[peer_id].unwanted
        for message_id in dict.fromkeys(iwant.ids):
            found = self.cache.get_for(message_id, peer_id)
            if found is None or message_id in unwanted:
                continue
            message, encoded, count = found
            if count <= self._settings.gossip_retransmission:
                self._state.outputs.append(
                    Send(peer_id=peer_id, piece=message, encoded=encoded, message_id=message_id)
                )

    def receive_idontwant(self, said: IDontWant, peer_id: PeerId) -> None:
        """Spare a peer what it has, also what already waits for it."""
        peer = self._state.peers[peer_id]
        room = max(0, self._settings.max_idontwant_messages - peer.idontwants)
        ids = said.ids[:room]
        peer.idontwants += len(ids)
        peer.unwanted.update(dict.fromkeys(ids, self._settings.idontwant_ttl))
        if ids:
            self._state.outputs.append(Cancel(peer_id, ids))

    # --- what we say ----------------------------------------------------------------------------

    def decline(self, message_id: bytes, message: Message, mesh: Peers, bringer: PeerId) -> None:
        """Tell our mesh at once that a large message has come, so that nobody sends it again."""
        if len(message.data) < self._settings.idontwant_threshold:
            return
        piece = IDontWant((message_id,))
        encoded = piece.encode()
        for peer_id in mesh:
            if peer_id not in {bringer, message.author} and (
                self._state.peers[peer_id].takes_idontwant
            ):
                self._state.outputs.append(Send(peer_id=peer_id, piece=piece, encoded=encoded))

    def tell(self, topic: str, members: Collection[PeerId]) -> None:
        """Tell some peers outside the mesh or fanout of a topic what we have of it."""
        settings = self._settings
        if not (ids := self.cache.ids(topic)):
            return
        candidates = [
            each
            for each in self._state.mesh_candidates(topic)
            if each not in members and self._state.scores.score(each) >= settings.gossip_threshold
        ]
        count = max(settings.d_lazy, int(settings.gossip_factor * len(candidates)))
        for peer_id in self._state.pick(candidates, count):
            peer = self._state.peers[peer_id]
            room = settings.max_ihave_length - peer.told
            # Where there is more than one peer may be told of, each is told of another part.
            if told := tuple(self._state.rng.sample(ids, min(len(ids), room))):
                peer.told += len(told)
                self._state.send(peer_id, IHave(topic, told))

    # --- heartbeat ------------------------------------------------------------------------------

    def begin_heartbeat(self, now: float) -> None:
        """Open the budgets of a new heartbeat, and blame peers for promises they broke."""
        for peer in self._state.peers.values():
            peer.ihaves = peer.asked = peer.told = peer.idontwants = 0
            if peer.unwanted:
                peer.unwanted = {key: ttl - 1 for key, ttl in peer.unwanted.items() if ttl > 1}
        for peer_id, times in self.promises.take_broken(now).items():
            self._state.scores.blame(peer_id, times)
            self._state.report(peer_id, "it told of a message, and did not send it when asked")
