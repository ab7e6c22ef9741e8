"""Swarms that train in rounds: small, with all of the node's own code."""

import pytest

from simulations.runner import Plan, run_seed

SMALL = {
    "data": "digits",
    "peers": 4,
    "rounds": 3,
    "samples": 100,
    "held_out": 40,
    "learning_rate": 0.1,
}


def run(scenario, **chosen):
    return run_seed(Plan(scenario=scenario, chosen=SMALL | chosen, seed=3))


def value(outcome, name):
    return outcome.report.figures[name].value


def table(outcome, name):
    (found,) = [each for each in outcome.report.tables.values() if each.name == name]
    return found.rows


def test_lies_are_looked_at_and_change_nothing_and_a_seed_gives_the_same_events_twice():
    chosen = {"peers": 5, "lies.share": 40}
    outcome, again = (run("swarm-liars", **chosen) for _ in range(2))
    assert value(outcome, "lies adopted") == 0
    assert value(outcome, "honest claims taken for lies") == 0
    assert 0 < value(outcome, "lies looked at") < 100
    assert value(outcome, "rounds alike") == SMALL["rounds"]  # as without the liars
    assert value(outcome, "lost to liars") == 0
    assert all(row[1] > 25 for row in table(outcome, "accuracy in the end"))
    assert outcome.facts.log_digest == again.facts.log_digest


@pytest.mark.parametrize("mode", ["best", "diloco"])
def test_who_takes_anothers_place_serves_the_swarms_weights_soon(mode):
    outcome = run("swarm-churn", mode=mode, replaced=50)
    assert value(outcome, "late joiners serve after") <= 2
    assert len(table(outcome, "late joiners")) == 2
    # A fresh classifier is right once in ten times, forty points and more below the others.
    assert value(outcome, "late joiners behind") < 25
