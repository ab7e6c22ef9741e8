"""A decoder-only language model in parts: the blocks, and the ends a trainer keeps.

The architecture is Llama's: RMSNorm before each part, rotary position embeddings (Su et al. 2021,
"RoFormer"), grouped-query attention (Ainslie et al. 2023), and SwiGLU (Shazeer 2020). Modules are
named as in Hugging Face's checkpoints, so that their tensors fit by name.

Rows do not see each other and nothing is random, so a block can be served as an expert: concurrent
calls of equal length are joined along the rows, and backward may run forward again.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from p2pnode.models.cache import KeyValueCache
from p2pnode.models.config import ModelConfig, RopeScaling
from p2pnode.rpc.tensors import dtype_of

_INITIAL_SPREAD: Final = 0.02  # of weights, as in GPT-2 and Llama
_LEAST_TABLE: Final = 256  # positions of the smallest table of rotations
_TABLES_KEPT: Final = 16  # a table of 4096 positions and heads of 128 has 4 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The next positions of some sequences, which share a cache.

    Attributes:
        rows: sequences.
        length: positions of each.
        position: of the first of them.
        cache: of the positions before; these are added to it.
    """

    rows: int
    length: int
    position: int
    cache: KeyValueCache


class DecoderBlock(nn.Module):
    """One layer: attention and feed-forward part, each normalised before and added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dtype = dtype_of(config.dtype)
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)

    def forward(
        self, hidden: torch.Tensor, cache: KeyValueCache | None = None, position: int = 0
    ) -> torch.Tensor:
        """Map (rows, positions, hidden_size) to the same shape.

        Args:
            hidden: what the block before gave.
            cache: of the positions before; these are added to it.
            position: of the first of them; the cache must hold all before.
        """
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cache, position)
        mixed: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return mixed

    def forward_stretches(self, hidden: torch.Tensor, stretches: Sequence[Stretch]) -> torch.Tensor:
        """Run stretches of any shapes at once: each weight is read once for all of them.

        Args:
            hidden: of shape (tokens, hidden_size): the positions of each stretch's rows, row by
                row, one stretch behind the other.
            stretches: whose tokens they are; no two of them share a cache.

        Returns:
            Of the same shape, equal to `forward` of each stretch up to rounding.
        """
        mixed = self.self_attn.forward_stretches(self.input_layernorm(hidden), stretches)
        hidden = hidden + mixed
        result: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result

    def reset_parameters(self) -> None:
        """Draw new weights; those that add to the residual stream are smaller in deep models.

        Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.3.
        """
        for name, parameter in self.named_parameters():
            spread = _INITIAL_SPREAD
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                spread /= math.sqrt(2 * self.config.layers)
            _draw(name, parameter, spread)


class Attention(nn.Module):
    """Grouped-query attention with rotary embeddings; a position sees itself and those before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dtype = dtype_of(config.dtype)
        queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.output_bias, dtype=dtype)

    def forward(
        self, hidden: torch.Tensor, cache: KeyValueCache | None, position: int
    ) -> torch.Tensor:
        """Map (rows, positions, hidden_size) to the same shape; see `DecoderBlock.forward`."""
        rows, length, _ = hidden.shape
        end = position + length
        cosines, sines = _rotations(self.config, end, hidden.device)
        cosines = cosines[position:end].to(hidden.dtype)
        sines = sines[position:end].to(hidden.dtype)
        queries = rotate(self._split(self.q_proj(hidden)), cosines, sines)
        keys = rotate(self._split(self.k_proj(hidden)), cosines, sines)
        values = self._split(self.v_proj(hidden))
        mixed = self._attend(queries, keys, values, cache, position)
        out: torch.Tensor = self.o_proj(mixed.reshape(rows, length, -1))
        return out

    def forward_stretches(self, hidden: torch.Tensor, stretches: Sequence[Stretch]) -> torch.Tensor:
        """Map (tokens, hidden_size) to the same shape; see `DecoderBlock.forward_stretches`."""
        end = max(each.position + each.length for each in stretches)
        places = torch.cat(
            [
                torch.arange(each.position, each.position + each.length).repeat(each.rows)
                for each in stretches
            ]
        ).to(hidden.device)
        cosines, sines = (
            table[places].to(hidden.dtype) for table in _rotations(self.config, end, hidden.device)
        )
        queries = rotate(self._split(self.q_proj(hidden)[None])[0], cosines, sines)
        keys = rotate(self._split(self.k_proj(hidden)[None])[0], cosines, sines)
        values = self._split(self.v_proj(hidden)[None])[0]
        mixed, start, size = [], 0, self.config.head_size
        for each in stretches:
            stop = start + each.rows * each.length
            own = [
                heads[:, start:stop].reshape(-1, each.rows, each.length, size).transpose(0, 1)
                for heads in (queries, keys, values)
            ]
            given = self._attend(own[0], own[1], own[2], each.cache, each.position)
            mixed.append(given.reshape(stop - start, -1))
            start = stop
        out: torch.Tensor = self.o_proj(torch.cat(mixed))
        return out

    def _attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        cache: KeyValueCache | None,
        position: int,
    ) -> torch.Tensor:
        """Mix the values that each query sees: (rows, positions, heads, head_size)."""
        length = queries.shape[2]
        if cache is not None:
            keys, values = cache.write(position, keys, values)
        mask = None
        if position and length > 1:  # from the start it is a triangle; one position sees all
            mask = torch.ones(
                length, position + length, dtype=torch.bool, device=queries.device
            ).tril(position)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=not position and length > 1,
            enable_gqa=self.config.heads != self.config.kv_heads,
        )
        return mixed.transpose(1, 2)

    def _split(self, features: torch.Tensor) -> torch.Tensor:
        """Reshape to (rows, heads, positions, head_size)."""
        rows, length, _ = features.shape
        return features.view(rows, length, -1, self.config.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: one projection gates another one through SiLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dtype = dtype_of(config.dtype)
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.up_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.down_proj = nn.Linear(inner, hidden, bias=False, dtype=dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (…, hidden_size) to the same shape."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class ModelEnds(nn.Module):
    """What stands before and behind the blocks: embedding, final norm and head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dtype = dtype_of(config.dtype)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        )

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape (rows, positions) to what the first block takes."""
        hidden: torch.Tensor = self.embed_tokens(tokens)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map what the last block gives to scores of the next token, (…, vocab_size)."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.norm(hidden), head.weight)

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy of the next tokens, in nats.

        Args:
            hidden: what the last block gives, (rows, positions, hidden_size).
            targets: the token behind each position, (rows, positions); -100 where none counts.
        """
        scores = self.logits(hidden).float().flatten(0, 1)
        return F.cross_entropy(scores, targets.flatten())

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for name, parameter in self.named_parameters():
            _draw(name, parameter, _INITIAL_SPREAD)


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of features by its position's angle; a pair is i and i + head_size/2.

    Args:
        heads: of shape (rows, heads, positions, head_size).
        cosines: of shape (positions, head_size/2).
        sines: of shape (positions, head_size/2).
    """
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def _draw(name: str, parameter: nn.Parameter, spread: float) -> None:
    if name.endswith(".bias"):
        nn.init.zeros_(parameter)
    elif "norm" in name:
        nn.init.ones_(parameter)
    else:
        nn.init.normal_(parameter, std=spread)


def _rotations(
    config: ModelConfig, end: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of at least `end` positions, each (positions, head_size/2)."""
    length = max(_LEAST_TABLE, 1 << (end - 1).bit_length())  # few tables serve all lengths
    return _table(config.rope_theta, config.rope_scaling, config.head_size, length, device)


@functools.lru_cache(maxsize=_TABLES_KEPT)
def _table(
    theta: float, scaling: RopeScaling | None, head_size: int, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(mode=False):  # made in one mode, used in all
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
        frequencies = 1.0 / theta**exponents
        if scaling is not None:
            frequencies = _stretched(frequencies, scaling)
        positions = torch.arange(length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies)
        return angles.cos(), angles.sin()


def _stretched(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Stretch the long wavelengths; source: Llama 3.1's reference code, `apply_scaling`."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = kept.clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)
