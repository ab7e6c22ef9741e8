"""How experts are hosted, found and called."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from p2pnode.config.units import KIB, MIB
from p2pnode.errors import ConfigError

Codec = Literal["none", "float16", "bfloat16", "blockwise-int8"]  # of tensors on the wire
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)
SCHEDULES: Final = ("constant", "linear", "cosine")
OptimizerPolicy = Literal["keep", "reset", "adopt"]  # of the optimiser's state, with new weights
OPTIMIZER_POLICIES: Final[tuple[OptimizerPolicy, ...]] = get_args(OptimizerPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    """Limits of tensor calls."""

    max_header_bytes: int = 64 * KIB
    max_call_bytes: int = 256 * MIB  # tensors of one request
    max_bytes_in_flight: int = 1024 * MIB  # node-wide, requests and replies
    max_bytes_in_flight_per_peer: int = 512 * MIB
    max_calls_per_peer: int = 256
    max_deadline: float = 600.0
    default_timeout: float = 30.0
    header_timeout: float = 10.0  # from a stream's opening to its request's header
    kept_streams: int = 32  # to one peer, idle after a call and ready for the next one
    keep_stream_for: float = 30.0  # the caller; a host ends a stream that is idle for twice as long
    kept_stream_bytes: int = 8 * MIB  # what moves more gives its stream, and its window, up
    payload_patience: float = 30.0  # for each 256 KiB of a request's tensors to arrive
    token_cache_size: int = 4096
    codec_threads: int = 2  # that encode and decode large tensors beside the network
    codec_inline_bytes: int = 256 * KIB  # of a call's tensors; for less a thread costs more


# Of the settings below, those that an expert may change while it is hosted.
RETUNABLE: Final = frozenset(
    {
        "learning_rate",
        "schedule",
        "warmup_steps",
        "total_steps",
        "weight_decay",
        "beta1",
        "beta2",
        "momentum",
        "clip_grad_norm",
        "optimizer_policy",
        "weights_codec",
    }
)


ALL_BLOCKS: Final = ""
_USUAL_LAYER: Final = "ffn"
_OF_BLOCK: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=(.*)", re.ASCII)


def layers_by_block(text: str) -> dict[str, str]:
    """Read `hosting.layer`: a layer for all units, or one for those of each block, or both.

    Args:
        text: the layers, separated by commas; before one of them may stand a block's name and `=`.

    Returns:
        The layers by block; that of the others by `ALL_BLOCKS`.

    Raises:
        ConfigError: there is no layer, or there are two for one block.
    """
    found: dict[str, str] = {}
    for each in text.split(","):
        of_block = _OF_BLOCK.fullmatch(each.strip())
        block, layer = (of_block[1], of_block[2]) if of_block else (ALL_BLOCKS, each)
        if not layer.strip() or block in found:
            raise ConfigError(
                f"hosting.layer is one layer, or one for each block, as in wide=ffn,narrow=linear;"
                f" not {text!r}"
            )
        found[block] = layer.strip()
    return {ALL_BLOCKS: _USUAL_LAYER} | found


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingSettings:
    """How experts are hosted."""

    layer: str = (
        _USUAL_LAYER  # or by block, as in narrow=mine.py:Narrow,wide=ffn; see `layers_by_block`
    )
    hidden_dim: int = 64
    model: str = ""  # of the blocks that node.layers names: tiny, small, medium, or a directory
    dtype: str = "float32"  # of the model's weights and activations; or bfloat16
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"  # of the learning rate: constant, linear or cosine
    warmup_steps: int = 0  # over which the learning rate rises from 0
    total_steps: int = 0  # at which linear and cosine schedules have fallen to 0
    weight_decay: float = 0.0
    beta1: float = 0.9  # of adam and adamw
    beta2: float = 0.999
    momentum: float = 0.0  # of sgd and rmsprop
    clip_grad_norm: float = 0.0  # 0 turns clipping off
    # When weights of another member of the swarm are adopted: keep the optimiser's own state, reset
    # it, or adopt the other's with the weights, which then travels with them.
    optimizer_policy: str = "keep"
    weights_codec: str = "none"  # in which a swarm's members give their weights; see trainer.codec
    seed: int = 0
    device: str = "cpu"
    threads: int = 0  # torch's threads for one operation; 0 leaves torch's default
    max_batch_rows: int = 16_384
    max_step_rows: int = 16_384  # of several callers' that one step of the optimiser may join
    batch_window: float = 0.0  # how long a batch waits for company when the device is idle
    quick_work: float = 0.0003  # seconds; what takes no longer is computed without the worker
    max_queued_calls: int = 1024  # per expert
    # What one peer may use of a device, once another one has waited for `tolerated_wait`:
    max_queued_calls_per_peer: int = 128
    device_seconds_per_peer: float = 45.0  # at once; they come back evenly over the window
    device_window: float = 60.0
    tolerated_wait: float = 1.0
    urgent_lead: float = 1.0  # device seconds a peer may get ahead of its turn to meet deadlines
    replay_window_calls: int = 4096  # backward ids remembered per expert
    replay_window_bytes: int = 64 * MIB  # backward answers kept for replay, per daemon
    update_period: float = 5.0  # between announcements of the hosted experts
    checkpoint_interval: float = 60.0  # 0 saves at the end only
    checkpoints_kept: int = 2
    max_experts: int = 4096
    max_failures_in_row: int = 8  # of an expert's calls, until it is tried on inputs of its own
    restart_delay: float = 1.0  # of an expert at fault, doubled at each further restart
    max_restart_delay: float = 300.0
    standby: bool = False  # keep replicas of experts that others serve, and take over if need be
    standby_interval: float = 10.0  # between two versions of an expert that a replica fetches
    standby_grace: float = 2.0  # without any host, until the first replica takes over
    reach_timeout: float = 5.0  # for a host that is announced no more to show that it lives
    handover_timeout: float = 60.0  # for the state of an expert that changes hands to arrive
    handovers_at_once: int = 4

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: values do not fit each other.
        """
        layers_by_block(self.layer)
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"unknown hosting.schedule {self.schedule!r}; use one of {', '.join(SCHEDULES)}"
            )
        if self.schedule != "constant" and self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"a {self.schedule} schedule ends at hosting.total_steps; set it above"
                f" warmup_steps, which is {self.warmup_steps}"
            )
        if self.optimizer_policy not in OPTIMIZER_POLICIES:
            raise ConfigError(
                f"hosting.optimizer_policy must be one of {', '.join(OPTIMIZER_POLICIES)}"
            )
        if self.weights_codec not in CODECS:
            raise ConfigError(f"hosting.weights_codec must be one of {', '.join(CODECS)}")
        if max(self.beta1, self.beta2) >= 1:
            raise ConfigError("hosting.beta1 and hosting.beta2 must be below 1")
        if self.momentum >= 1:
            raise ConfigError("hosting.momentum must be below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSettings:
    """How experts are looked up."""

    refresh_interval: float = 5.0  # a prefix in use is asked for again at least this often
    absent_time: float = 0.5  # of a prefix found empty, doubled each further time
    max_absent_time: float = 10.0
    ban_time: float = 2.0  # of a host whose calls fail, doubled at each further failure
    max_ban_time: float = 60.0
    max_cached_prefixes: int = 16_384
    lookups_at_once: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How a trainer calls experts, where a layer does not say otherwise."""

    forward_timeout: float = 30.0
    backward_timeout: float = 30.0
    timeout_after_k_min: float = 1.0  # for stragglers, once k_min experts have answered
    # A single expert that has lost its hosts is waited for within a call's timeout, but no longer
    # than this, until it has answered again: time for an announcement to expire, or for a restart.
    patience: float = 20.0
    # The same of an expert that nobody has been heard to host: a look-up may have missed it.
    search_patience: float = 2.0
    retry_interval: float = 0.25  # before the second look for its hosts; doubles
    max_retry_interval: float = 2.0
    straggles_tolerated: int = 1  # in a row; a host that is cut off more often counts as failed
    latency_smoothing: float = 0.2  # weight of the newest call in a host's average latency
    calls_at_once_per_host: int = 64  # below what a host takes from one peer (rpc section)
    max_cached_infos: int = 16_384  # descriptions of experts, by expert and host
    codec: str = "none"  # how tensors travel; float16, bfloat16 and blockwise-int8 are smaller

    def __post_init__(self) -> None:
        """Check what a single value does not show.

        Raises:
            ConfigError: a weight is no weight, or there is no such codec.
        """
        if self.latency_smoothing > 1:
            raise ConfigError("trainer.latency_smoothing must not exceed 1")
        if self.codec not in CODECS:
            raise ConfigError(f"trainer.codec must be one of {', '.join(CODECS)}")
