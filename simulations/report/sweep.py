"""One report of many runs that differ in their seed: means, and how far the runs lie apart."""

import statistics
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np

from simulations.report.data import Axis, Figure, Report, Scalar, Series, Spread, Table

Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

_RESAMPLED: Final = 200  # points of a series whose runs were measured at different places


def merge(reports: Sequence[Report], seeds: Sequence[int]) -> Report:
    """Return the report of a sweep.

    A figure becomes the mean, with its spread; its goal is met if every run met it (one that lacks
    the figure did not). A series becomes the mean with a band from the lowest to the highest run;
    where the runs measured at different places, they are interpolated over the range that all cover
    (linearly; steps hold their value), and bars that a run lacks count as 0. Tables of one shape
    become tables of means. Series and tables that only some of the runs have, or have in another
    form, are left to those runs' own reports; plots and notes are the first run's.

    Args:
        reports: at least one.
        seeds: of each report.

    Raises:
        ValueError: there is no report, or not one seed for each.
    """
    if not reports or len(reports) != len(seeds):
        raise ValueError(f"{len(reports)} reports of {len(seeds)} seeds cannot be merged")
    first = reports[0]
    merged = Report()
    for name in dict.fromkeys(name for each in reports for name in each.figures):
        merged.add_figure(_figure([each.figures.get(name) for each in reports]))
    for name in first.all_series:
        lines = [each.all_series[name] for each in reports if name in each.all_series]
        if len(lines) == len(reports) and _alike(lines):
            merged.add_series(_series(lines))
    for name in first.tables:
        tables = [each.tables[name] for each in reports if name in each.tables]
        if len(tables) == len(reports) and (table := _table(tables)) is not None:
            merged.add_table(table)
    for plot in first.plots.values():
        if all(each in merged.all_series for panel in plot.panels for each in panel.series):
            merged.add_plot(plot)
    _add_figures_by_seed(merged, reports, seeds)
    for note in first.notes:
        merged.note(note)
    merged.note(
        f"All figures and lines are means over {len(seeds)} seeds; the bands reach from the lowest"
        " run to the highest, and a goal is met if every run met it."
    )
    return merged


def _figure(figures: Sequence[Figure | None]) -> Figure:
    """Return the mean of a figure; None stands for a run that has no such figure."""
    values = tuple(None if each is None else each.value for each in figures)
    known = [each for each in values if each is not None]
    spread = Spread(
        values=values,
        low=min(known, default=None),
        high=max(known, default=None),
        deviation=(statistics.stdev(known) if len(known) > 1 else 0.0) if known else None,
    )
    told = [each for each in figures if each is not None]
    return Figure(
        name=told[0].name,
        value=statistics.fmean(known) if known else None,
        unit=told[0].unit,
        goal=told[0].goal,
        met=None
        if told[0].goal is None
        else all(each is not None and each.met for each in figures),
        # A detail that tells numbers of one run would be wrong for all of them.
        detail=told[0].detail if len({each.detail for each in told}) == 1 else "",
        spread=spread,
    )


def _alike(lines: Sequence[Series]) -> bool:
    return len({(each.x_axis, each.y_axis, each.style) for each in lines}) == 1 and all(
        each.x for each in lines
    )


def _series(lines: Sequence[Series]) -> Series:
    first = lines[0]
    if all(each.x == first.x for each in lines):
        x = np.array(first.x)
        rows = [_floats(each) for each in lines]
    elif first.style == "bars":
        # A histogram ends at its last bar; where a run has none, it counted nothing.
        x = np.array(sorted({each for line in lines for each in line.x}))
        bars = [dict(zip(line.x, _floats(line), strict=True)) for line in lines]
        rows = [np.array([each.get(place, 0.0) for place in x]) for each in bars]
    else:
        # Where some lines end early, their values are not known: no run is stretched.
        start, end = max(each.x[0] for each in lines), min(each.x[-1] for each in lines)
        x = np.linspace(start, max(start, end), _RESAMPLED)
        rows = [_resample(each, x) for each in lines]
    values = np.stack(rows)
    return Series(
        name=first.name,
        label=first.label,
        x=tuple(x.tolist()),
        y=_tuple(values.mean(axis=0)),
        low=_tuple(values.min(axis=0)),
        high=_tuple(values.max(axis=0)),
        x_axis=first.x_axis,
        y_axis=first.y_axis,
        style=first.style,
        of=first.of,
    )


def _resample(line: Series, x: Floats) -> Floats:
    if line.style == "steps":
        held = np.searchsorted(np.array(line.x), x, side="right") - 1
        return _floats(line)[held]
    return np.interp(x, np.array(line.x), _floats(line))


def _floats(line: Series) -> Floats:
    return np.array([np.nan if each is None else each for each in line.y], dtype=np.float64)


def _tuple(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(each) else float(each) for each in values)


def _table(tables: Sequence[Table]) -> Table | None:
    """Return the table of means; None if the tables are of different forms."""
    first = tables[0]
    if len({(each.columns, len(each.rows)) for each in tables}) != 1:
        return None
    rows = []
    for row_of_each in zip(*(each.rows for each in tables), strict=True):
        row: list[Scalar] = []
        for cells in zip(*row_of_each, strict=True):
            numbers = [cell for cell in cells if isinstance(cell, int | float) and cell is not True]
            if all(cell == cells[0] for cell in cells):
                row.append(cells[0])
            elif len(numbers) == len(cells):
                row.append(statistics.fmean(numbers))
            else:
                return None
        rows.append(tuple(row))
    return Table(name=first.name, columns=first.columns, rows=tuple(rows), caption=first.caption)


def _add_figures_by_seed(merged: Report, reports: Sequence[Report], seeds: Sequence[int]) -> None:
    names = list(merged.figures)
    if names:
        merged.table(
            "figures by seed",
            ["seed", *(Axis(name, merged.figures[name].unit) for name in names)],
            [
                [seed, *(_value(report, name) for name in names)]
                for seed, report in zip(seeds, reports, strict=True)
            ],
        )


def _value(report: Report, name: str) -> float | None:
    figure = report.figures.get(name)
    return None if figure is None else figure.value
