"""Building the parts of a model: with fresh weights, or with those of a local checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch
from torch import nn

from p2pnode.errors import ModelError
from p2pnode.models.config import PRESETS, ModelConfig
from p2pnode.models.huggingface import WeightsDirectory, read_config
from p2pnode.models.seeding import seeded
from p2pnode.models.transformer import DecoderBlock, ModelEnds

_LAYER: Final = "model.layers.{}."
_HEAD: Final = "lm_head."  # the other ends stand below `model.`


@dataclass(frozen=True, slots=True)
class Model:
    """A model to take parts of.

    Attributes:
        config: its architecture.
        weights: where its weights are, or None where all begin with fresh ones.
    """

    config: ModelConfig
    weights: WeightsDirectory | None

    @classmethod
    def find(cls, name: str, dtype: str = "float32") -> Self:
        """Return a preset, or read the description of a model in a directory.

        Args:
            name: `tiny` or another preset, or a directory in Hugging Face's format.
            dtype: of weights and activations, `float32` or `bfloat16`.

        Raises:
            ModelError: there is no such model, or not one of a kind that can be hosted.
        """
        if name in PRESETS:
            return cls(replace(PRESETS[name], dtype=dtype), None)
        directory = Path(name).expanduser()
        if not directory.is_dir():
            raise ModelError(
                f"{name!r} is neither a directory nor one of the models {', '.join(PRESETS)}"
            )
        return cls(read_config(directory, dtype), WeightsDirectory(directory))

    def build_block(self, index: int, device: str = "cpu") -> DecoderBlock:
        """Build one block; fresh weights are drawn from torch's CPU generator, see `seeded`.

        Raises:
            ModelError: there is no such block, or its weights cannot be read.
        """
        if not 0 <= index < self.config.layers:
            raise ModelError(
                f"the model has the blocks 0 to {self.config.layers - 1}, so there is no {index}"
            )
        with torch.device("meta"):
            block = DecoderBlock(self.config)
        if self.weights is None:
            block.to_empty(device="cpu")
            block.reset_parameters()
        else:
            self._fill(block, _LAYER.format(index))
        return block.to(device)

    def build_ends(self, seed: int = 0, device: str = "cpu") -> ModelEnds:
        """Build embedding, final norm and head; fresh weights depend on the seed alone.

        Raises:
            ModelError: their weights cannot be read.
        """
        with torch.device("meta"):
            ends = ModelEnds(self.config)
        if self.weights is None:
            ends.to_empty(device="cpu")
            with seeded(seed, "ends"):
                ends.reset_parameters()
        else:
            self._fill(ends, "model.")
        return ends.to(device)

    def _fill(self, module: nn.Module, prefix: str) -> None:
        assert self.weights is not None
        wanted = {
            name if name.startswith(_HEAD) else prefix + name: (name, each.shape)
            for name, each in module.state_dict().items()
        }
        shapes = {stored: shape for stored, (_, shape) in wanted.items()}
        found = self.weights.read(shapes, self.config.dtype)
        named = {name: found[stored] for stored, (name, _) in wanted.items()}
        module.load_state_dict(named, assign=True)
