"""How a participant trains a network whose layers are hosted by swarms."""

from dataclasses import dataclass

from p2pnode.config.experts import CODECS
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerwiseSettings:
    """What a participant sends through the layers, and how stale its updates may be."""

    # Examples of one micro-batch. Hosts whose `hosting.max_step_rows` is as many take a step for
    # each; others join those that wait, which are one step then.
    batch: int = 32
    score_batch: int = 256  # examples of a call that only scores; the fewer calls, the faster
    in_flight: int = 2  # micro-batches on their way at once, so that all layers compute
    max_staleness: int = 16  # steps of a layer between a micro-batch's forward and backward pass
    call_timeout: float = 30.0  # for one layer's forward or backward call, over all hosts tried
    codec: str = "none"  # how activations and gradients travel; see trainer.codec

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: there is no such codec.
        """
        if self.codec not in CODECS:
            raise ConfigError(f"layerwise.codec must be one of {', '.join(CODECS)}")
