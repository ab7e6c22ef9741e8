"""A swarm for each layer beside one process: small, with all of the node's own code."""

import pytest

from simulations.runner import Plan, run_seed

SMALL = {
    "peers": 3,
    "entry_peers": 2,
    "hidden": 16,
    "rounds": 2,
    "held_out": 100,
    "modes": "average",
    "samples": 32,
    "threshold": 0.99,
}


def run(**chosen):
    return run_seed(Plan(scenario="layer-parallel", chosen=SMALL | chosen, seed=3))


def rows(outcome, name):
    (found,) = [each for each in outcome.report.tables.values() if each.name == name]
    names = [column.label for column in found.columns]
    return [dict(zip(names, row, strict=True)) for row in found.rows]


def test_a_swarm_for_each_layer_learns_and_a_seed_gives_the_same_events_twice():
    outcome, again = (run() for _ in range(2))
    (swarms,) = rows(outcome, "the modes")
    assert swarms["rounds"] == 2
    assert swarms["hold-out"] > 20  # a fresh network is right once in ten times
    assert swarms["samples"] == 2 * 3 * 32
    assert 0 < swarms["mean staleness"] <= swarms["most"] <= 32
    assert outcome.facts.log_digest == again.facts.log_digest


def test_time_at_equal_accuracy_is_measured_once_all_are_there():
    outcome = run(threshold=0.3, rounds=8)
    (swarms,) = rows(outcome, "the modes")
    assert swarms["time"] > 0
    alone = rows(outcome, "one process")[0]
    assert swarms["speed-up"] == pytest.approx(alone["time"] / swarms["time"])


def test_each_mode_has_a_swarm_of_its_own_after_the_other():
    outcome = run(modes="best,average", rounds=1)
    assert [each["rounds"] for each in rows(outcome, "the modes")] == [1, 1]
