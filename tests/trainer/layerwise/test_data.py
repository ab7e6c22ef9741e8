import pytest
import torch

from p2pnode.errors import ConfigError
from p2pnode.trainer.layerwise.data import Batches, Examples, Part, split

EVERYTHING = Examples(torch.arange(60.0)[:, None], torch.arange(60))


def rows(examples):
    return set(examples.targets.tolist())


def test_parts_are_disjoint_and_make_up_everything():
    parts = [split(EVERYTHING, number, 4, held_out=0.2) for number in range(4)]
    pieces = [rows(piece) for part in parts for piece in (part.train, part.held_out)]
    assert sum(map(len, pieces)) == 60
    assert set.union(*pieces) == set(range(60))
    assert {len(part.held_out) for part in parts} == {3}


@pytest.mark.parametrize(("number", "parts", "held_out"), [(4, 4, 0.2), (-1, 4, 0.2), (0, 60, 0.2)])
def test_a_part_that_does_not_exist_or_is_too_small_is_refused(number, parts, held_out):
    with pytest.raises(ConfigError):
        split(EVERYTHING, number, parts, held_out=held_out)


def test_inputs_without_classes_are_refused():
    with pytest.raises(ConfigError, match="as many inputs as classes"):
        Part(Examples(torch.zeros(3, 1), torch.zeros(2)), EVERYTHING)


def test_the_digest_tells_hold_outs_apart():
    one, other = (split(EVERYTHING, number, 2, held_out=0.2) for number in (0, 1))
    assert one.digest != other.digest
    assert one.digest == split(EVERYTHING, 0, 2, held_out=0.2).digest
    assert len(one.digest) == 32


def test_each_pass_sees_every_example_once_in_an_order_that_the_seed_decides():
    batches, again = (Batches(EVERYTHING, 7) for _ in range(2))
    first = [batches.draw(25) for _ in range(12)]  # five passes
    seen = torch.cat([each.targets for each in first])
    for number in range(5):
        assert sorted(seen[60 * number : 60 * (number + 1)].tolist()) == list(range(60))
    assert seen[:60].tolist() != seen[60:120].tolist()
    assert torch.equal(first[0].targets, again.draw(25).targets)
