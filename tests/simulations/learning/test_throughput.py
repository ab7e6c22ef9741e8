"""The queueing simulation against what can be worked out by hand."""

import random

import pytest

from simulations.learning.throughput import Pipeline, throughput

PIPELINE = Pipeline(blocks=12, devices=4, batch=100, compute=0.5)


async def measure(pipeline=PIPELINE, *, jobs=1, batches=2, ping=0.0, seed=0):
    return await throughput(
        pipeline, jobs=jobs, batches=batches, ping=ping, rng=random.Random(seed)
    )


async def test_one_batch_alone_takes_the_sum_of_its_blocks(autojump_clock):
    assert await measure() == pytest.approx(100 / (12 * 0.5))
    assert PIPELINE.synchronous_bound(0) == pytest.approx(100 / (12 * 0.5))


async def test_as_many_jobs_as_devices_keep_all_of_them_busy(autojump_clock):
    # The first batch of each but the first job waits for its turn once: 3 of 24 rounds.
    found = await measure(jobs=4, batches=2)
    assert found == pytest.approx(4 * 2 * 100 / ((24 + 3) * 0.5))


async def test_a_device_computes_one_batch_at_a_time(autojump_clock):
    alone = Pipeline(blocks=3, devices=1, batch=1, compute=1.0)
    assert await measure(alone, jobs=7, batches=1) == pytest.approx(7 / 21)


@pytest.mark.parametrize("ping", [0.0, 0.5, 5.0])
async def test_no_schedule_beats_the_bounds_and_many_jobs_come_near(autojump_clock, ping):
    bound = PIPELINE.asynchronous_bound(16, ping)
    found = await measure(jobs=16, batches=20, ping=ping)
    assert 0.8 * bound < found < 1.02 * bound  # chance may be a little better than its mean


async def test_alone_the_bound_is_the_mean(autojump_clock):
    found = await measure(batches=200, ping=0.5)
    assert found == pytest.approx(PIPELINE.synchronous_bound(0.5), rel=0.05)


def test_the_bound_is_bent_where_the_devices_are_no_longer_busy():
    knee = PIPELINE.knee(16)
    assert knee == pytest.approx(0.5 * (16 / 4 - 1))
    devices = 4 * 100 / (12 * 0.5)
    assert PIPELINE.asynchronous_bound(16, knee) == pytest.approx(devices)
    assert PIPELINE.asynchronous_bound(16, 0.5 * knee) == pytest.approx(devices)
    assert PIPELINE.asynchronous_bound(16, 2 * knee) < devices


def test_the_bounds_of_the_published_setting_are_those_worked_out_for_it():
    ffn = Pipeline(blocks=224, devices=4, batch=2048, compute=1e-9)
    assert ffn.synchronous_bound(0.1) == pytest.approx(91.4, abs=0.1)
    assert ffn.asynchronous_bound(64, 0.1) == pytest.approx(5851, abs=1)


async def test_one_seed_gives_one_throughput(autojump_clock):
    runs = [await measure(jobs=5, ping=0.3, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == pytest.approx(runs[1])  # they begin at different times, and round them
    assert runs[0] != pytest.approx(runs[2], rel=1e-3)
