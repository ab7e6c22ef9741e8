"""What micro-batches gain, in small: hosts that compute at the same time, on virtual time."""

import pytest

from simulations.runner import Plan, run_seed


def trials(**chosen):
    outcome = run_seed(Plan(scenario="pipelining", chosen=chosen))
    (table,) = [each for each in outcome.report.tables.values() if each.name == "pipelines"]
    names = [column.label for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_micro_batches_reach_nearly_what_theory_allows_with_two_three_and_four_stages():
    found = trials(stages=(2, 3, 4), micro_batches=(4, 8))
    assert [(each["stages"], each["micro-batches"]) for each in found] == [
        (stages, micro) for stages in (2, 3, 4) for micro in (1, 4, 8)
    ]
    for each in found:
        stages, micro = each["stages"], each["micro-batches"]
        assert each["theory"] == pytest.approx(stages * micro / (stages + micro - 1))
        assert 90 < each["of theory"] <= 100
        assert each["steps of each block"] == micro  # so no two of them were joined


def test_a_round_trip_as_long_as_the_computation_is_hidden_by_sending_the_next_one_meanwhile():
    chosen = {"stages": (2,), "micro_batches": (16,), "network.delay": 0.1}
    _, sent_ahead = trials(**chosen)
    _, one_by_one = trials(**chosen, at_one_host=1)
    assert one_by_one["gain"] < 1
    assert sent_ahead["gain"] > 1.6
