"""Times and sizes of connections and streams, and of measuring them."""

from dataclasses import dataclass

from p2pnode.config.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Times and sizes of connections and streams."""

    dial_timeout: float = 10.0
    dial_attempt_timeout: float = 5.0  # one address; a silent one gives way to the next
    dial_attempts_at_once: int = 4  # addresses of one peer tried in parallel
    dial_stagger: float = 0.25  # head start of each address over the next, as RFC 8305 has it
    dial_relay_head_start: float = 0.5  # of the last direct address over relays, as in go-libp2p
    direct_wait: float = 5.0  # for a peer just called over a relay to get through to this node
    max_dials: int = 128  # peers dialled at once, node-wide
    dial_backoff: float = 1.0  # pause after an address failed, doubled at each further failure
    dial_backoff_max: float = 60.0
    dial_backoff_alone: float = 5.0  # instead, while no peer at all is connected
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
    tls_check_interval: float = 60.0  # between looks at these files, which may have been renewed
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
    quic: bool = True  # dial QUIC addresses, and listen where node.listen names them
    quic_max_datagram: int = 1232  # bytes; IPv6 carries so many everywhere (1280 less headers)
    quic_idle_timeout: float = 30.0  # of a silent peer, which is asked for a sign at half of it
    quic_base_window: int = MIB  # of a connection, beyond what its streams' windows come to
    quic_max_window: int = 16 * MIB
    quic_session_window: int = 64 * MIB  # by which all windows of a connection may grow
    quic_send_buffer: int = MIB  # of a stream, until the peer has confirmed it
    quic_max_streams: int = 256  # a peer may have open on one connection, as in go-libp2p
    quic_max_handshakes: int = 64  # inbound, under way at each socket, and not yet taken
    quic_retry_above: int = 16  # of them, new ones must first prove their address (RFC 9000, 8.1)
    quic_send_queue: int = 1024  # datagrams that wait for a socket; more are lost, as on a wire
    quic_socket_buffer: int = 2 * MIB  # asked of the system, each way
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
class PerfSettings:
    """Throughput measurements by libp2p's perf protocol."""

    serve: bool = False  # eight bytes from anyone then cost this node gigabytes: for trusted nets
    max_bytes: int = 4096 * MIB  # one served run, each way
    max_runs_per_peer: int = 2  # served at once
    max_runs: int = 8  # served at once, of all peers together
    run_timeout: float = 120.0  # a whole run, served or our own
