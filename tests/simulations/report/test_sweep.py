"""Many seeds in one report."""

import pytest

from simulations.report import Report, at_least, dump, load, merge


def report_of(value, x=(0, 1, 2), y=(0, 1, 2), style="line", **cells):
    report = Report()
    report.figure("found", value, "%", goal=at_least(99))
    report.series("line", x, y, x_label="x", y_label="y", style=style)
    report.table("table", ["name", "value"], [["a", cells.get("cell", 1)]])
    report.plot("plot", ["line"])
    return report


def test_a_figure_becomes_the_mean_with_its_spread():
    merged = merge([report_of(99), report_of(100), report_of(101)], [1, 2, 3])
    found = merged.figures["found"]
    assert (found.value, found.met) == (100, True)
    assert found.spread.values == (99, 100, 101)
    assert (found.spread.low, found.spread.high, found.spread.deviation) == (99, 101, 1)


def test_a_detail_that_only_fits_one_run_is_left_out():
    reports = [report_of(1), report_of(2)]
    for report, told in zip(reports, ("5 of 8", "6 of 8"), strict=True):
        report.figure("same", 1, detail="of all nodes")
        report.figure("other", 1, detail=told)
    merged = merge(reports, [1, 2])
    assert merged.figures["same"].detail == "of all nodes"
    assert merged.figures["other"].detail == ""


def test_one_seed_that_misses_makes_the_goal_missed():
    merged = merge([report_of(98), report_of(102)], [1, 2])
    assert merged.figures["found"].value == 100
    assert merged.figures["found"].met is False


def test_what_some_seeds_could_not_measure_is_left_out_of_the_mean_but_not_of_the_verdict():
    found = merge([report_of(100), report_of(float("nan"))], [1, 2]).figures["found"]
    assert (found.value, found.met, found.spread.values) == (100, False, (100, None))
    assert merge([report_of(None)], [1]).figures["found"].spread.deviation is None


def test_a_series_becomes_the_mean_with_a_band():
    line = merge([report_of(1, y=(0, 1, 2)), report_of(1, y=(2, 1, 6))], [1, 2]).all_series["line"]
    assert (line.x, line.y) == ((0, 1, 2), (1, 1, 4))
    assert (line.low, line.high) == ((0, 1, 2), (2, 1, 6))


def test_series_measured_at_different_places_are_interpolated_where_all_have_been():
    merged = merge(
        [report_of(1, x=(0, 2, 4), y=(0, 2, 4)), report_of(1, x=(1, 3), y=(1, 3))], [1, 2]
    )
    line = merged.all_series["line"]
    assert (line.x[0], line.x[-1]) == (1, 3)
    assert line.y == pytest.approx(line.x)
    assert line.low == pytest.approx(line.high)


def test_steps_hold_their_value_when_they_are_interpolated():
    merged = merge(
        [
            report_of(1, x=(0, 10), y=(0, 100), style="steps"),
            report_of(1, x=(0, 20), y=(0, 0), style="steps"),
        ],
        [1, 2],
    )
    line = merged.all_series["line"]
    assert set(line.high[:-1]) == {0}
    assert line.high[-1] == 100


def test_bars_that_a_run_lacks_count_as_nothing():
    merged = merge(
        [report_of(1, style="bars"), report_of(1, x=(0, 2, 4), y=(4, 4, 4), style="bars")], [1, 2]
    )
    line = merged.all_series["line"]
    assert (line.x, line.y) == ((0, 1, 2, 4), (2, 0.5, 3, 2))
    assert (line.low, line.high) == ((0, 0, 2, 0), (4, 1, 4, 4))


def test_tables_of_one_shape_become_means_and_others_are_left_out():
    merged = merge([report_of(1, cell=1), report_of(1, cell=2)], [1, 2])
    assert merged.tables["table"].rows == (("a", 1.5),)
    merged = merge([report_of(1, cell=1), report_of(1, cell="many")], [1, 2])
    assert "table" not in merged.tables


def test_the_figures_of_each_seed_are_told():
    merged = merge([report_of(99.5), report_of(100)], [4, 9])
    assert merged.tables["figures by seed"].rows == ((4, 99.5), (9, 100))


def test_a_figure_that_only_some_seeds_have_is_their_mean():
    other = report_of(100)
    other.figure("rare", 2)
    assert merge([other, report_of(100)], [1, 2]).figures["rare"].value == 2
    rare = merge([report_of(100), other], [1, 2]).figures["rare"]
    assert (rare.value, rare.spread.values) == (2, (None, 2))


def test_a_goal_is_missed_when_a_seed_lacks_its_figure():
    other = report_of(100)
    other.figure("rare", 2, goal=at_least(1))
    assert merge([other, report_of(100)], [1, 2]).figures["rare"].met is False


def test_the_report_of_a_sweep_is_read_back_as_it_was(make_report, facts):
    merged = merge([make_report(seed) for seed in range(3)], range(3))
    assert [each.met for each in merged.figures.values()] == [False, True, None, False]
    text = dump(merged, facts)
    assert dump(*load(text)) == text


def test_nothing_cannot_be_merged():
    with pytest.raises(ValueError, match="0 reports"):
        merge([], [])
    with pytest.raises(ValueError, match="1 reports of 2 seeds"):
        merge([report_of(1)], [1, 2])
