"""Handwritten digits, as scikit-learn ships them: 1797 images of 8x8 pixels.

The split is fixed, whatever the seed of a run, so that accuracies can be compared.
"""

from dataclasses import dataclass
from typing import Final

import torch
from sklearn.datasets import load_digits

FEATURES: Final = 64
CLASSES: Final = 10
_SPLIT_SEED: Final = 0
_TRAIN, _VALIDATION = 1197, 300  # and 300 for the test
_LEVELS: Final = 16.0
_NOISE: Final = 0.15  # added to training images, of brightness 0 to 1, against learning by heart


@dataclass(frozen=True, slots=True)
class Images:
    """Images, float32 of shape (n, 64) between 0 and 1, and their digits, int64 (n,)."""

    pixels: torch.Tensor
    digits: torch.Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.digits)


@dataclass(frozen=True, slots=True)
class Digits:
    """The three parts of the data."""

    train: Images
    validation: Images
    test: Images


def load() -> Digits:
    """Read and split the data."""
    pixels, digits = load_digits(return_X_y=True)
    everything = Images(torch.tensor(pixels, dtype=torch.float32) / _LEVELS, torch.tensor(digits))
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = order.tensor_split([_TRAIN, _TRAIN + _VALIDATION])
    return Digits(*(Images(everything.pixels[part], everything.digits[part]) for part in parts))


class Batches:
    """An endless row of shuffled training batches; the seed decides all of it."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        self._images = images
        self._size = size
        self._random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Images:
        """Return the next batch, with noise."""
        if len(self._order) < self._size:
            self._order = torch.randperm(len(self._images), generator=self._random)
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        pixels = self._images.pixels[chosen]
        noise = torch.randn(pixels.shape, generator=self._random)
        return Images(pixels + _NOISE * noise, self._images.digits[chosen])
