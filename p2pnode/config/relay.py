"""Relays: the reservations a node holds at others, and what it carries for others."""

from dataclasses import dataclass
from typing import Final

from p2pnode.config.units import KIB
from p2pnode.errors import ConfigError

_MODES: Final = ("auto", "always", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """Circuit relays; times are in seconds."""

    # Being reached through relays.
    client: str = "auto"  # auto: while others cannot dial this node; always, or never
    relays: tuple[str, ...] = ()  # asked before those that the node meets; /p2p/<id> at their end
    reservations: int = 2  # held at so many relays at once
    reserve_timeout: float = 15.0  # for reaching a relay and its answer
    min_lifetime: float = 60.0  # a reservation that ends sooner is not worth having
    max_lifetime: float = 24 * 3600.0  # it is renewed as if it ended then, at the latest
    retry_pause: float = 2.0  # before a relay that failed is asked again, doubled each time
    retry_pause_max: float = 600.0
    max_candidates: int = 256  # relays that are remembered
    max_addresses_per_relay: int = 4  # told to others
    max_pending_circuits: int = 64  # inbound ones that wait for their handshakes
    connect_timeout: float = 10.0  # for reaching a peer through a relay

    # Relaying for others.
    server: str = "auto"  # auto: while others can dial this node; always, or never
    max_reservations: int = 128
    max_reservations_per_address: int = 8  # of one household; [limits] says how large it is
    max_reservations_per_network: int = 32
    reservation_lifetime: float = 3600.0
    max_circuits: int = 256
    max_circuits_per_peer: int = 64  # a peer at either end
    circuit_bytes: int = 128 * KIB  # of one circuit, each way; 0: without limit
    circuit_seconds: float = 120.0  # that one circuit lives; 0: without limit
    circuit_idle_timeout: float = 120.0  # a circuit on which nothing moves is ended
    max_rate: int = 0  # bytes a second, of all circuits together; 0: without limit
    request_timeout: float = 10.0  # for a peer to say what it wants
    answer_timeout: float = 10.0  # for the other end of a circuit to take it
    requests_per_second: float = 2.0  # of one peer, after a burst:
    request_burst: int = 64  # a trainer that reaches all of its hosts through one relay

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a mode is unknown, or settings contradict each other.
        """
        for name, value in (("client", self.client), ("server", self.server)):
            if value not in _MODES:
                raise ConfigError(f"relay.{name} must be one of {', '.join(_MODES)}, not {value!r}")
        if self.retry_pause > self.retry_pause_max:
            raise ConfigError("relay.retry_pause must not exceed relay.retry_pause_max")
        if self.min_lifetime > self.max_lifetime:
            raise ConfigError("relay.min_lifetime must not exceed relay.max_lifetime")

    @property
    def is_limited(self) -> bool:
        """Whether the circuits that this node gives are too small for the main job."""
        return bool(self.circuit_bytes or self.circuit_seconds)
