"""How plots are drawn, and how numbers are written."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.report import Report
from simulations.report.page import duration_text
from simulations.report.plots import apart, draw_png, draw_svg
from simulations.report.style import PALETTE, file_name, line_of, number_text


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_stay_apart_in_order_and_beside_the_axes(wanted):
    placed = apart(sorted(wanted), 10, 0, 100)
    assert len(placed) == len(wanted)
    assert all(low + 10 <= high + 1e-6 for low, high in itertools.pairwise(placed))
    assert all(-1e-6 <= each <= 100 + 1e-6 for each in placed)


def test_labels_that_are_apart_already_stay_where_they_are():
    assert apart([5, 40, 70], 10, 0, 100) == [5, 40, 70]


def test_labels_at_one_place_spread_to_both_sides():
    assert apart([50, 50, 50], 10, 0, 100) == [40, 50, 60]


@pytest.mark.parametrize("style", ["line", "steps", "points", "bars", "bound"])
@pytest.mark.parametrize("log", [False, True])
def test_every_style_is_drawn_on_both_kinds_of_axes(style, log):
    report = Report()
    axes = {"x_label": "x", "y_label": "y", "style": style}
    report.series("a", [1, 2, 4], [1, None, 100], low=[1, None, 50], high=[2, None, 200], **axes)
    report.series("b", [1, 2, 4], [None, None, None], **axes)
    report.series("c", [2], [0], of="a", **axes)
    plot = report.plot("p", ["a", "b", "c"], log_x=log, log_y=log, marks=[(2, "here")])
    assert draw_png(plot, report).startswith(b"\x89PNG")
    svg = draw_svg(plot, report)
    for text in (">a<", ">b<", ">c<", ">here<", ">x<", ">y<"):
        assert text in svg


def test_a_series_that_belongs_to_another_has_its_colour():
    report = Report()
    axes = {"x_label": "x", "y_label": "y"}
    report.series("first", [1, 2], [1, 2], **axes)
    report.series("second", [1, 2], [2, 3], **axes)
    report.series("bound", [1, 2], [3, 4], style="bound", of="second", **axes)
    svg = draw_svg(report.plot("p", ["first", "second", "bound"]), report)
    assert PALETTE[1][0] in svg
    assert PALETTE[2][0] not in svg


def test_fifteen_lines_can_be_told_apart():
    assert len({line_of(number) for number in range(15)}) == 15


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3, "3"),
        (16384, "16,384"),
        (99.95, "99.95"),
        (99.954321, "99.95"),
        (0.000123456, "0.0001235"),
        (1234.5, "1,234"),
        (0.5, "0.5"),
        (-2.5, "\N{MINUS SIGN}2.5"),
        (1e-9, "1e-09"),
        (9999.96, "10,000"),
    ],
)
def test_numbers_are_written_with_four_digits(value, text):
    assert number_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_can_be_written(value):
    assert number_text(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.0123, "12.3 ms"),
        (1.25, "1.2 s"),
        (119, "119.0 s"),
        (120, "2.0 min"),
        (18_000, "5.0 h"),
        (172_800, "2.0 days"),
    ],
)
def test_durations_are_written_in_the_unit_that_suits_them(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("name", "file"), [("Lookup time, p99 [ms]", "lookup-time-p99-ms"), ("…", "unnamed")]
)
def test_file_names_are_plain(name, file):
    assert file_name(name) == file
