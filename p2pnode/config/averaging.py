"""How groups of peers sum and average tensors."""

from dataclasses import dataclass

from p2pnode.config.units import MIB
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingSettings:
    """Limits of one node's part in rounds of averaging."""

    max_bytes: int = 4096 * MIB  # of the tensors of one round
    rounds_at_once: int = 64
    rounds_remembered: int = 1024  # that are over, so that what comes late is told so
    round_timeout: float = 300.0  # of a whole round, where its caller does not say
    arrival_timeout: float = 30.0  # for the other members to begin the round, too
    patience: float = 10.0  # for each 256 KiB to come, and for a member to come back
    least_measured: int = 16 * MIB  # sent in a round, to tell by it how fast this node sends
    asks: int = 3  # of one member in one attempt, until it counts as lost

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: values do not fit each other.
        """
        if self.round_timeout <= self.arrival_timeout:
            raise ConfigError("averaging.round_timeout must be above averaging.arrival_timeout")

    @property
    def answer_patience(self) -> float:
        """Seconds to wait for a part: who reduces it may first have to lose another member."""
        return self.arrival_timeout + 2 * self.patience

    @property
    def part_patience(self) -> float:
        """Seconds for each 256 KiB of a part: who reduces it may have to lose another member."""
        return 2 * self.patience

    @property
    def linger(self) -> float:
        """Seconds to wait for others to have the result: until then they may lose a member."""
        return self.answer_patience + self.patience
