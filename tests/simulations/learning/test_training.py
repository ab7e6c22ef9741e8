"""Trainers that are late: what is stale, by how much, and that a run is like the next."""

from statistics import fmean

import pytest
import torch

from simulations.learning.data import Images
from simulations.learning.model import DENSE


def parameters_of(model):
    banks = [each.bank.weights for each in model.mixtures]
    return [each.detach().clone() for each in (*model.trunk, *banks)]


async def test_without_delay_gradients_are_never_stale(run_training):
    history = await run_training(trainers=5, delay=0.0)
    assert history.staleness == [0] * 12


async def test_without_delay_several_trainers_train_as_one_would(make_model, run_training):
    models = [make_model(), make_model()]
    await run_training(models[0], trainers=1)
    await run_training(models[1], trainers=4)
    for one, other in zip(*map(parameters_of, models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("trainers", [4, 16])
@pytest.mark.parametrize("delay", [0.1, 1.0])
async def test_n_trainers_are_n_minus_one_steps_stale_whatever_the_delay(
    make_model, run_training, autojump_clock, trainers, delay
):
    model = make_model(variant=DENSE)
    history = await run_training(
        model, trainers=trainers, delay=delay, compute=1e-4, steps=400, evaluate_every=400
    )
    assert fmean(history.staleness[trainers:]) == pytest.approx(trainers - 1, rel=0.15)


async def test_trainers_that_queue_for_the_model_are_less_stale(
    make_model, run_training, autojump_clock
):
    history = await run_training(
        make_model(variant=DENSE), trainers=16, delay=0.1, compute=0.05, steps=400
    )
    # The model is always busy: a trainer queues for it to compute, when nothing is stale yet, and
    # again to apply, when its gradient is.
    assert 6 < fmean(history.staleness[16:]) < 10


async def test_a_stale_gradient_is_of_the_weights_it_was_computed_with(
    make_model, run_training, autojump_clock, monkeypatch
):
    model = make_model(variant=DENSE)
    computed, applied = [], []
    gradients, apply = model.gradients, model.apply

    def compute(batch):
        loss, found = gradients(batch)
        computed.append(found)
        return loss, found

    def note(found):
        applied.append(next(n for n, each in enumerate(computed) if each is found))
        apply(found)

    monkeypatch.setattr(model, "gradients", compute)
    monkeypatch.setattr(model, "apply", note)
    history = await run_training(model, trainers=3, delay=0.1, steps=30)
    assert sorted(applied) != applied  # delays differ, so that some overtake others
    assert len(set(applied)) == 30
    assert len(history.losses) == len(history.staleness) == 30


async def test_experts_gather_at_once_while_the_trunk_waits(
    make_model, run_training, autojump_clock, monkeypatch
):
    model = make_model()
    seen = []
    apply = model.apply

    def note(gradients):
        seen.append(int(model.mixtures[0].bank.steps.sum()))
        apply(gradients)

    monkeypatch.setattr(model, "apply", note)
    await run_training(model, trainers=8, delay=1000.0, compute=1e-3, steps=1)
    assert seen[0] > 0  # experts had stepped before the trunk's first step


async def test_evaluations_come_after_so_many_steps_the_first_one_before_training(
    run_training, autojump_clock
):
    history = await run_training(trainers=3, delay=0.01, steps=10, evaluate_every=4)
    assert [each.step for each in history.evaluations] == [0, 4, 8, 10]
    assert [each.time for each in history.evaluations] == sorted(
        each.time for each in history.evaluations
    )


async def test_training_ends_after_exactly_its_steps(run_training, autojump_clock):
    history = await run_training(trainers=7, delay=0.01, steps=11)
    assert history.steps == len(history.staleness) == 11


@pytest.mark.parametrize("variant", ["as-published", "trained-gate", DENSE])
async def test_one_seed_gives_one_training(make_model, run_training, autojump_clock, variant):
    models = [make_model(variant=variant, failure_rate=0.2) for _ in range(2)]
    histories = [await run_training(each, trainers=3, delay=0.01, steps=40) for each in models]
    assert histories[0].losses == histories[1].losses
    assert [each.loss for each in histories[0].evaluations] == [
        each.loss for each in histories[1].evaluations
    ]
    for one, other in zip(*map(parameters_of, models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", ["as-published", "trained-gate", DENSE])
async def test_every_kind_of_model_learns(make_model, run_training, autojump_clock, variant):
    history = await run_training(
        make_model(variant=variant), trainers=2, delay=0.01, steps=100, evaluate_every=100
    )
    first, last = history.evaluations
    assert last.accuracy > 0.8 > first.accuracy


def gate_keys(model):
    return model.mixtures[0].gate.keys.detach().clone()


async def test_the_published_gate_stays_as_it_was_drawn_and_the_trained_one_moves(
    make_model, run_training
):
    for variant, moves in (("as-published", False), ("trained-gate", True)):
        model = make_model(variant=variant)
        before = gate_keys(model)
        await run_training(model)
        assert torch.equal(before, gate_keys(model)) is not moves


def test_the_trunk_is_everything_but_the_experts_and_a_frozen_gate(make_model):
    outside = 2 + 2 + 2  # the first layer, the norm and the last layer
    assert len(make_model(variant="as-published").trunk) == outside
    assert len(make_model(variant="trained-gate").trunk) == outside + 3  # keys, scale and shift
    assert len(make_model(variant=DENSE).trunk) == outside + 10


def test_accuracy_is_the_very_part_that_is_right(make_model):
    """Rounded to 32 bits, two runs that do as well would differ by millionths of a point."""
    model, count = make_model(variant=DENSE, features=3), 7
    pixels = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    digits = (torch.full((count,), each) for each in range(10))
    found = {model.evaluate(Images(pixels, each))[0] for each in digits}
    assert len(found) > 2  # not all images are taken for the same digit
    assert found <= {right / count for right in range(count + 1)}


def test_a_dense_block_and_an_expert_compute_the_same(make_model):
    dense = make_model(variant=DENSE, features=3)
    mixture = make_model(variant="as-published", features=6, experts=1, k_best=1)
    with torch.no_grad():
        for own, given in zip(mixture.trunk, [*dense.trunk[:2], *dense.trunk[12:]], strict=True):
            own.copy_(given)
        flat = torch.cat([each.flatten() for each in dense.trunk[2:12]])
        mixture.mixtures[0].bank.weights[0] = flat
    images = Images(torch.eye(3), torch.arange(3))
    assert mixture.evaluate(images) == pytest.approx(dense.evaluate(images))
    (loss, _), (other, _) = mixture.gradients(images), dense.gradients(images)
    assert loss == pytest.approx(other)
