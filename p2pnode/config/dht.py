"""Limits and intervals of the DHT."""

from dataclasses import dataclass
from typing import Final

from p2pnode.config.units import KIB, MIB
from p2pnode.errors import ConfigError

_MODES: Final = ("auto", "server", "client")
_MOST_NAMED: Final = 256  # peers read from one message


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtSettings:
    """Limits and intervals of the Kademlia DHT; times are in seconds."""

    protocol: str = "/p2pnode/kad/1.0.0"
    mode: str = "auto"  # server, client, or auto: a server unless it turns out to be unreachable

    # Look-ups.
    bucket_size: int = 20  # k of the specification
    parallelism: int = 10  # alpha
    resiliency: int = 3  # beta: so many of the closest must answer before slow ones are left out
    disjoint_paths: int = 3  # of one look-up; each liar can lead only one of them astray
    quorum: int = 5  # holders of a value that one search merges at most
    renewed_quorum: int = 10  # the same, of values that many keep adding to, such as the index
    patience: float = 1.5  # a query that takes longer frees its slot for another one
    query_timeout: float = 5.0  # one request to one peer
    lookup_timeout: float = 30.0
    lookup_reuse: float = 120.0  # how long the peers closest to a key are remembered
    absence_reuse: float = 3.0  # how long a key found to have no value is not searched for again
    keys_at_once: int = 16  # of one call that stores or finds many

    # The routing table.
    refresh_interval: float = 600.0
    liveness_interval: float = 600.0  # a peer not heard of for so long is asked for a sign of life
    connected_liveness_interval: float = 1800.0  # the same, while a connection to it stands
    rejoin_interval: float = 5.0  # between tries of lost peers when none is left
    save_interval: float = 300.0  # of the routing table, where it is kept
    max_peers_per_network: int = 25  # in the table; a network is an IPv4 /16 or an IPv6 /32
    max_peers_per_network_in_bucket: int = 5
    max_peers_per_network_in_lookup: int = 10  # of the closest, while others are to be had
    limit_private_networks: bool = False  # whether that holds for addresses of LANs, too

    # Values and providers.
    record_ttl: float = 48 * 3600.0
    provider_ttl: float = 48 * 3600.0
    republish_interval: float = 22 * 3600.0  # of what this node publishes
    replicate_interval: float = 3600.0  # of what it keeps for others and nobody stored again
    cache_ttl: float = 600.0  # of a value stored on the way to its holders
    handover_delay: float = 10.0  # newcomers are sent what they should keep after so long
    leave_timeout: float = 3.0  # for handing values over when leaving
    max_records: int = 65_536
    max_records_per_peer: int = 16_384  # that one peer may make this node keep
    max_record_bytes: int = 512 * KIB
    max_store_bytes: int = 256 * MIB
    max_store_bytes_per_peer: int = 64 * MIB
    max_provider_keys: int = 16_384
    max_provider_keys_per_peer: int = 4096
    max_providers_per_key: int = 256
    max_providers: int = 65_536  # of all keys
    max_published: int = 65_536  # values and keys that this node keeps publishing

    # Requests.
    max_message_bytes: int = 1 * MIB
    max_streams_per_peer: int = 32
    max_requests_per_peer: int = 8  # of ours, to one peer at once
    stream_idle_timeout: float = 120.0
    ban_time: float = 5.0  # of a silent peer, doubled at each further silence
    max_ban_time: float = 600.0

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: `protocol` is none, `mode` is unknown, or settings contradict each other.
        """
        if not self.protocol.startswith("/") or not self.protocol.isprintable():
            raise ConfigError(
                f"dht.protocol must be a protocol such as /p2pnode/kad/1.0.0, not {self.protocol!r}"
            )
        if self.mode not in _MODES:
            raise ConfigError(f"dht.mode must be one of {', '.join(_MODES)}, not {self.mode!r}")
        lives = min(self.record_ttl, self.provider_ttl)
        rules = {
            "bucket_size must not exceed 256": self.bucket_size <= _MOST_NAMED,
            "patience must not exceed query_timeout": self.patience <= self.query_timeout,
            "query_timeout must not exceed lookup_timeout": (
                self.query_timeout <= self.lookup_timeout
            ),
            "republish_interval must be below record_ttl and provider_ttl": (
                self.republish_interval < lives
            ),
            "max_record_bytes must be 4 KiB below max_message_bytes": (
                self.max_record_bytes + 4 * KIB <= self.max_message_bytes
            ),
            "ban_time must not exceed max_ban_time": self.ban_time <= self.max_ban_time,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"dht.{rule}")
