import json

import pytest
import torch

from p2pnode.models.building import Model
from p2pnode.models.cache import KeyValueCache, cache_bytes
from p2pnode.models.seeding import seeded
from p2pnode.models.transformer import Stretch


@pytest.fixture
def block(config):
    with seeded(1, "block"):
        return Model(config, None).build_block(0)


def hidden_states(config, rows=2, length=10, seed=0):
    return torch.randn(
        rows, length, config.hidden_size, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_logits_are_those_of_the_reference_implementation(golden_directory, run_model, name):
    known = json.loads((golden_directory / name / "logits.json").read_text())
    logits = run_model(str(golden_directory / name), torch.tensor(known["tokens"]))
    torch.testing.assert_close(logits, torch.tensor(known["logits"]), rtol=1e-4, atol=1e-4)


def test_a_position_does_not_see_those_behind_it(config, block):
    hidden = hidden_states(config)
    changed = hidden.clone()
    changed[:, 6:] += 1
    with torch.no_grad():
        before, after = block(hidden), block(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_rows_do_not_see_each_other(config, block):
    hidden = hidden_states(config, rows=3)
    with torch.no_grad():
        torch.testing.assert_close(block(hidden)[1:2], block(hidden[1:2]))


@pytest.mark.parametrize("cuts", [[10], [1] * 10, [4, 1, 5], [1, 9]])
def test_a_cache_gives_what_the_whole_sequence_gives(config, block, cuts):
    hidden = hidden_states(config)
    cache = KeyValueCache(config, rows=2, length=12)
    position, parts = 0, []
    with torch.no_grad():
        for count in cuts:
            parts.append(block(hidden[:, position : position + count], cache, position))
            position += count
        torch.testing.assert_close(torch.cat(parts, dim=1), block(hidden))


def test_a_cache_goes_back_to_an_earlier_position(config, block):
    first, second = hidden_states(config), hidden_states(config, seed=1)
    cache = KeyValueCache(config, rows=2, length=10)
    with torch.no_grad():
        block(first, cache)
        again = block(second[:, 4:7], cache, 4)
        joined = torch.cat((first[:, :4], second[:, 4:7]), dim=1)
        torch.testing.assert_close(again, block(joined)[:, 4:])


def test_a_row_of_a_cache_goes_on_from_another_row(config, block):
    hidden = hidden_states(config)
    cache = KeyValueCache(config, rows=2, length=10)
    with torch.no_grad():
        block(hidden[:, :6], cache)
        cache.reorder([1, 1], 6)
        out = block(hidden[:, 6:], cache, 6)
        swapped = torch.stack((torch.cat((hidden[1, :6], hidden[0, 6:])), hidden[1]))
        torch.testing.assert_close(out, block(swapped)[:, 6:])


def test_the_size_of_a_cache_is_known_beforehand(config):
    cache = KeyValueCache(config, rows=3, length=10)
    held = sum(tensor.nbytes for tensor in cache.write(0, *[torch.zeros(3, 2, 10, 16)] * 2))
    assert cache_bytes(config, 3, 10) == held


def test_all_parameters_of_a_block_get_gradients(config, block):
    hidden = hidden_states(config).requires_grad_()
    block(hidden).square().mean().backward()
    assert hidden.grad.abs().sum() > 0
    assert all(each.grad.abs().sum() > 0 for each in block.parameters())


def test_bfloat16_comes_close_to_float32():
    outputs = []
    for dtype in ("float32", "bfloat16"):
        model = Model.find("tiny", dtype)
        with seeded(0, "x"):
            block = model.build_block(0)
        hidden = hidden_states(model.config).to(next(block.parameters()).dtype)
        with torch.no_grad():
            outputs.append(block(hidden).float())
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)


def test_a_model_learns_what_comes_next():
    torch.manual_seed(0)
    model = Model.find("tiny")
    ends, blocks = model.build_ends(), [model.build_block(index) for index in range(2)]
    parameters = [each for part in (ends, *blocks) for each in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    tokens = torch.arange(40).remainder(7).reshape(1, 40)
    losses = []
    for _ in range(30):
        hidden = ends.embed(tokens[:, :-1])
        for block in blocks:
            hidden = block(hidden)
        loss = ends.loss(hidden, tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(5.55, abs=0.3)  # ln 256
    assert losses[-1] < 0.5


def test_stretches_of_any_shapes_give_together_what_each_gives_alone(config, block):
    shapes = [(2, 1, 7), (1, 4, 3), (3, 1, 0), (1, 6, 0), (1, 1, 11)]  # rows, length, position
    alone, stretches, parts = [], [], []
    with torch.no_grad():
        for seed, (rows, length, position) in enumerate(shapes):
            before = hidden_states(config, rows, position, seed=seed)
            hidden = hidden_states(config, rows, length, seed=100 + seed)
            caches = [KeyValueCache(config, rows=rows, length=12) for _ in range(2)]
            for cache in caches:
                if position:
                    block(before, cache, 0)
            alone.append(block(hidden, caches[0], position))
            parts.append(hidden.flatten(0, 1))
            stretches.append(Stretch(rows=rows, length=length, position=position, cache=caches[1]))
        together = block.forward_stretches(torch.cat(parts), stretches)
        for given, each in zip(
            torch.split(together, [rows * length for rows, length, _ in shapes]),
            alone,
            strict=True,
        ):
            torch.testing.assert_close(given.view(each.shape), each)
        # The caches are filled: the next position sees the same.
        rows, length, position = shapes[1]
        more = hidden_states(config, rows, 1, seed=7)
        torch.testing.assert_close(
            block(more, stretches[1].cache, position + length),
            block(
                torch.cat(
                    (
                        hidden_states(config, rows, position, seed=1),
                        hidden_states(config, rows, length, seed=101),
                        more,
                    ),
                    1,
                )
            )[:, -1:],
        )
