"""How the participants of a layer's swarm train together, round by round."""

from dataclasses import dataclass
from typing import Final

from p2pnode.config.experts import CODECS
from p2pnode.errors import ConfigError

MODES: Final = ("best", "average", "diloco")
AGGREGATORS: Final = ("mean", "trimmed-mean", "centered-clipping")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsSettings:
    """What a round is, and whom its participants believe.

    Scores are accuracies, the part of a hold-out that is classified right, from 0 to 1.
    """

    mode: str = "best"  # best: the winner's weights; average, diloco: everybody's
    samples: int = 100  # that each participant trains on in a round
    rounds: int = 100  # at most
    threshold: float = 1.0  # the score that ends the training
    last_rounds: int = 5  # at most, that who is done stays for others, or who is left goes on
    start_peers: int = 1  # others that are waited for before the first round, for one patience
    patience: float = 10.0  # for the others' announcements, and for one's own part of averaging
    transfer_timeout: float = 60.0  # for the weights of one claim
    retry_pause: float = 1.0  # after training has failed, as when a host of another layer is gone
    max_checked: int = 8  # claims of a round that are fetched and scored anew
    min_hold_out: int = 100  # examples; a claim that was scored on fewer is not looked at
    false_alarm: float = 1e-4  # how probable it may be that an honest claim is taken for a lie
    slack: float = 0.02  # of a score, by which the difficulty of two hold-outs may differ

    # Of the modes that average.
    aggregator: str = "mean"  # or one that a minority of liars cannot move far
    group_size: int = 16  # of those that average together, 3 to 64
    codec: str = "none"  # in which weights travel to be averaged
    max_loss: float = 0.02  # of one's own score, by which averaged weights may be worse
    outer_rate: float = 0.7  # of diloco's outer step
    outer_momentum: float = 0.9

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a word is none of those known, or a score is above 1.
        """
        if self.mode not in MODES:
            raise ConfigError(f"rounds.mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.aggregator not in AGGREGATORS:
            raise ConfigError(f"rounds.aggregator must be one of {', '.join(AGGREGATORS)}")
        if self.codec not in CODECS:
            raise ConfigError(f"rounds.codec must be one of {', '.join(CODECS)}")
        if not 3 <= self.group_size <= 64:
            raise ConfigError("rounds.group_size must be 3 to 64")
        if self.outer_momentum >= 1:
            raise ConfigError("rounds.outer_momentum must be less than 1")
        for name in ("threshold", "slack", "max_loss"):
            if getattr(self, name) > 1:
                raise ConfigError(f"rounds.{name} is a part of 1, as scores are")
        if self.false_alarm >= 1:
            raise ConfigError("rounds.false_alarm is a probability and must be less than 1")
