import numpy as np
import pytest
import torch

from cli.train_layerwise import data
from cli.train_layerwise.alone import train_alone
from cli.train_layerwise.data import part_of
from cli.train_layerwise.plan import Agreed, DemoOptions, Place
from p2pnode.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def rows(examples):
    return {row.tobytes() for row in examples.inputs.numpy()}


def test_parts_hold_out_and_test_set_have_no_image_in_common():
    parts = [part_of(Place(number, 3)) for number in (1, 2, 3)]
    sets = [
        *(rows(part.train) for part in parts),
        rows(parts[0].held_out),
        rows(data.test_images()),
    ]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 5000
    assert len({part.digest for part in parts}) == 1


def test_one_process_reaches_the_threshold_and_stops():
    options = DemoOptions(agreed=Agreed(threshold=0.8), hidden_dim=32)
    looks = []
    test = train_alone(options, [part_of(Place(1, 1))], data.test_images(), looks.append)
    assert looks[-1].score >= 0.8
    assert all(look.score < 0.8 for look in looks[:-1])
    assert looks[-1].samples == 256 * len(looks)
    assert test > 0.7


def test_images_of_ones_own_are_divided_likewise(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(file, pixels=np.random.default_rng(0).random((50, 784)), classes=np.arange(50) % 10)
    part = part_of(Place(2, 2), file)
    assert (len(part.train), len(part.held_out)) == (20, 5)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pixels": np.zeros((3, 784))}, "arrays pixels and classes"),
        ({"pixels": np.zeros((3, 64)), "classes": np.zeros(3, int)}, "shape"),
        ({"pixels": np.zeros((3, 784)), "classes": np.zeros(2, int)}, "shape"),
        ({"pixels": np.zeros((3, 784)), "classes": np.full(3, 10)}, "0 to 9"),
        ({"pixels": np.zeros((3, 784)), "classes": np.zeros(3)}, "whole numbers"),
        ({"pixels": np.full((3, 784), np.nan), "classes": np.zeros(3, int)}, "finite"),
        ({"pixels": np.array([None]), "classes": np.zeros(1, int)}, "npz file"),
    ],
)
def test_a_file_that_holds_no_images_is_refused(tmp_path, arrays, sentence):
    file = tmp_path / "own.npz"
    np.savez(file, **arrays)
    with pytest.raises(ConfigError, match=sentence):
        part_of(Place(1, 1), file)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    file = tmp_path / "own.npz"
    file.write_bytes(b"pixels")
    with pytest.raises(ConfigError, match="npz file"):
        part_of(Place(1, 1), file)
