"""Every setting and limit of a node, in one page: named, bounded, validated once.

Values come, in rising order of precedence, from the defaults below, a TOML file, environment
variables (`P2PNODE_<SECTION>_<FIELD>`) and command-line flags. A section below is a table of the
file. Sizes are bytes and durations seconds, unless a name says otherwise.
"""

import dataclasses
import difflib
import ipaddress
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from p2pnode.errors import ConfigError

_Texts = Mapping[str, Mapping[str, str]]

KIB = 1024
MIB = 1024 * KIB

# All other numbers are limits and times, of which 0 would stop the node or let it spin.
_MAY_BE_ZERO = frozenset(
    {
        "dht.lookup_reuse",
        "hosting.batch_window",
        "hosting.checkpoint_interval",
        "hosting.clip_grad_norm",
        "hosting.learning_rate",
        "hosting.seed",
        "hosting.threads",
        "network.dial_stagger",
        "network.identify_push_delay",
        "limits.trim_grace",
        "limits.trim_silence",
        "node.shutdown_grace",
        "pubsub.accept_px_threshold",
        "pubsub.app_specific_weight",
        "pubsub.behaviour_penalty_threshold",
        "pubsub.behaviour_penalty_weight",
        "pubsub.d_out",
        "pubsub.d_score",
        "pubsub.first_message_deliveries_weight",
        "pubsub.gossip_factor",
        "pubsub.gossip_threshold",
        "pubsub.idontwant_threshold",
        "pubsub.invalid_message_deliveries_weight",
        "pubsub.ip_colocation_factor_weight",
        "pubsub.mesh_failure_penalty_weight",
        "pubsub.mesh_message_deliveries_weight",
        "pubsub.opportunistic_graft_threshold",
        "pubsub.time_in_mesh_weight",
        "pubsub.topic_score_cap",
        "pubsub.topic_weight",
        "trainer.straggles_tolerated",
        "trainer.timeout_after_k_min",
    }
)

# Numbers below which nothing works. A stream begins with a window of 256 KiB, in every Yamux.
_LEAST = dict.fromkeys(
    (
        "limits.max_bytes",
        "limits.max_bytes_per_address",
        "limits.max_bytes_per_connection",
        "limits.max_bytes_per_network",
        "limits.max_bytes_per_peer",
        "network.yamux_max_window",
    ),
    256 * KIB,
) | dict.fromkeys(
    (
        "network.identify_max_message",
        "network.websocket_max_message",
        "network.websocket_receive_buffer",
        "network.yamux_max_frame",
        "network.yamux_send_buffer",
        "network.yamux_write_budget",
        "node.control_request_limit",
    ),
    KIB,
)

# Penalties, and the scores from which peers are shunned.
_MUST_NOT_BE_POSITIVE = frozenset(
    {
        "pubsub.behaviour_penalty_weight",
        "pubsub.gossip_threshold",
        "pubsub.graylist_threshold",
        "pubsub.invalid_message_deliveries_weight",
        "pubsub.ip_colocation_factor_weight",
        "pubsub.mesh_failure_penalty_weight",
        "pubsub.mesh_message_deliveries_weight",
        "pubsub.publish_threshold",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Who this node is, where it listens, and what it joins."""

    data_dir: str = ""  # where its state is kept; by default p2pnode in the user's data directory
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: tuple[str, ...] = ()  # told to others instead of the listen addresses
    bootstrap: tuple[str, ...] = ()
    run: str = ""
    invite: str = ""
    experts: tuple[str, ...] = ()
    shutdown_grace: float = 10.0  # how long SIGTERM lets running calls finish
    bootstrap_timeout: float = 15.0
    control_request_limit: int = 64 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Times and sizes of connections and streams."""

    dial_timeout: float = 10.0
    dial_attempt_timeout: float = 5.0  # one address; a silent one gives way to the next
    dial_attempts_at_once: int = 4  # addresses of one peer tried in parallel
    dial_stagger: float = 0.25  # head start of each address over the next, as RFC 8305 has it
    max_dials: int = 128  # peers dialled at once, node-wide
    dial_backoff: float = 1.0  # pause after an address failed, doubled at each further failure
    dial_backoff_max: float = 60.0
    dial_backoff_addresses: int = 8192  # that failed and are remembered
    simultaneous_open_wait: float = 2.0  # for a peer that dialled just as we did to dial again
    listen_backlog: int = 1024  # connections the system holds until this node takes them
    reuse_port: bool = True  # dial from the port listened on, so that others learn where we are
    websocket_upgrade_timeout: float = 5.0  # TLS and HTTP together
    max_websocket_upgrades: int = 64  # inbound ones under way, at each listener
    websocket_max_message: int = 256 * KIB  # sent in one piece
    websocket_receive_buffer: int = 64 * KIB  # taken from the network at once
    websocket_max_empty_frames: int = 100  # pings and the like in a row, without data between
    tls_certificate: str = ""  # a PEM file: the chain to listen on /wss with
    tls_key: str = ""  # a PEM file: the key of that certificate
    tls_authorities: str = ""  # a PEM file: trusted on dialling /wss, besides the system's
    dns_servers: tuple[str, ...] = ()  # asked instead of the system's, as 192.0.2.1 or [::1]:53
    dns_timeout: float = 4.0  # for one address, with all the names behind it
    dns_lookups_at_once: int = 16  # node-wide
    dns_max_addresses: int = 64  # taken from the names in one address
    dnsaddr_max_depth: int = 4  # lists within lists, as in go-libp2p
    dnsaddr_max_names: int = 16  # asked for on behalf of one address
    handshake_timeout: float = 10.0
    negotiation_timeout: float = 10.0
    yamux_max_window: int = 16 * MIB
    yamux_session_window: int = 64 * MIB  # by which all windows of a connection may grow
    yamux_max_frame: int = 4 * 65_519  # whole Noise frames; all implementations take up to 1 MiB
    yamux_write_budget: int = 384 * KIB  # of frames gathered for one write, and one frame more
    yamux_write_timeout: float = 60.0  # for one write; who reads more slowly is let go
    yamux_send_buffer: int = 512 * KIB  # a stream's sender may be so far ahead of the writer
    stream_close_timeout: float = 60.0  # for the peer to finish a stream that we have closed
    yamux_accept_backlog: int = 256  # unanswered inbound streams, as go-libp2p enforces
    keepalive_interval: float = 30.0
    keepalive_timeout: float = 10.0
    idle_timeout: float = 300.0  # a connection without streams is closed after this, as is a ping
    duplicate_linger: float = 5.0  # an idle second connection to a peer is closed after this
    close_timeout: float = 2.0  # for saying goodbye before a connection is cut
    identify_timeout: float = 10.0
    identify_max_message: int = 8 * KIB
    identify_max_messages: int = 10  # go-libp2p splits what exceeds 2 KiB over several
    identify_push_burst: int = 16  # taken from one peer, and so many a second thereafter:
    identify_pushes_per_second: float = 1.0
    identify_push_delay: float = 0.1  # changes within it are told together
    observed_votes: int = 4  # observers that must agree where we are, as in go-libp2p
    observed_max_per_family: int = 3  # addresses believed for each of TCP, UDP over IPv4, IPv6
    observed_address_ttl: float = 1800.0  # of a vote, from the end of its connection
    observed_max_votes: int = 1024
    observed_max_votes_per_group: int = 8  # a group is an IPv4 address, or an IPv6 /56
    misbehaviour_burst: int = 16  # broken rules of streams that a connection survives, and
    misbehaviours_per_second: float = 0.1  # so many thereafter
    ping_timeout: float = 10.0
    max_peerstore_peers: int = 10_000
    max_addresses_per_peer: int = 32
    max_peerstore_bytes: int = 32 * MIB
    connected_address_ttl: float = 24 * 3600.0  # of one that worked, from the connection's end
    certified_address_ttl: float = 3600.0  # of those in a peer's own signed record
    identified_address_ttl: float = 1800.0  # of those a peer says it has, unsigned
    peerstore_save_interval: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Budgets: how much of this node all peers together, a subnet, a peer or a protocol may use.

    Made for an ordinary volunteer: a machine of 16 GB with a thousand connections. *Bytes* are the
    receive windows of streams, which is what peers may send us before we have read any of it; a
    stream begins with 256 KiB. docs/decisions/0005-budgets.md says why it is cut this way.
    """

    # The node. An eighth of 16 GB for windows is 8,192 streams that have not grown: each of a
    # thousand connections may have eight. Neither direction can shut the other one out.
    max_connections: int = 1024
    max_inbound_connections: int = 896
    max_outbound_connections: int = 896
    max_handshakes: int = 64  # inbound, under way; a few round trips each, so 64 are many a second
    max_inbound_streams: int = 4096
    max_outbound_streams: int = 4096
    max_bytes: int = 2048 * MIB

    # Trimming keeps the node well below the hard limit: above the high mark it closes connections
    # down to the low one, sparing those that are new, protected or busy with a call. A high mark
    # above max_connections is never reached: then newcomers are refused instead.
    high_water: int = 768
    low_water: int = 640
    trim_grace: float = 10.0  # a connection that is younger, or was used within it, is spared
    trim_silence: float = 10.0  # between two trims
    # An open stream of a protocol that begins so is no call: its connection may well be trimmed.
    background_protocols: tuple[str, ...] = ("/meshsub/", "/floodsub/", "/ipfs/", "/p2pnode/kad/")

    # Subnets, which are dearer to an attacker than peer ids. An *address* is what one household
    # or machine has, a *network* what one organisation has: 128 lets a computer room of 64 behind
    # one NAT in, and in again after a power cut, before its lost connections have been noticed. It
    # is an eighth of the node; a network gets a quarter, an address half of that in bytes.
    ip4_address_prefix: int = 32
    ip4_network_prefix: int = 24
    ip6_address_prefix: int = 64
    ip6_network_prefix: int = 48
    exempt_subnets: tuple[str, ...] = ("127.0.0.0/8", "::1/128")  # no limits below apply there
    max_inbound_connections_per_address: int = 128
    max_inbound_connections_per_network: int = 256
    max_bytes_per_address: int = 512 * MIB
    max_bytes_per_network: int = 1024 * MIB
    # New inbound ones. A handshake is 2 ms of work, so an address may cause a sixtieth of it; the
    # computer room is back within four seconds.
    connections_per_second_per_address: float = 8.0
    connection_burst_per_address: int = 32
    connections_per_second_per_network: float = 32.0
    connection_burst_per_network: int = 128
    max_rates_kept: int = 8192  # subnets and peers whose recent haste is remembered; 1 MB

    # Peers. A trainer that keeps 64 calls going has 64 streams, and windows that grow to about
    # what its link holds: 16 MiB each at most, 64 MiB together on one connection.
    max_connections_per_peer: int = 8  # both sides dialled, twice, and lost ones not yet noticed
    max_inbound_streams_per_peer: int = 1024
    max_outbound_streams_per_peer: int = 1024
    max_bytes_per_peer: int = 256 * MIB  # an eighth of the node
    streams_per_second_per_peer: float = 2000.0  # inbound ones; what one processor core can serve
    stream_burst_per_peer: int = 4000

    # A connection: three quarters of its peer's, so that another one to the same peer has room.
    max_streams_per_connection: int = 768
    max_bytes_per_connection: int = 192 * MIB

    # Protocols: none can use up the streams of the others, of the node or of one peer.
    max_inbound_streams_per_protocol: int = 2048
    max_outbound_streams_per_protocol: int = 2048
    max_inbound_streams_per_protocol_per_peer: int = 512
    max_outbound_streams_per_protocol_per_peer: int = 512

    refusal_interval: float = 10.0  # each limit's refusals are told in one event so often

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a mark, a prefix length or a subnet does not fit.
        """
        if self.low_water > self.high_water:
            raise ConfigError("limits.low_water must not exceed limits.high_water")
        for version, bits in ((4, 32), (6, 128)):
            address = getattr(self, f"ip{version}_address_prefix")
            network = getattr(self, f"ip{version}_network_prefix")
            if not 1 <= network <= address <= bits:
                raise ConfigError(
                    f"limits.ip{version}_network_prefix must be at least 1 and not exceed "
                    f"ip{version}_address_prefix, which must not exceed {bits}"
                )
        for each in self.exempt_subnets:
            try:
                ipaddress.ip_network(each)
            except ValueError as error:
                raise ConfigError(f"limits.exempt_subnets holds no subnet: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfSettings:
    """Throughput measurements by libp2p's perf protocol."""

    serve: bool = False  # eight bytes from anyone then cost this node gigabytes: for trusted nets
    max_bytes: int = 4096 * MIB  # one served run, each way
    max_runs_per_peer: int = 2  # served at once
    max_runs: int = 8  # served at once, of all peers together
    run_timeout: float = 120.0  # a whole run, served or our own


@dataclass(frozen=True, slots=True, kw_only=True)
class MdnsSettings:
    """Discovery of peers on the local network."""

    enabled: bool = False
    max_addresses: int = 16  # taken from one peer
    max_peers: int = 1024  # remembered, so that each is told of once
    max_waiting: int = 64  # announcements heard and not yet dealt with
    address_ttl: float = 600.0
    dials_at_once: int = 4
    dial_tries: int = 3  # of one peer for each time it is heard of
    dial_jitter: float = 0.5  # up to so long before a dial, doubled at each further try
    dial_pause: float = 0.2
    restart_delay: float = 1.0  # after the listen addresses have changed
    retry_interval: float = 60.0  # after the network failed
    close_timeout: float = 2.0  # for taking back what was announced


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtSettings:
    """Limits and intervals of the Kademlia DHT."""

    protocol: str = "/p2pnode/kad/1.0.0"
    server: bool = True
    bucket_size: int = 20  # k of the specification
    parallelism: int = 10  # alpha
    resiliency: int = 3  # beta: so many of the closest must answer before slow ones are left out
    quorum: int = 5  # holders of a value that one search merges at most
    patience: float = 1.5  # a query that takes longer frees its slot for another one
    query_timeout: float = 5.0  # one request to one peer
    lookup_timeout: float = 30.0
    lookup_reuse: float = 120.0  # how long the peers closest to a key are remembered
    refresh_interval: float = 600.0
    liveness_interval: float = 60.0  # a peer not heard of for so long is asked for a sign of life
    rejoin_interval: float = 5.0  # between tries of lost peers when none is left
    record_ttl: float = 48 * 3600.0
    provider_ttl: float = 48 * 3600.0
    address_ttl: float = 1800.0  # of addresses that other peers told
    max_records: int = 65_536
    max_record_bytes: int = 512 * KIB
    max_store_bytes: int = 256 * MIB
    max_provider_keys: int = 16_384
    max_providers_per_key: int = 256
    max_message_bytes: int = 1 * MIB
    max_streams_per_peer: int = 32
    max_requests_per_peer: int = 8  # of ours, to one peer at once
    stream_idle_timeout: float = 60.0
    ban_time: float = 5.0  # of a silent peer, doubled at each further silence
    max_ban_time: float = 600.0

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: `protocol` is none.
        """
        if not self.protocol.startswith("/") or not self.protocol.isprintable():
            raise ConfigError(
                f"dht.protocol must be a protocol such as /p2pnode/kad/1.0.0, not {self.protocol!r}"
            )


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
    max_topic_bytes: int = 256
    max_topics: int = 1024  # that this node subscribes to
    max_topics_per_peer: int = 1024
    max_messages_per_rpc: int = 5000
    max_controls_per_rpc: int = 2048  # subscriptions, GRAFTs, PRUNEs and the like, all told
    max_queue_bytes: int = 4 * MIB  # waiting for one peer
    max_queue_messages: int = 2048
    send_timeout: float = 30.0  # a peer that takes no byte for so long is left
    open_timeout: float = 10.0
    retry_interval: float = 5.0  # between tries to open a stream to a peer that is connected
    identify_patience: float = 5.0  # then a peer that has told no protocols is tried anyway
    subscription_queue: int = 1024  # messages that wait for one slow reader
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
    topic_score_cap: float = 0.0  # 0 is none
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
            "max_queue_messages must be at least twice max_topics": (
                self.max_queue_messages >= 2 * self.max_topics
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    """Limits of tensor calls."""

    max_header_bytes: int = 64 * KIB
    max_call_bytes: int = 256 * MIB  # tensors of one request
    max_bytes_in_flight: int = 1024 * MIB  # node-wide, requests and replies
    max_bytes_in_flight_per_peer: int = 512 * MIB
    max_calls_per_peer: int = 256
    max_deadline: float = 600.0
    default_timeout: float = 30.0
    header_timeout: float = 10.0  # from a stream's opening to its request's header
    payload_patience: float = 30.0  # for each 256 KiB of a request's tensors to arrive
    token_cache_size: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingSettings:
    """How experts are hosted."""

    layer: str = "ffn"
    hidden_dim: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    clip_grad_norm: float = 0.0  # 0 turns clipping off
    seed: int = 0
    device: str = "cpu"
    threads: int = 0  # torch's threads for one operation; 0 leaves torch's default
    max_batch_rows: int = 16_384
    batch_window: float = 0.0  # how long a batch waits for company when the device is idle
    max_queued_calls: int = 1024  # per expert
    replay_window_calls: int = 4096  # backward ids remembered per expert
    replay_window_bytes: int = 64 * MIB  # backward answers kept for replay, per daemon
    update_period: float = 5.0  # between announcements of the hosted experts
    checkpoint_interval: float = 60.0  # 0 saves at the end only
    checkpoints_kept: int = 2
    max_experts: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSettings:
    """How experts are looked up."""

    refresh_interval: float = 5.0  # a prefix in use is asked for again at least this often
    absent_time: float = 0.5  # of a prefix found empty, doubled each further time
    max_absent_time: float = 10.0
    ban_time: float = 2.0  # of a host whose calls fail, doubled at each further failure
    max_ban_time: float = 60.0
    max_cached_prefixes: int = 16_384
    lookups_at_once: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How a trainer calls experts, where a layer does not say otherwise."""

    forward_timeout: float = 30.0
    backward_timeout: float = 30.0
    timeout_after_k_min: float = 1.0  # for stragglers, once k_min experts have answered
    straggles_tolerated: int = 1  # in a row; a host that is cut off more often counts as failed
    latency_smoothing: float = 0.2  # weight of the newest call in a host's average latency
    calls_at_once_per_host: int = 64  # below what a host takes from one peer (rpc section)
    max_cached_infos: int = 16_384  # descriptions of experts, by expert and host

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a weight is no weight.
        """
        if self.latency_smoothing > 1:
            raise ConfigError("trainer.latency_smoothing must not exceed 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a node."""

    node: NodeSettings = field(default_factory=NodeSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    perf: PerfSettings = field(default_factory=PerfSettings)
    mdns: MdnsSettings = field(default_factory=MdnsSettings)
    dht: DhtSettings = field(default_factory=DhtSettings)
    pubsub: PubSubSettings = field(default_factory=PubSubSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    hosting: HostingSettings = field(default_factory=HostingSettings)
    swarm: SwarmSettings = field(default_factory=SwarmSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    @classmethod
    def load(
        cls,
        *,
        file: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        texts: Mapping[str, Mapping[str, str]] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Read the settings from all their sources.

        Args:
            file: a TOML file, or None.
            environ: where `P2PNODE_<SECTION>_<FIELD>` is looked up.
            texts: values by section and field, written as text, as command-line flags give them.
            overrides: values by section and field, of the field's own type.

        Raises:
            ConfigError: a file cannot be read, a name is unknown, or a value does not fit.
        """
        sections = {each.name: each.type for each in dataclasses.fields(cls)}
        layers = [
            _read_file(file) if file else {},
            _from_texts(sections, _from_environ(sections, environ)),
            _from_texts(sections, texts or {}),
            overrides or {},
        ]
        values: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for layer in layers:
            for section, table in layer.items():
                _check_known(section, sections, "section")
                if not isinstance(table, Mapping):
                    raise ConfigError(f"[{section}] must be a table of settings")
                values[section] |= table
        return cls(**{name: _build(kind, name, values[name]) for name, kind in sections.items()})

    def replace(self, **sections: Mapping[str, Any]) -> Self:
        """Return a copy in which some fields of some sections differ."""
        changed = {
            name: dataclasses.replace(getattr(self, name), **table)
            for name, table in sections.items()
        }
        return dataclasses.replace(self, **changed)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not valid TOML: {error}") from error


def _from_environ(sections: Mapping[str, Any], environ: Mapping[str, str]) -> _Texts:
    found: dict[str, dict[str, str]] = {}
    for section, kind in sections.items():
        for each in dataclasses.fields(kind):
            text = environ.get(f"P2PNODE_{section}_{each.name}".upper())
            if text is not None:
                found.setdefault(section, {})[each.name] = text
    return found


def _from_texts(sections: Mapping[str, Any], texts: _Texts) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {}
    for section, table in texts.items():
        _check_known(section, sections, "section")
        kinds = {each.name: each.type for each in dataclasses.fields(sections[section])}
        values[section] = {
            name: _from_text(text, kinds.get(name, str)) for name, text in table.items()
        }
    return values


def _from_text(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool and text.lower() in {"1", "true", "yes", "0", "false", "no"}:
        return text.lower() in {"1", "true", "yes"}
    for number in (int, float):
        if kind is number:
            try:
                return number(text)
            except ValueError:
                return text  # refused by name where the section is built
    return text


def _check_known(name: str, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r} in the configuration{hint}")


def _build(kind: Any, section: str, values: Mapping[str, Any]) -> Any:
    fields = {each.name: each.type for each in dataclasses.fields(kind)}
    checked = {}
    for name, value in values.items():
        _check_known(name, fields, f"setting of [{section}]")
        checked[name] = _check(f"{section}.{name}", value, fields[name])
    return kind(**checked)


def _check(name: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(each, str) for each in items):
            raise ConfigError(f"{name} must be a list of texts")
        return tuple(items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{name} must be {expected[kind]}, not {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(name, value)
    return value


def _check_number(name: str, value: float) -> None:
    if name in _MUST_NOT_BE_POSITIVE:
        if not float("-inf") < value <= 0:
            raise ConfigError(f"{name} must be a finite number that is not positive")
    elif not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a finite number that is not negative")
    if value == 0 and name not in _MAY_BE_ZERO:
        side = "less" if name in _MUST_NOT_BE_POSITIVE else "more"
        raise ConfigError(f"{name} must be {side} than 0")
    if value < _LEAST.get(name, value):
        raise ConfigError(f"{name} must be at least {_LEAST[name]}")
