"""Batches split over the layers' swarms beside one process: small, with all of the node's code."""

import pytest

from simulations.runner import Plan, run_seed

SMALL = {
    "peers": 3,
    "links": "lan",
    "hosting": "all",
    "hidden": 16,
    "rounds": 1,
    "held_out": 100,
    "samples": 32,
    "batch": 16,
    "threshold": 1.0,
}


def run(**chosen):
    return run_seed(Plan(scenario="layer-split", chosen=SMALL | chosen, seed=3))


def rows(outcome, name):
    (found,) = [each for each in outcome.report.tables.values() if each.name == name]
    names = [column.label for column in found.columns]
    return [dict(zip(names, row, strict=True)) for row in found.rows]


def test_split_batches_have_the_losses_of_one_process_and_a_seed_gives_the_same_events_twice():
    one, again = (run(links="fibre") for _ in range(2))
    (swarms,) = rows(one, "the swarms")
    assert swarms["steps"] == 3 * 2
    assert swarms["steps lost"] == 0
    assert swarms["largest difference of a loss"] < 1e-5
    assert one.facts.log_digest == again.facts.log_digest


def test_losses_differ_where_two_batches_are_in_flight_so_that_the_comparison_can_fail():
    (swarms,) = rows(run(in_flight=2, peers=2), "the swarms")
    assert swarms["largest difference of a loss"] > 1e-3


@pytest.mark.parametrize(("hosting", "most"), [("one", 2), ("all", 4)])
def test_peers_are_faster_by_how_many_share_a_batch_but_for_calls(hosting, most):
    outcome = run(threshold=0.1, peers=4, hosting=hosting)
    (swarms,) = rows(outcome, "the swarms")
    alone = rows(outcome, "one process")[0]
    assert swarms["speed-up"] == pytest.approx(alone["time"] / swarms["time"])
    # Of 25 ms a row in one process, peers take 31, as they compute forward again; scoring is alike.
    assert 0.8 * most * 25 / 31 < swarms["speed-up"] < most
