"""The scenario of volunteers that place themselves: what it finds, in small."""

import pytest

from simulations.runner import Plan, run_seed

SMALL = {
    "nodes": 8,
    "layers": 8,
    "duration": 240.0,
    "settle": 120.0,
    "join.rate": 2.0,
    "placement.period": 20.0,
    "experts.period": 10.0,
}


def figures(**chosen):
    outcome = run_seed(Plan(scenario="placement", chosen=SMALL | chosen))
    return {name: each.value for name, each in outcome.report.figures.items()}, outcome


def test_volunteers_that_stay_host_all_layers_near_the_bound_and_rest():
    found, _ = figures(**{"churn.median": 0.0, "killed": 0.0})
    assert found["all layers hosted"] == 100
    assert found["slowest layer before"] > 60
    assert found["slowest layer before"] == pytest.approx(found["slowest layer in the end"])
    assert found["moves of a volunteer"] == found["layers loaded again"] == 0


def test_after_a_failure_the_layers_left_alone_are_hosted_again():
    chosen = {"killed": 50.0, "churn.median": 0.0, "capacities": (4, 6)}
    found, outcome = figures(**chosen)
    assert found["nodes killed"] == 4
    assert found["layers loaded again"] == 0
    assert found["slowest layer in the end"] > 40
    again, replayed = figures(**chosen)
    assert again == found
    assert replayed.steps == outcome.steps
