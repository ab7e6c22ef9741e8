import random
import statistics

import pytest

from simulations.conditions import CHURN, adapt, sessions_of
from simulations.errors import ParameterError
from simulations.sessions import Sessions

N = 20_000
SHAPES = [("exponential", 1.0), ("weibull", 0.5), ("weibull", 2.0), ("lognormal", 1.0)]


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_drawn_sessions_have_the_mean_and_the_median_asked_for(kind, shape):
    rng = random.Random(1)
    by_mean = Sessions.with_mean(kind, 600.0, shape)
    assert by_mean.mean == pytest.approx(600.0)
    assert statistics.fmean(by_mean.draw(rng) for _ in range(N)) == pytest.approx(600.0, rel=0.1)
    by_median = Sessions.with_median(kind, 600.0, shape)
    assert statistics.median(by_median.draw(rng) for _ in range(N)) == pytest.approx(600, rel=0.1)


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_the_rest_of_a_session_is_what_a_visitor_at_a_random_moment_finds(kind, shape):
    rng = random.Random(2)
    sessions = Sessions.with_mean(kind, 1.0, shape)
    # Renewal theory, checked by drawing: lay sessions end to end, and look in at random.
    ends, at = [], 0.0
    for _ in range(N):
        at += sessions.draw(rng)
        ends.append(at)
    found, place = [], 0
    for moment in sorted(rng.uniform(0, at) for _ in range(N)):
        while ends[place] < moment:
            place += 1
        found.append(ends[place] - moment)
    drawn = [sessions.residual(rng) for _ in range(N)]
    assert statistics.median(drawn) == pytest.approx(statistics.median(found), rel=0.15)


def test_fixed_sessions_are_all_alike_and_met_anywhere_in_them():
    rng = random.Random(3)
    sessions = Sessions.with_mean("fixed", 10.0)
    assert {sessions.draw(rng) for _ in range(5)} == {10.0}
    assert statistics.fmean(sessions.residual(rng) for _ in range(N)) == pytest.approx(5, rel=0.05)


def test_the_mean_counts_before_the_median_and_neither_is_no_churn():
    defaults = {name: parameter.default for name, parameter in CHURN.items()}
    assert sessions_of(defaults | {"churn.mean": 60.0}).mean == 60.0
    assert sessions_of(defaults).mean == pytest.approx(1800 / 0.6931, rel=0.001)
    assert sessions_of(defaults | {"churn.median": 0.0}) is None


def test_a_scenario_may_change_defaults_of_a_group_but_not_invent_parameters():
    group = adapt(CHURN, {"churn.median": 60})
    assert group["churn.median"].default == 60.0
    assert group["churn.crash"] == CHURN["churn.crash"]
    with pytest.raises(KeyError):
        adapt(CHURN, {"churn.medain": 60})
    with pytest.raises(ParameterError):
        adapt(CHURN, {"churn.sessions": "short"})
