"""Hole punching: when it is tried, how often, and what it may cost."""

from dataclasses import dataclass

from p2pnode.config.units import KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DcutrSettings:
    """Turning relayed connections into direct ones (DCUtR)."""

    enabled: bool = True
    private_addresses: bool = False  # offer and dial them, too: for networks that are no internet
    direct_timeout: float = 2.0  # for dialling the peer's addresses before holes are punched,
    direct_least: float = 0.5  # or less, down to this, if the round trip over the relay is short
    exchange_timeout: float = 10.0  # for one exchange over the relay, as in go-libp2p
    attempt_timeout: float = 5.0  # for one attempt's dials and handshakes, as in go-libp2p
    attempt_pause: float = 0.2  # before an address that refused is dialled again in one attempt
    tcp_head_start: float = 0.5  # over UDP, where there are addresses of both: it carries more
    role_patience: float = 0.5  # for a peer to begin the handshake, before this side does
    retry_pause: float = 60.0  # after all attempts failed, doubled at each further failure
    retry_pause_max: float = 3600.0
    identify_timeout: float = 10.0  # for a relayed peer to say what it speaks
    max_message: int = 4 * KIB  # as the specification says
    max_addresses: int = 8  # offered, and dialled of those offered, in one attempt
    max_punches: int = 16  # under way at once
    tries_per_peer: int = 6  # attempts answered and upgrades tried, of each peer, and so many
    tries_per_second: float = 0.1  # thereafter: each makes this node dial as the peer says
    attempt_memory: float = 30.0  # for which an attempt counts as one of the same upgrade
    max_peers: int = 1024  # remembered, with their failures
