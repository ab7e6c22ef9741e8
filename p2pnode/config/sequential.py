"""How a trainer runs through a stack of blocks."""

from dataclasses import dataclass

from p2pnode.config.units import MIB
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialSettings:
    """Routes, replay and pipelining of a trainer's `RemoteSequential` modules."""

    micro_batches_at_once: int = 32  # of one pass, in flight through the stages
    # At most: as many are under way to a host as it takes to keep it busy over its round trip.
    micro_batches_at_one_host: int = 8
    kept_bytes: int = 512 * MIB  # per module, and per session: stages' inputs kept for replay
    session_positions: int = 256  # sent to a session at once; longer steps take several messages
    relay_penalty: float = 1.0  # seconds that using a relay must save on each hop to be worth it
    # The part of a route's expected cost that another one must save. Hosts of one block that are
    # trained apart differ more and more, so that a trainer changes between them only in need.
    training_reroute_gain: float = 0.75
    session_reroute_gain: float = 0.25
    hosts_considered: int = 64  # of one chain; in larger swarms, those that host most of it
    probe_timeout: float = 5.0  # for a host that was never called to show its round trip
    patience: float = 20.0  # how long a block that lost its last host is waited for
    retry_interval: float = 0.5  # between looks for its hosts meanwhile

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a part is more than the whole.
        """
        for name in ("training_reroute_gain", "session_reroute_gain"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"sequential.{name} must be below 1")
