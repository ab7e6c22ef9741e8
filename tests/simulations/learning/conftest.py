"""Chance, small shapes, and trainings on a virtual clock."""

import dataclasses
import random

import pytest
import torch

from simulations.learning.data import Data, Images
from simulations.learning.model import Classifier, Shape
from simulations.learning.training import Schedule, train

SHAPE = Shape(
    variant="as-published",
    features=4,
    blocks=1,
    experts=6,
    k_best=2,
    failure_rate=0.0,
    learning_rate=1e-2,
    update_inputs=4,
    update_steps=3,
)
SCHEDULE = Schedule(trainers=1, batch=4, steps=12, evaluate_every=4, delay=0.0, compute=0.001)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chance():
    """A function that makes torch's source of chance from a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def make_model(chance):
    """A function that makes a classifier of three pixels; fields of `Shape` may change."""

    def make(seed=0, **fields):
        shape = dataclasses.replace(SHAPE, **fields)
        return Classifier(shape, 3, chance=chance(seed), failures=chance(seed + 1))

    return make


@pytest.fixture(scope="session")
def data(chance):
    """Images of three pixels whose brightest one is the answer."""
    pixels = torch.randn(120, 3, generator=chance(9))
    images = Images(pixels, pixels.argmax(dim=1))
    return Data(train=images.take(torch.arange(80)), held_out=images.take(torch.arange(80, 120)))


@pytest.fixture
def run_training(make_model, data, chance):
    """An async function that trains a model; fields of `Schedule` may change."""

    async def run(model=None, seed=0, **fields):
        model = model or make_model()
        schedule = dataclasses.replace(SCHEDULE, **fields)
        return await train(
            model,
            data,
            schedule,
            delays=random.Random(seed),
            order=chance(seed),
            on_evaluated=lambda _evaluation: None,
        )

    return run
