"""What a language model looks like, and the sizes that come with this package."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Final

from p2pnode.errors import ModelError

DTYPES: Final = ("float32", "bfloat16")
_MAX_SIZE: Final = 2**24  # of any dimension: above all models there are, below what overflows
_BLOCK_FIELDS: Final = (  # all that changes what a block of given weights computes
    "hidden_size",
    "heads",
    "kv_heads",
    "head_size",
    "intermediate_size",
    "rope_theta",
    "rope_scaling",
    "norm_eps",
    "qkv_bias",
    "output_bias",
    "dtype",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary embeddings beyond the length it was first trained on.

    Wavelengths longer than `original_positions / low_frequency` are stretched by `factor`, those
    shorter than `original_positions / high_frequency` are kept, and between the two it is blended.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_positions: int

    def __post_init__(self) -> None:
        if not (
            self.factor > 0
            and 0 < self.low_frequency < self.high_frequency
            and 0 < self.original_positions <= _MAX_SIZE
        ):
            raise ModelError(f"the rotary scaling {self} makes no sense")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The architecture of a Llama-style decoder.

    Attributes:
        vocab_size: tokens; a byte-level model has 256.
        hidden_size: features of each position between two blocks.
        layers: blocks.
        heads: query heads of a block.
        kv_heads: key and value heads; each serves `heads / kv_heads` query heads.
        head_size: features of a head.
        intermediate_size: features inside the feed-forward part.
        max_positions: tokens of the longest sequence.
        rope_theta: base of the rotary embeddings' wavelengths.
        rope_scaling: how they are stretched, if they are.
        norm_eps: added to the mean square in RMSNorm.
        tie_embeddings: whether the head is the embedding, transposed.
        qkv_bias: whether the projections to queries, keys and values have biases, as in Qwen2.
        output_bias: whether the projection out of the attention has one.
        dtype: of weights and activations, `float32` or `bfloat16`.

    Raises:
        ModelError: the sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "layers",
            "heads",
            "kv_heads",
            "head_size",
            "intermediate_size",
            "max_positions",
        ):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= _MAX_SIZE:
                raise ModelError(f"a model cannot have {name}={value!r}")
        if self.heads % self.kv_heads or self.head_size % 2:
            raise ModelError(
                f"{self.heads} heads of {self.head_size} features do not go with {self.kv_heads}"
                " key and value heads; heads must be a multiple of kv_heads, and head_size even"
            )
        if not (0 < self.rope_theta < float("inf") and 0 < self.norm_eps < 1):
            raise ModelError(
                f"a model cannot have rope_theta={self.rope_theta} and norm_eps={self.norm_eps}"
            )
        if self.dtype not in DTYPES:
            raise ModelError(f"the dtype {self.dtype!r} is none of {', '.join(DTYPES)}")

    @property
    def block_fingerprint(self) -> str:
        """Return 8 hex digits that two models share when their blocks compute alike."""
        fields = asdict(self)
        told = json.dumps({name: fields[name] for name in _BLOCK_FIELDS}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:8]


# Models to train from scratch, on bytes, since no tokenizer comes with this package.
PRESETS: Final = {
    "tiny": ModelConfig(  # 0.3 million parameters: for tests, and for trying things out
        vocab_size=256,
        hidden_size=64,
        layers=6,
        heads=4,
        kv_heads=2,
        head_size=16,
        intermediate_size=192,
        max_positions=512,
        tie_embeddings=True,
    ),
    "small": ModelConfig(  # 24 million parameters: what a few laptops train in hours
        vocab_size=256,
        hidden_size=512,
        layers=8,
        heads=8,
        kv_heads=4,
        head_size=64,
        intermediate_size=1408,
        max_positions=1024,
        tie_embeddings=True,
    ),
    "medium": ModelConfig(  # 236 million parameters: for a few machines with a GPU each
        vocab_size=256,
        hidden_size=1024,
        layers=20,
        heads=16,
        kv_heads=8,
        head_size=64,
        intermediate_size=2816,
        max_positions=2048,
        tie_embeddings=True,
    ),
}
