"""What the peers of a layer's swarm tell each other, and what becomes of those who lie."""

from dataclasses import dataclass

from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSettings:
    """Limits of announcements and members, and the price of offences."""

    enabled: bool = True
    renewal: float = 30.0  # between two copies of an announcement that has not changed
    lifetime: float = 90.0  # of an announcement that is not renewed
    look_interval: float = 5.0  # between two looks at the index, of a swarm in use
    survey_interval: float = 60.0  # and of what is hosted without anybody using its swarm
    max_members: int = 512  # of one swarm, that are remembered
    max_swarms: int = 512  # whose topics are joined
    max_links: int = 12  # members of one swarm that connections are kept to
    max_protected: int = 96  # peers of all swarms together
    announcement_rate: float = 2.0  # of one member in one swarm, a second; others tolerate twice
    announcement_burst: int = 8

    # Offences, in points. Beyond what is tolerated a peer is neither heard nor asked any more.
    false_score_points: float = 50.0  # a score that its weights do not reach
    bad_weights_points: float = 50.0  # not finite, or not of the layer
    wrong_chunk_points: float = 25.0  # bytes that are not what their hash says
    broken_promise_points: float = 5.0  # announced weights that were not to be had
    flood_points: float = 2.0  # an announcement beyond its share
    blacklist_points: float = 80.0  # two lies soon after each other
    points_half_life: float = 3600.0
    first_back_off: float = 30.0  # after an offence; doubled at each further one
    longest_back_off: float = 3600.0
    score_per_point: float = 31.0  # off its score in pub/sub, which hears nobody below -2500
    max_offenders: int = 4096  # that are remembered
    save_interval: float = 10.0  # between two saves of what is held against peers, if that changes

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: values do not fit each other.
        """
        if self.lifetime < 2 * self.renewal:
            raise ConfigError("gossip.lifetime must be at least twice gossip.renewal")
        if self.max_links > self.max_protected:
            raise ConfigError("gossip.max_links must not exceed gossip.max_protected")
