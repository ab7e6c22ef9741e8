import itertools
import random
import statistics

import pytest

from p2pnode.testing.network import (
    GRADES,
    REGIONS,
    Drawn,
    Exponential,
    Fixed,
    LogNormal,
    Normal,
    RegionMatrix,
)


def draws(network, one, other, count=4000):
    return [network.draw_delay(one, other) for _ in range(count)]


@pytest.mark.parametrize(
    ("latency", "mean"),
    [
        (Fixed(0.25), 0.25),
        (Normal(0.25, 0.05), 0.25),
        (Exponential(0.25), 0.25),
        (LogNormal(0.25, 0.1), 0.25 * 1.005),
        (Drawn(lambda source, target: 0.1 * (target.number - source.number)), 0.1),
        (Exponential(0.0), 0.0),
    ],
    ids=["fixed", "normal", "exponential", "log-normal", "drawn", "none"],
)
def test_delays_follow_their_distribution(make_network, latency, mean):
    network = make_network(latency=latency)
    one, other = network.add_machine(), network.add_machine()
    drawn = draws(network, one, other)
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.05)
    assert min(drawn) >= 0


def test_a_normal_delay_is_never_negative(make_network):
    network = make_network(latency=Normal(0.01, 1.0))
    assert min(draws(network, network.add_machine(), network.add_machine())) == 0


def test_the_matrix_is_symmetric_complete_and_nearest_at_home():
    matrix = RegionMatrix().one_way_seconds
    assert set(matrix) == {(one, other) for one in REGIONS for other in REGIONS}
    for one in REGIONS:
        for other in REGIONS:
            assert matrix[one, other] == matrix[other, one]
            if one != other:
                assert matrix[one, one] < matrix[one, other] < 0.2


def test_light_in_fibre_is_not_outrun():
    """Frankfurt to Sydney is 16,500 km: 82 ms at two thirds of the speed of light."""
    matrix = RegionMatrix().one_way_seconds
    assert matrix["eu", "oceania"] > 0.082
    assert matrix["us-east", "us-west"] > 0.018


def test_regions_and_grades_add_up(make_network):
    network = make_network(latency=RegionMatrix(sigma=0.0))
    one = network.add_machine(region="eu", grade=GRADES["satellite"])
    other = network.add_machine(region="asia", grade=GRADES["dsl"])
    steady = 0.105 + GRADES["satellite"].delay + GRADES["dsl"].delay
    drawn = draws(network, one, other)
    jitter = GRADES["satellite"].jitter + GRADES["dsl"].jitter
    assert min(drawn) >= steady
    assert statistics.fmean(drawn) == pytest.approx(steady + jitter, rel=0.02)


def test_grades_get_worse_in_their_order():
    ordered = [GRADES[name] for name in ("lan", "fibre", "dsl", "mobile", "satellite", "absurd")]
    assert list(GRADES.values()) == ordered
    for better, worse in itertools.pairwise(ordered):
        assert better.up >= worse.up
        assert better.delay < worse.delay
        assert better.loss <= worse.loss


def test_one_seed_draws_one_world(make_network):
    def world(seed):
        network = make_network(seed, latency=RegionMatrix(), loss=0.1)
        rng = random.Random(seed)
        machines = [network.add_machine(region=rng.choice(REGIONS)) for _ in range(10)]
        return [each.ip for each in machines], draws(network, *machines[:2], count=20)

    assert world(1) == world(1)
    assert world(1)[1] != world(2)[1]
