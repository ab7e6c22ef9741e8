"""What parts by bandwidth gain in a round of averaging, in small."""

import pytest

from simulations.runner import Plan, run_seed


def rounds(**chosen):
    outcome = run_seed(Plan(scenario="averaging-links", chosen={"size": 2.0} | chosen))
    (table,) = [each for each in outcome.report.tables.values() if each.name == "rounds"]
    names = [column.label for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_parts_by_bandwidth_take_work_from_slow_links():
    equal, measured, real = rounds(peers=4, size=16.0)
    # With equal parts who is slow sends three quarters of its tensors, and of the result as much.
    assert equal["time"] > 1.5 * 16 * 2**20 / 1.25e6
    for each in (measured, real):
        assert each["time"] > 16 * 2**20 / 1.25e6  # what it sends in any case
        assert each["gain"] > 1.2
        assert each["gain"] == pytest.approx(equal["time"] / each["time"])


def test_where_links_are_alike_parts_by_bandwidth_change_little():
    equal, measured, real = rounds(peers=4, slow=0.0, fast_link="dsl")
    assert measured["time"] < 1.3 * equal["time"]
    assert real["time"] == pytest.approx(equal["time"], rel=0.3)
