"""The scenarios about experts: what they find, in small."""

import pytest

from simulations.runner import Plan, run_seed

SMALL = {"experts.each": 8, "experts.columns": 32, "experts.period": 10.0, "join.rate": 20.0}


def figures(scenario, **chosen):
    outcome = run_seed(Plan(scenario=scenario, chosen=SMALL | chosen))
    return {name: each.value for name, each in outcome.report.figures.items()}, outcome


@pytest.mark.parametrize("placement", ["rows", "scattered"])
def test_new_trainers_find_the_best_of_all_experts(placement):
    sizes = {"trainers": 3, "censuses": 1, "duration": 6.0, "searches": 2}
    found, outcome = figures("beam-search", nodes=16, **sizes, **{"experts.placement": placement})
    assert outcome.is_good
    assert found["experts"] == 128
    assert found["experts found"] == found["best experts found"] == 100
    assert 0 < found["first search, median"] <= 3 * found["one look-up, median"]


def test_after_a_failure_the_living_are_found_and_the_dead_are_gone():
    found, outcome = figures("experts-failure", nodes=20, trainers=2, killed=50.0)
    assert outcome.is_good
    assert (found["nodes killed"], found["experts left"]) == (10, 80)
    assert 0 < found["last ghost"] <= 20
    assert found["last miss"] <= 20
