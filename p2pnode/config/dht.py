"""Limits and intervals of the DHT."""

from dataclasses import dataclass

from p2pnode.config.units import KIB, MIB
from p2pnode.errors import ConfigError


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
