"""The meshes: with which peers full messages are exchanged, topic by topic.

Source: libp2p/specs, gossipsub 1.0 ("Router State", "Control Messages") and 1.1 ("Explicit
Peering", "PRUNE Backoff", "Peer Exchange", "Outbound Mesh Quotas", "Opportunistic Grafting").

A mesh link is mutual: GRAFT makes it, PRUNE ends it, and neither is answered except that a GRAFT
can be turned down by a PRUNE. Each heartbeat brings a mesh back to `d` peers when it has fewer
than `d_low` or more than `d_high`.
"""

import math
import statistics
from collections.abc import Iterable

from p2pnode.protocols.pubsub.messages import Graft, PeerHint, Prune
from p2pnode.protocols.pubsub.state import Dial, MeshChanged, Peers, RouterState
from p2pnode.wire.peer_id import PeerId


class Backoffs:
    """Who must not be grafted before when, because one side pruned the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._until: dict[tuple[str, PeerId], float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def until(self, topic: str, peer_id: PeerId) -> float:
        """Return when a backoff ends; long ago if there is none."""
        return self._until.get((topic, peer_id), -math.inf)

    def add(self, topic: str, peer_id: PeerId, until: float) -> None:
        """Note a backoff; one that ends later stays."""
        key = topic, peer_id
        until = max(until, self._until.pop(key, -math.inf))
        if len(self._until) >= self._limit:
            del self._until[next(iter(self._until))]
        self._until[key] = until

    def expire(self, now: float) -> None:
        """Forget those that are over."""
        self._until = {key: until for key, until in self._until.items() if until > now}


class Mesh:
    """Our meshes and fanouts: who is in them, and how they are kept in shape."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._settings = state.settings
        self.meshes: dict[str, Peers] = {}  # of the topics we subscribe to
        self.fanouts: dict[str, Peers] = {}  # of those we only publish to
        self.backoffs = Backoffs(self._settings.max_backoffs)
        self._published: dict[str, float] = {}  # when, by fanout

    def members(self, topic: str) -> Peers:
        """Return the mesh of a topic, or its fanout."""
        return self.meshes.get(topic) or self.fanouts.get(topic) or {}

    # --- our own coming and going ---------------------------------------------------------------

    def join(self, topic: str, now: float) -> None:
        """Build the mesh of a topic that we subscribe to from now on."""
        self.meshes[topic] = {}
        self._published.pop(topic, None)
        fanout = self.fanouts.pop(topic, {})
        for peer_id in fanout:
            if self._may_graft(topic, peer_id, now):
                self._graft(topic, peer_id, now)
        self._fill(topic, self._settings.d, now)

    def leave(self, topic: str, now: float) -> None:
        """Take the mesh of a topic apart; its peers may have us back soon."""
        for peer_id in tuple(self.meshes[topic]):
            self._prune(topic, peer_id, now, self._settings.unsubscribe_backoff)
        del self.meshes[topic]

    def fanout(self, topic: str, now: float) -> Peers:
        """Return whom to send what we publish to a topic that we do not subscribe to."""
        self._published[topic] = now
        return self._fill_fanout(topic)

    # --- peers' coming and going ----------------------------------------------------------------

    def receive_subscription(self, topic: str, peer_id: PeerId, now: float) -> None:
        """Take a new peer of a topic in at once if the mesh is too small, else leave it be."""
        mesh = self.meshes.get(topic)
        if mesh is None or len(mesh) >= self._settings.d_low:
            return
        if peer_id in self._state.mesh_candidates(topic) and self._may_graft(topic, peer_id, now):
            self._graft(topic, peer_id, now)

    def remove(self, topic: str, peer_id: PeerId) -> None:
        """Drop a peer that has left the topic, without a word to it."""
        self.fanouts.get(topic, {}).pop(peer_id, None)
        self._drop(topic, peer_id)

    def receive_graft(self, topic: str, peer_id: PeerId, now: float) -> None:
        """Take in a peer that has taken us in, or turn it down by a PRUNE."""
        mesh = self.meshes.get(topic)
        if mesh is None or peer_id in mesh:
            return  # of an unknown topic we say nothing, or anyone could make us talk
        peer = self._state.peers[peer_id]
        if peer.direct or not peer.meshes or topic not in peer.topics:
            self._state.report(peer_id, "it grafts us, and is none of those who may")
            self._prune(topic, peer_id, now, self._settings.prune_backoff)
        elif now < (until := self.backoffs.until(topic, peer_id)):
            pruned = until - self._settings.prune_backoff
            in_haste = now < pruned + self._settings.graft_flood_threshold
            self._state.scores.blame(peer_id, 2 if in_haste else 1)
            self._state.report(peer_id, "it grafts us before its backoff is over")
            self._prune(topic, peer_id, now, self._settings.prune_backoff)
        elif self._state.scores.score(peer_id) < 0:
            self._prune(topic, peer_id, now, self._settings.prune_backoff)
        elif len(mesh) >= self._settings.d_high and not peer.outbound:
            self._prune(topic, peer_id, now, self._settings.prune_backoff, px=True)
        else:
            self._admit(topic, peer_id, now)

    def receive_prune(self, prune: Prune, peer_id: PeerId, now: float) -> None:
        """Let a peer go that has put us out, and perhaps try those it names instead."""
        if prune.topic not in self.meshes:
            return
        self._drop(prune.topic, peer_id)
        backoff = self._settings.prune_backoff if prune.backoff is None else prune.backoff
        until = now + min(backoff, self._settings.max_prune_backoff)
        self.backoffs.add(prune.topic, peer_id, until)
        if prune.peers and self._state.scores.score(peer_id) >= self._settings.accept_px_threshold:
            unknown = [each for each in prune.peers if each.peer_id not in self._state.peers]
            count = min(len(unknown), self._settings.prune_peers)
            for hint in self._state.rng.sample(unknown, count):
                self._state.outputs.append(Dial(hint.peer_id, hint.record))

    # --- heartbeat ------------------------------------------------------------------------------

    def maintain(self, tick: int, now: float) -> None:
        """Bring all meshes and fanouts back into shape."""
        for topic in self.meshes:
            self._drop_the_bad(topic, now)
            if len(self.meshes[topic]) < self._settings.d_low:
                self._fill(topic, self._settings.d, now)
            if len(self.meshes[topic]) > self._settings.d_high:
                self._thin(topic, now)
            self._reach_out(topic, now)
            if tick % self._settings.opportunistic_graft_ticks == 0:
                self._graft_opportunistically(topic, now)
        for topic in list(self.fanouts):
            if now - self._published[topic] >= self._settings.fanout_ttl:
                del self.fanouts[topic], self._published[topic]
            else:
                self._fill_fanout(topic)
        self.backoffs.expire(now)

    def _drop_the_bad(self, topic: str, now: float) -> None:
        for peer_id in tuple(self.meshes[topic]):
            if self._state.scores.score(peer_id) < 0:
                self._prune(topic, peer_id, now, self._settings.prune_backoff)

    def _fill(self, topic: str, size: int, now: float) -> None:
        missing = size - len(self.meshes[topic])
        for peer_id in self._state.pick(
            self._state.mesh_candidates(topic),
            missing,
            lambda each: self._may_graft(topic, each, now),
        ):
            self._graft(topic, peer_id, now)

    def _thin(self, topic: str, now: float) -> None:
        """Cut an overfull mesh to `d`: the best stay, the others by chance, some of them ours."""
        settings = self._settings
        ranked = list(self.meshes[topic])
        self._state.rng.shuffle(ranked)
        ranked.sort(key=self._state.scores.score, reverse=True)
        by_chance = ranked[settings.d_score :]
        self._state.rng.shuffle(by_chance)
        ranked[settings.d_score :] = by_chance
        kept, cut = ranked[: settings.d], ranked[settings.d :]
        missing = settings.d_out - sum(map(self._is_outbound, kept))
        for newcomer in [each for each in cut if self._is_outbound(each)][: max(0, missing)]:
            last_inbound = next(each for each in reversed(kept) if not self._is_outbound(each))
            kept[kept.index(last_inbound)] = newcomer
            cut[cut.index(newcomer)] = last_inbound
        for peer_id in cut:
            self._prune(topic, peer_id, now, settings.prune_backoff, px=True)

    def _reach_out(self, topic: str, now: float) -> None:
        """Have enough peers in the mesh that we chose ourselves, whoever crowds in."""
        mesh = self.meshes[topic]
        if len(mesh) < self._settings.d_low:
            return  # there is nobody left to choose from
        missing = self._settings.d_out - sum(map(self._is_outbound, mesh))
        for peer_id in self._state.pick(
            self._state.mesh_candidates(topic),
            missing,
            lambda each: self._is_outbound(each) and self._may_graft(topic, each, now),
        ):
            self._graft(topic, peer_id, now)

    def _graft_opportunistically(self, topic: str, now: float) -> None:
        """Take in better peers when a mesh as a whole has come to be poor."""
        mesh = self.meshes[topic]
        if len(mesh) < 2:
            return
        score = self._state.scores.score
        median = statistics.median(map(score, mesh))
        if median >= self._settings.opportunistic_graft_threshold:
            return
        for peer_id in self._state.pick(
            self._state.mesh_candidates(topic),
            self._settings.opportunistic_graft_peers,
            lambda each: score(each) > median and self._may_graft(topic, each, now),
        ):
            self._graft(topic, peer_id, now)

    def _fill_fanout(self, topic: str) -> Peers:
        def is_worthy(peer_id: PeerId) -> bool:
            return self._state.scores.score(peer_id) >= self._settings.publish_threshold

        fanout = {each: None for each in self.fanouts.get(topic, {}) if is_worthy(each)}
        candidates = (each for each in self._state.mesh_candidates(topic) if each not in fanout)
        missing = self._settings.d - len(fanout)
        fanout.update(dict.fromkeys(self._state.pick(candidates, missing, is_worthy)))
        self.fanouts[topic] = fanout
        return fanout

    # --- single links ---------------------------------------------------------------------------

    def _is_outbound(self, peer_id: PeerId) -> bool:
        return self._state.peers[peer_id].outbound

    def _may_graft(self, topic: str, peer_id: PeerId, now: float) -> bool:
        return (
            peer_id not in self.meshes[topic]
            and self.backoffs.until(topic, peer_id) <= now
            and self._state.scores.score(peer_id) >= 0
        )

    def _admit(self, topic: str, peer_id: PeerId, now: float) -> None:
        self.meshes[topic][peer_id] = None
        self._state.scores.graft(peer_id, topic, now)
        self._state.outputs.append(MeshChanged(peer_id, topic, joined=True))

    def _graft(self, topic: str, peer_id: PeerId, now: float) -> None:
        self._admit(topic, peer_id, now)
        self._state.send(peer_id, Graft(topic))

    def _drop(self, topic: str, peer_id: PeerId) -> None:
        if peer_id in self.meshes.get(topic, {}):
            del self.meshes[topic][peer_id]
            self._state.scores.prune(peer_id, topic)
            self._state.outputs.append(MeshChanged(peer_id, topic, joined=False))

    def _prune(
        self, topic: str, peer_id: PeerId, now: float, backoff: float, *, px: bool = False
    ) -> None:
        """End a link, or turn it down; only peers we do not shun are told of others (`px`)."""
        self._drop(topic, peer_id)
        self.backoffs.add(topic, peer_id, now + backoff)
        if self._state.peers[peer_id].backs_off:
            hints = tuple(self._hints(topic, peer_id)) if px and self._settings.do_px else ()
            self._state.send(peer_id, Prune(topic, hints, math.ceil(backoff)))
        else:
            self._state.send(peer_id, Prune(topic))

    def _hints(self, topic: str, peer_id: PeerId) -> Iterable[PeerHint]:
        """Name others of the topic; without their signed record an id is of little use."""

        def is_useful(each: PeerId) -> bool:
            known = bool(self._state.peers[each].record)
            return each != peer_id and known and self._state.scores.score(each) >= 0

        candidates = self._state.mesh_candidates(topic)
        for each in self._state.pick(candidates, self._settings.prune_peers, is_useful):
            yield PeerHint(each, self._state.peers[each].record)
