"""How the work of one layer is split over its swarm."""

from dataclasses import dataclass

from p2pnode.config.experts import CODECS
from p2pnode.config.units import MIB
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SplittingSettings:
    """Limits of split calls, at the peers of a swarm and at those who train with it."""

    max_group: int = 16  # peers that one batch is split over
    max_kept_bytes: int = 2048 * MIB  # weight gradients and their sums, of all steps under way
    max_waiting: int = 64  # steps that wait for their turn at one expert
    # A step that its caller has not spoken of for so long is given up; one that was to be
    # committed is settled with the other peers first.
    lease: float = 30.0
    reduce_timeout: float = 60.0  # for a group to add up its gradients
    reduce_tries: int = 3  # of one step, each after the parts of lost peers have gone to others
    question_timeout: float = 5.0  # for a peer to say what became of a step
    catch_up_timeout: float = 120.0  # for a peer that is behind to fetch what it has missed
    catch_up_tries: int = 3
    catch_up_pause: float = 1.0  # between two of them
    # How gradients travel from peer to peer when they are added up; who trains decides. All but
    # `none` round them on each of two ways.
    codec: str = "none"
    speed_parts: int = 5  # the last ones, forward and backward, that show how fast a peer is

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: there is no such codec.
        """
        if self.codec not in CODECS:
            raise ConfigError(f"splitting.codec must be one of {', '.join(CODECS)}")
