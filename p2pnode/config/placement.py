"""How a node that offers capacity chooses what to host."""

from dataclasses import dataclass

from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """What a node may choose of a run, and when it moves."""

    auto: bool = False  # host what the run needs most, and not what --experts or --layers name
    max_layers: int = 0  # or experts, that are hosted at once; 0: as many as the memory takes
    period: float = 60.0  # between looks at who hosts what; each comes up to 20 % earlier or later
    back_off: float = 15.0  # at most, before a last look: others may have moved meanwhile
    # Between looks at what the owners of runs say, also of nodes that do not choose by themselves.
    renewal_period: float = 300.0
    # By which factor a move has to speed the run's slowest layer up: on average over `pay_back`
    # seconds from its beginning, so that one that takes long to load has to gain more.
    min_gain: float = 1.2
    pay_back: float = 600.0

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: the gain is none.
        """
        if self.min_gain <= 1:
            raise ConfigError("placement.min_gain must be more than 1, or nodes would never rest")
