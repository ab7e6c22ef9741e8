"""What a peer is worth to us, from what it did: the score of gossipsub 1.1.

Source: libp2p/specs, gossipsub 1.1, "Peer Scoring"; Vyzovitis et al. (2020), arXiv:2007.02754.
For each topic, weighted and summed up:

    P1   how long it has been in our mesh
    P2   messages it was the first to bring us
    P3   the square of what it brought us too little of while in our mesh
    P3b  the same, noted when it left the mesh, so that leaving does not help
    P4   the square of the invalid messages it brought us

and for the peer as a whole

    P5   what the application thinks of it
    P6   the square of how many peers too many share its network
    P7   the square of the rules it broke too often

All counters decay. Scores are kept by each node for itself and never told.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from p2pnode.config import PubSubSettings
from p2pnode.wire.peer_id import PeerId

AppScore = Callable[[PeerId], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicScoreParams:
    """How a topic counts; the names are the specification's, times are in seconds."""

    topic_weight: float
    time_in_mesh_weight: float
    time_in_mesh_quantum: float
    time_in_mesh_cap: float
    first_message_deliveries_weight: float
    first_message_deliveries_decay: float
    first_message_deliveries_cap: float
    mesh_message_deliveries_weight: float
    mesh_message_deliveries_decay: float
    mesh_message_deliveries_cap: float
    mesh_message_deliveries_threshold: float
    mesh_message_deliveries_window: float
    mesh_message_deliveries_activation: float
    mesh_failure_penalty_weight: float
    mesh_failure_penalty_decay: float
    invalid_message_deliveries_weight: float
    invalid_message_deliveries_decay: float

    @classmethod
    def of(cls, settings: PubSubSettings) -> Self:
        """Return what the settings say of topics in general."""
        return cls(**{each.name: getattr(settings, each.name) for each in dataclasses.fields(cls)})


@dataclass(slots=True)
class _TopicCounters:
    grafted_at: float | None = None  # while the peer is in our mesh
    time_in_mesh: float = 0.0
    first_deliveries: float = 0.0
    mesh_deliveries: float = 0.0
    mesh_deliveries_active: bool = False
    mesh_failures: float = 0.0
    invalid_deliveries: float = 0.0

    def deficit(self, params: TopicScoreParams) -> float:
        """How many deliveries are missing from a peer that has been in the mesh for a while."""
        missing = params.mesh_message_deliveries_threshold - self.mesh_deliveries
        return missing if self.mesh_deliveries_active and missing > 0 else 0.0

    def score(self, params: TopicScoreParams) -> float:
        total = 0.0
        if self.grafted_at is not None:
            quanta = self.time_in_mesh / params.time_in_mesh_quantum
            total += params.time_in_mesh_weight * min(quanta, params.time_in_mesh_cap)
        total += params.first_message_deliveries_weight * self.first_deliveries
        total += params.mesh_message_deliveries_weight * self.deficit(params) ** 2
        total += params.mesh_failure_penalty_weight * self.mesh_failures
        total += params.invalid_message_deliveries_weight * self.invalid_deliveries**2
        return total * params.topic_weight

    def leave_mesh(self, params: TopicScoreParams) -> None:
        if self.grafted_at is not None:
            self.mesh_failures += self.deficit(params) ** 2
            self.grafted_at = None
            self.mesh_deliveries_active = False

    def decay(self, params: TopicScoreParams, now: float, zero: float) -> None:
        def decayed(value: float, factor: float) -> float:
            value *= factor
            return value if value >= zero else 0.0

        self.first_deliveries = decayed(
            self.first_deliveries, params.first_message_deliveries_decay
        )
        self.mesh_deliveries = decayed(self.mesh_deliveries, params.mesh_message_deliveries_decay)
        self.mesh_failures = decayed(self.mesh_failures, params.mesh_failure_penalty_decay)
        self.invalid_deliveries = decayed(
            self.invalid_deliveries, params.invalid_message_deliveries_decay
        )
        if self.grafted_at is not None:
            self.time_in_mesh = now - self.grafted_at
            if self.time_in_mesh > params.mesh_message_deliveries_activation:
                self.mesh_deliveries_active = True


@dataclass(slots=True)
class _PeerCounters:
    network: str | None  # None if peers there are not counted
    topics: dict[str, _TopicCounters] = field(default_factory=dict)
    behaviour: float = 0.0
    # The sum over the topics, until one of them changes. It is asked for in each topic, so that
    # it would cost the square of their number.
    sum: float | None = None

    @property
    def is_clean(self) -> bool:
        return not self.behaviour and not any(
            each.mesh_failures or each.invalid_deliveries for each in self.topics.values()
        )


class Scores:
    """The score of each peer that is connected, or was until lately.

    Args:
        settings: weights, decays and limits.
        app_score: what the application thinks of a peer; 0 by default.
    """

    def __init__(self, settings: PubSubSettings, app_score: AppScore | None = None) -> None:
        self._settings = settings
        self._app_score = app_score
        self._default = TopicScoreParams.of(settings)
        self._params: dict[str, TopicScoreParams] = {}
        self._peers: dict[PeerId, _PeerCounters] = {}
        self._left: dict[PeerId, float] = {}  # until when those are remembered, in that order
        self._networks: dict[str, int] = {}  # peers there, also those that left lately
        self._next_decay = 0.0

    def __len__(self) -> int:
        return len(self._peers)

    def set_params(self, topic: str, params: TopicScoreParams) -> None:
        """Count one topic differently from the others."""
        self._params[topic] = params
        for peer in self._peers.values():
            peer.sum = None

    def params(self, topic: str) -> TopicScoreParams:
        """Return how a topic counts."""
        return self._params.get(topic, self._default)

    # --- what peers did -------------------------------------------------------------------------

    def add_peer(self, peer_id: PeerId, network: str | None) -> None:
        """Begin, or go on, to score a peer that connected from `network`."""
        if (peer := self._peers.get(peer_id)) is None:
            self._peers[peer_id] = _PeerCounters(network)
            self._count_network(network, 1)
            return
        self._left.pop(peer_id, None)
        self._count_network(peer.network, -1)
        self._count_network(network, 1)
        peer.network = network

    def remove_peer(self, peer_id: PeerId, now: float) -> None:
        """Note that a peer has left: what it earned is forgotten, its faults are not for a while.

        Or else a peer could wipe them out by coming back.
        """
        if (peer := self._peers.get(peer_id)) is None:
            return
        peer.sum = None
        for topic, counters in peer.topics.items():
            counters.first_deliveries = 0.0
            counters.leave_mesh(self.params(topic))
        if peer.is_clean:
            self._forget(peer_id)
            return
        self._left[peer_id] = now + self._settings.retain_score
        if len(self._left) > self._settings.max_retained_scores:
            self._forget(next(iter(self._left)))

    def graft(self, peer_id: PeerId, topic: str, now: float) -> None:
        """Note that a peer has come into our mesh."""
        if (counters := self._counters(peer_id, topic)) is not None:
            counters.grafted_at = now
            counters.time_in_mesh = 0.0
            counters.mesh_deliveries_active = False

    def prune(self, peer_id: PeerId, topic: str) -> None:
        """Note that a peer has left our mesh."""
        if (counters := self._counters(peer_id, topic)) is not None:
            counters.leave_mesh(self.params(topic))

    def credit_first(self, peer_id: PeerId, topic: str) -> None:
        """Note that a peer was the first to bring a valid message."""
        if (counters := self._counters(peer_id, topic)) is not None:
            cap = self.params(topic).first_message_deliveries_cap
            counters.first_deliveries = min(counters.first_deliveries + 1, cap)
            self.credit_mesh(peer_id, topic)

    def credit_mesh(self, peer_id: PeerId, topic: str) -> None:
        """Note that a peer of our mesh brought a valid message, first or nearly so."""
        counters = self._counters(peer_id, topic)
        if counters is not None and counters.grafted_at is not None:
            cap = self.params(topic).mesh_message_deliveries_cap
            counters.mesh_deliveries = min(counters.mesh_deliveries + 1, cap)

    def blame_invalid(self, peer_id: PeerId, topic: str) -> None:
        """Note that a peer brought an invalid message."""
        if (counters := self._counters(peer_id, topic)) is not None:
            counters.invalid_deliveries += 1

    def blame(self, peer_id: PeerId, times: int = 1) -> None:
        """Note that a peer broke the rules of the protocol."""
        if (peer := self._peers.get(peer_id)) is not None:
            peer.behaviour += times

    # --- what they are worth --------------------------------------------------------------------

    def score(self, peer_id: PeerId) -> float:
        """Return a peer's score; 0 of one that is unknown."""
        if (peer := self._peers.get(peer_id)) is None:
            return 0.0
        settings = self._settings
        if peer.sum is None:
            peer.sum = sum(each.score(self.params(topic)) for topic, each in peer.topics.items())
        total = peer.sum
        if settings.topic_score_cap > 0:
            total = min(total, settings.topic_score_cap)
        if self._app_score is not None:
            total += settings.app_specific_weight * self._app_score(peer_id)
        if peer.network is not None:
            surplus = self._networks[peer.network] - settings.ip_colocation_factor_threshold
            if surplus > 0:
                total += settings.ip_colocation_factor_weight * surplus**2
        excess = peer.behaviour - settings.behaviour_penalty_threshold
        if excess > 0:
            total += settings.behaviour_penalty_weight * excess**2
        return total

    def decay(self, now: float) -> None:
        """Let all counters decay when it is time, and forget those who left long ago."""
        if now < self._next_decay:
            return
        self._next_decay = now + self._settings.decay_interval
        zero = self._settings.decay_to_zero
        while self._left and self._left[oldest := next(iter(self._left))] <= now:
            self._forget(oldest)
        for peer_id, peer in self._peers.items():
            if peer_id in self._left:
                continue  # a score does not mend while its peer stays away
            peer.sum = None
            for topic, counters in peer.topics.items():
                counters.decay(self.params(topic), now, zero)
            peer.behaviour *= self._settings.behaviour_penalty_decay
            if peer.behaviour < zero:
                peer.behaviour = 0.0

    def _counters(self, peer_id: PeerId, topic: str) -> _TopicCounters | None:
        if (peer := self._peers.get(peer_id)) is None:
            return None
        peer.sum = None
        return peer.topics.setdefault(topic, _TopicCounters())

    def _forget(self, peer_id: PeerId) -> None:
        self._left.pop(peer_id, None)
        self._count_network(self._peers.pop(peer_id).network, -1)

    def _count_network(self, network: str | None, change: int) -> None:
        if network is not None:
            self._networks[network] = self._networks.get(network, 0) + change
            if not self._networks[network]:
                del self._networks[network]
