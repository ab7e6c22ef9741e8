"""What a report takes, judges and refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.report import Report, at_least, at_most


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (at_least(2), 2, True),
        (at_least(2), 1.999, False),
        (at_most(2), 2, True),
        (at_most(2), 2.001, False),
        (at_most(2), None, False),
        (at_most(2), float("nan"), False),
        (at_least(2), float("inf"), False),
    ],
)
def test_a_goal_is_met_at_its_limit_and_missed_by_what_was_not_measured(goal, value, met):
    assert Report().figure("it", value, goal=goal).met is met


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_a_value_meets_a_goal_or_its_opposite(value, limit):
    assert at_least(limit).met_by(value) or at_most(limit).met_by(value)


def test_a_figure_without_goal_is_neither_met_nor_missed():
    report = Report()
    assert report.figure("hops", 3).met is None
    assert report.missed == []


def test_missed_figures_are_listed():
    report = Report()
    report.figure("good", 1, goal=at_least(1))
    bad = report.figure("bad", 0, goal=at_least(1))
    assert report.missed == [bad]


@pytest.mark.parametrize(
    "add",
    [
        lambda report: report.figure("hops", 4),
        lambda report: report.series("median", [], [], x_label="x", y_label="y"),
        lambda report: report.table("by size", [], []),
        lambda report: report.plot("lookup time", ["median"]),
    ],
)
def test_a_name_is_taken_once(make_report, add):
    with pytest.raises(ValueError, match="already"):
        add(make_report())


def test_a_series_refuses_what_does_not_fit_together():
    report = Report()
    axes = {"x_label": "x", "y_label": "y"}
    with pytest.raises(ValueError, match="2 x and 1 y"):
        report.series("a", [1, 2], [1], **axes)
    with pytest.raises(ValueError, match="not finite"):
        report.series("a", [float("nan")], [1], **axes)
    with pytest.raises(ValueError, match="band"):
        report.series("a", [1, 2], [1, 2], low=[1], high=[2], **axes)
    with pytest.raises(ValueError, match="styles"):
        report.series("a", [1], [1], style="pie", **axes)
    assert not report.all_series


def test_a_table_refuses_a_row_of_another_length():
    with pytest.raises(ValueError, match="a cell for each column"):
        Report().table("t", ["a", "b"], [[1, 2], [1]])


def test_a_plot_refuses_series_that_are_missing_or_of_other_axes():
    report = Report()
    report.series("a", [1], [1], x_label="x", y_label="y")
    report.series("b", [1], [1], x_label="x", y_label="y", y_unit="ms")
    with pytest.raises(ValueError, match="'c'"):
        report.plot("p", ["a", "c"])
    with pytest.raises(ValueError, match="no series"):
        report.plot("p", [])
    with pytest.raises(ValueError, match="different axes"):
        report.plot("p", ["a", "b"])


def test_a_series_that_no_plot_shows_gets_one_of_its_own(make_report):
    assert [each.name for each in make_report().all_plots()] == ["lookup time", "nodes up"]
