"""Parameters of gossipsub."""

import dataclasses
import ipaddress
from dataclasses import dataclass

from p2pnode.config.units import KIB, MIB
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubSettings:
    """Gossipsub: names are those of the specification (1.1, 1.2), and so are most values.

    Scores: the weights are those of a network of volunteers that has run for years (Filecoin's),
    where honest peers earn tens of points and a rule broken on purpose costs hundreds. What a
    topic's traffic must be like (P3) no default can know, so it is off until a topic says so.
    """

    # The mesh.
    d: int = 6
    d_low: int = 4
    d_high: int = 12
    d_score: int = 4  # kept by score when an overfull mesh is pruned, the others by chance
    d_out: int = 2  # of a mesh, to peers that we chose to dial
    d_lazy: int = 6  # peers told of messages by gossip, at least
    gossip_factor: float = 0.25  # of the peers outside the mesh that are told
    heartbeat_interval: float = 1.0
    fanout_ttl: float = 60.0
    prune_backoff: float = 60.0
    unsubscribe_backoff: float = 10.0
    max_prune_backoff: float = 3600.0  # a longer one that a peer asks for is cut to this
    graft_flood_threshold: float = 10.0  # a GRAFT so soon after a PRUNE is penalised twice
    opportunistic_graft_ticks: int = 60
    opportunistic_graft_peers: int = 2
    flood_publish: bool = True
    strict_sign: bool = True  # false is StrictNoSign: messages without author and signature
    emit_self: bool = False  # whether our own subscriptions get what we publish
    direct_peers: tuple[str, ...] = ()  # addresses with /p2p/; always connected and always sent to
    direct_connect_interval: float = 300.0
    do_px: bool = False  # name peers to those we prune; meant for bootstrap nodes
    prune_peers: int = 16  # named in one PRUNE, and taken from one
    max_px_dials: int = 8  # under way

    # What is kept.
    mcache_len: int = 5  # heartbeats for which full messages are kept
    mcache_gossip: int = 3  # of them, those gossiped about
    max_mcache_bytes: int = 64 * MIB
    seen_ttl: float = 120.0
    max_seen: int = 131_072  # a thousand messages a second for two minutes, 20 MB
    max_backoffs: int = 65_536

    # Gossip.
    gossip_retransmission: int = 3  # times that one peer is sent one message on request
    max_ihave_length: int = 5000  # ids asked of one peer, and told to one, in a heartbeat
    max_ihave_messages: int = 10  # IHAVEs heeded of one peer in a heartbeat
    iwant_followup_time: float = 3.0
    idontwant_threshold: int = 1024  # bytes from which a message is worth telling of
    max_idontwant_messages: int = 1000  # ids heeded of one peer in a heartbeat
    idontwant_ttl: int = 3  # heartbeats

    # Messages, subscriptions and queues.
    max_rpc_bytes: int = 1 * MIB  # as go-libp2p has it
    rpc_bytes: int = 64 * KIB  # gathered for one RPC of ours, unless one message is larger
    max_message_bytes: int = 960 * KIB  # the data of one message; the rest is its envelope
    max_partial_bytes: int = 64 * MIB  # of RPCs half received, from all peers together
    receive_timeout: float = 60.0  # from an RPC's first byte to its last
    max_topic_bytes: int = 320  # a layer's topic holds its uid
    max_topics: int = 1024  # that this node subscribes to
    max_topics_per_peer: int = 1024
    max_messages_per_rpc: int = 5000
    # More than this of one peer is read no faster: each costs a signature check, 0.1 ms.
    messages_per_second_per_peer: float = 100.0
    message_burst_per_peer: int = 100
    max_controls_per_rpc: int = 2048  # subscriptions, GRAFTs, PRUNEs and the like, all told
    max_queue_bytes: int = 4 * MIB  # waiting for one peer
    max_queue_messages: int = 2048
    send_timeout: float = 30.0  # a peer that takes no byte for so long is left
    open_timeout: float = 10.0
    retry_interval: float = 5.0  # between tries to open a stream to a peer that is connected
    identify_patience: float = 5.0  # then a peer that has told no protocols is tried anyway
    subscription_queue: int = 1024  # messages that wait for one slow reader
    subscription_queue_bytes: int = 64 * MIB  # of their data
    max_validations: int = 256  # that take time, under way
    max_validations_per_topic: int = 64
    validation_timeout: float = 5.0

    # Thresholds of the score.
    gossip_threshold: float = -500.0
    publish_threshold: float = -1000.0
    graylist_threshold: float = -2500.0
    accept_px_threshold: float = 1000.0  # reached only by peers the application vouches for
    opportunistic_graft_threshold: float = 3.5
    decay_interval: float = 1.0
    decay_to_zero: float = 0.01
    retain_score: float = 6 * 3600.0
    max_retained_scores: int = 16_384

    # The score of a peer.
    topic_score_cap: float = 100.0  # so that many topics do not outweigh an offence; 0 is none
    app_specific_weight: float = 1.0
    ip_colocation_factor_weight: float = -100.0
    ip_colocation_factor_threshold: int = 5
    ip_colocation_factor_whitelist: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    ip_colocation_ip4_prefix: int = 32
    ip_colocation_ip6_prefix: int = 64  # what one household has
    behaviour_penalty_weight: float = -10.0
    behaviour_penalty_threshold: float = 6.0
    behaviour_penalty_decay: float = 0.9987  # to 1 % in an hour

    # The score of a peer in one topic, where the topic does not say otherwise.
    topic_weight: float = 1.0
    time_in_mesh_weight: float = 0.0027  # about 10 after an hour
    time_in_mesh_quantum: float = 1.0
    time_in_mesh_cap: float = 3600.0
    first_message_deliveries_weight: float = 1.0
    first_message_deliveries_decay: float = 0.9924  # to 1 % in ten minutes
    first_message_deliveries_cap: float = 50.0
    mesh_message_deliveries_weight: float = 0.0
    mesh_message_deliveries_decay: float = 0.9772  # to 1 % in 200 seconds
    mesh_message_deliveries_cap: float = 100.0
    mesh_message_deliveries_threshold: float = 20.0
    mesh_message_deliveries_window: float = 0.01
    mesh_message_deliveries_activation: float = 60.0
    mesh_failure_penalty_weight: float = 0.0
    mesh_failure_penalty_decay: float = 0.9924
    invalid_message_deliveries_weight: float = -1000.0
    invalid_message_deliveries_decay: float = 0.9987

    def __post_init__(self) -> None:
        """Check what a single value does not show, by the rules of the specification.

        Raises:
            ConfigError: degrees, thresholds, decays or sizes do not fit together.
        """
        sizes = self.rpc_bytes, self.max_rpc_bytes, self.max_queue_bytes
        thresholds = self.graylist_threshold, self.publish_threshold, self.gossip_threshold, 0
        decays = (each.name for each in dataclasses.fields(self) if each.name.endswith("_decay"))
        rules = {
            "d_low, d and d_high must not fall": self.d_low <= self.d <= self.d_high,
            "d_out must be below d_low and at most half of d": (
                self.d_out < self.d_low and 2 * self.d_out <= self.d
            ),
            "d_score must not exceed d": self.d_score <= self.d,
            "mcache_gossip must not exceed mcache_len": self.mcache_gossip <= self.mcache_len,
            "graylist_threshold, publish_threshold and gossip_threshold must not fall": (
                list(thresholds) == sorted(thresholds)
            ),
            "rpc_bytes, max_rpc_bytes and max_queue_bytes must not fall": (
                list(sizes) == sorted(sizes)
            ),
            "max_partial_bytes must be at least max_rpc_bytes": (
                self.max_partial_bytes >= self.max_rpc_bytes
            ),
            "max_queue_messages must be at least twice max_topics": (
                self.max_queue_messages >= 2 * self.max_topics
            ),
            "subscription_queue_bytes must be at least max_message_bytes": (
                self.subscription_queue_bytes >= self.max_message_bytes
            ),
            "max_message_bytes must be 4 KiB below max_rpc_bytes": (
                self.max_message_bytes + 4 * KIB <= self.max_rpc_bytes
            ),
            "ip_colocation_ip4_prefix must not exceed 32": self.ip_colocation_ip4_prefix <= 32,
            "ip_colocation_ip6_prefix must not exceed 128": self.ip_colocation_ip6_prefix <= 128,
        } | {f"{name} must be between 0 and 1": 0 < getattr(self, name) < 1 for name in decays}
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"pubsub.{rule}")
        for subnet in self.ip_colocation_factor_whitelist:
            try:
                ipaddress.ip_network(subnet)
            except ValueError as error:
                raise ConfigError(
                    f"pubsub.ip_colocation_factor_whitelist holds no subnet: {error}"
                ) from error
