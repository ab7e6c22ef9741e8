"""Settings of asking the router to let others in."""

from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ConfigError

_MODES: Final = ("auto", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortmapSettings:
    """Port mapping by PCP, NAT-PMP or UPnP."""

    mode: str = "auto"  # ask the router when listening behind one; or "off"
    lease: float = 3600.0  # asked for; renewed when half of it is over, removed at exit
    request_timeout: float = 3.0  # for one answer of the router, repetitions included
    find_timeout: float = 4.0  # for finding out what the router speaks
    check_interval: float = 60.0  # between looks whether the router still has our mappings
    max_failed_checks: int = 3  # in a row; then the router is looked for anew
    retry_interval: float = 60.0  # after a refusal, doubled at each further one
    max_retry_interval: float = 1800.0
    max_ports: int = 8  # mapped at once
    close_timeout: float = 2.0  # for taking the mappings back at exit

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: `mode` is unknown, or settings contradict each other.
        """
        if self.mode not in _MODES:
            raise ConfigError(f"portmap.mode must be one of {', '.join(_MODES)}, not {self.mode!r}")
        if self.retry_interval > self.max_retry_interval:
            raise ConfigError("portmap.retry_interval must not exceed max_retry_interval")
        if self.lease >= 2**32:
            raise ConfigError("portmap.lease must be below 2^32 seconds")
