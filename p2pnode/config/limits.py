"""Budgets: how much of a node its peers may use."""

import ipaddress
from dataclasses import dataclass

from p2pnode.config.units import MIB
from p2pnode.errors import ConfigError


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
    max_upload: int = 0  # bytes a second that all streams together send; 0: without limit
    max_download: int = 0  # bytes a second that they take

    # Trimming keeps the node well below the hard limit: above the high mark it closes connections
    # down to the low one, sparing those that are new, protected or busy with a call. A high mark
    # above max_connections is never reached: then newcomers are refused instead.
    high_water: int = 768
    low_water: int = 640
    trim_grace: float = 10.0  # a connection that is younger, or was used within it, is spared
    trim_silence: float = 10.0  # between two trims
    # An open stream of a protocol that begins so is no call: its connection may well be trimmed.
    background_protocols: tuple[str, ...] = (
        "/meshsub/",
        "/floodsub/",
        "/ipfs/",
        "/p2pnode/kad/",
        "/p2pnode/clock/",
    )

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
