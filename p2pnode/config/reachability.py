"""How a node finds out whether others can dial it, and finds it out for others."""

from dataclasses import dataclass
from typing import Final

from p2pnode.config.units import KIB
from p2pnode.errors import ConfigError

_MODES: Final = ("auto", "public", "private")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachabilitySettings:
    """How a node finds out whether others can dial it, and finds it out for others (AutoNAT)."""

    mode: str = "auto"  # or public, private: then nobody is asked
    public_only: bool = True  # leave private addresses alone; false suits networks without internet

    # Asking others.
    confidence: int = 3  # so many more networks must say one thing than the other
    window: int = 9  # networks whose last words count
    verdict_ttl: float = 3 * 3600.0  # of one network's word, as in go-libp2p
    settle_delay: float = 0.5  # after our addresses have changed, before they are probed
    probes_at_once: int = 3
    request_timeout: float = 30.0  # one probe, with the data that a server may ask for
    server_interval: float = 60.0  # between two probes by one server
    retry_interval: float = 30.0  # between rounds that settle nothing, doubled up to:
    refresh_interval: float = 900.0  # between probes of what is settled
    shun_time: float = 120.0  # of a server that did not help, doubled at each further time
    max_shun_time: float = 3600.0
    max_servers: int = 32  # known ones; of a network that sends many, fewer
    max_addresses: int = 16  # of our own that are probed
    max_dial_data: int = 100_000  # bytes we send for one probe; the specification's upper bound
    evidence_kept: int = 32  # probes and what came of them, for `node status` and the doctor

    # Serving others.
    serve: bool = True
    dial_timeout: float = 3.0  # one address: connecting and handshakes; a SYN is sent twice
    dial_back_timeout: float = 5.0  # for handing the nonce over, once connected
    read_timeout: float = 15.0  # for a request, and for its data
    max_message_bytes: int = 8 * KIB
    max_requested_addresses: int = 32  # looked at in one request
    max_dials_per_request: int = 4  # of version 1, which asks for all addresses
    max_requests: int = 32  # served at once
    requests_per_minute: float = 60.0  # all peers together, as in go-libp2p
    request_burst: int = 30
    requests_per_minute_per_network: float = 12.0  # a network is an IPv4 /24 or an IPv6 /48
    request_burst_per_network: int = 12
    requests_per_minute_per_peer: float = 3.0
    request_burst_per_peer: int = 6
    dial_data_bytes: int = 30_000  # least that a dial to another IP address costs the requester
    dial_data_wait: float = 3.0  # up to so long before such a dial, so that many do not coincide

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: `mode` is unknown, or settings contradict each other.
        """
        if self.mode not in _MODES:
            raise ConfigError(
                f"reachability.mode must be one of {', '.join(_MODES)}, not {self.mode!r}"
            )
        rules = {
            "confidence must not exceed window": self.confidence <= self.window,
            "retry_interval must not exceed refresh_interval": (
                self.retry_interval <= self.refresh_interval
            ),
            "shun_time must not exceed max_shun_time": self.shun_time <= self.max_shun_time,
            "dial_data_bytes must be from 30000 to 100000": (
                30_000 <= self.dial_data_bytes <= 100_000  # libp2p/specs, autonat v2
            ),
            "verdict_ttl must be above refresh_interval": (
                self.refresh_interval < self.verdict_ttl
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"reachability.{rule}")
