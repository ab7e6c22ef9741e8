"""What a report says, as plain data: figures with goals, series, tables, plots, facts of the run.

A scenario fills a `Report` while it runs; the harness adds the `RunFacts` when it has ended. This
module imports no drawing library, so that scenarios run without one.

A number that is not finite is kept as None: "could not be measured". A goal for it is missed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeVar

Scalar: TypeAlias = bool | int | float | str | None
Comparison: TypeAlias = Literal[">=", "<="]
Style: TypeAlias = Literal["line", "steps", "points", "bars", "bound"]

T = TypeVar("T")

_STYLES: Final = ("line", "steps", "points", "bars", "bound")


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach, in the figure's own unit; the limit itself is good enough."""

    comparison: Comparison
    value: float

    def met_by(self, value: float | None) -> bool:
        """Tell whether a value reaches the goal; one that could not be measured does not."""
        if value is None:
            return False
        return value >= self.value if self.comparison == ">=" else value <= self.value


def at_least(value: float) -> Goal:
    """Return the goal of this value or more."""
    return Goal(">=", value)


def at_most(value: float) -> Goal:
    """Return the goal of this value or less."""
    return Goal("<=", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a number varied over the runs of a sweep.

    Attributes:
        values: of each seed, in the order of the seeds; None where it could not be measured.
        low: the smallest.
        high: the largest.
        deviation: the standard deviation, with n - 1 in the denominator; 0 for one value.
    """

    values: tuple[float | None, ...]
    low: float | None
    high: float | None
    deviation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that a run is about.

    Attributes:
        name: unique in the report, in words: `experts found`.
        value: None if it could not be measured; the mean in a report over many seeds.
        unit: of the value and the goal, `ms`; empty for a count or a ratio.
        goal: what it is to reach; None for a figure that is only told.
        met: whether it reached the goal, in every run of a sweep; None without a goal.
        detail: one more sentence on what was measured.
        spread: over the seeds; None in the report of one run.
    """

    name: str
    value: float | None
    unit: str = ""
    goal: Goal | None = None
    met: bool | None = None
    detail: str = ""
    spread: Spread | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """What one axis shows, and in what unit; empty for a count or a ratio."""

    label: str
    unit: str = ""

    def __str__(self) -> str:
        """Return it as an axis or a column is labelled."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one quantity over another.

    Attributes:
        name: unique in the report.
        label: beside the line in a plot; series of one label have one colour in all panels.
        of: the label of the series this one belongs to, whose colour it gets: a bound's
            measurement, for example; empty for a colour of its own.
        x: where the points are, all finite.
        y: what was measured there, as many; None leaves a gap.
        low: the lower edge of a band around y, as many or none.
        high: the upper edge.
        x_axis: what x is.
        y_axis: what y is.
        style: `line`, `steps` (a value holds until the next), `points`, `bars`, or `bound` (a
            dashed line: a limit that was derived, not measured).
    """

    name: str
    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    x_axis: Axis
    y_axis: Axis
    style: Style = "line"
    of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of plain values under named columns."""

    name: str
    columns: tuple[Axis, ...]
    rows: tuple[tuple[Scalar, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes of a plot: the names of the series it shows."""

    title: str
    series: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of some series, in panels side by side that share their axes.

    Attributes:
        name: unique in the report; what the picture shows, in words.
        panels: at least one.
        caption: how to read it; empty if that is plain.
        log_x: whether the x axis is logarithmic.
        log_y: the same for the y axis.
        marks: moments of the x axis that are marked with a line, with their labels.
        y_from: where the y axis starts; None lets the points decide.
        y_to: where it ends.
    """

    name: str
    panels: tuple[Panel, ...]
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    y_from: float | None = None
    y_to: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What was run, so that a reader can run it again.

    Attributes:
        scenario: its name.
        summary: what it shows, in a sentence.
        parameters: all of them, as used.
        changed: the names of those that were not left at their defaults.
        seeds: one for a run, many for a sweep.
        fidelity: `light` or `full`; empty if the scenario has no hosts.
        command: what to type to replay it.
        versions: of p2pnode, Python and the libraries that matter.
        log_digest: SHA-256 of the event log in hexadecimal, one for each seed.
        events: how many events the log has, in all runs together.
        virtual_seconds: how much time passed in the simulation, in all runs together.
        real_seconds: how much it took.
    """

    scenario: str
    summary: str
    parameters: Mapping[str, Scalar | tuple[Scalar, ...]]
    changed: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    fidelity: str = ""
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    log_digest: tuple[str, ...] = ()
    events: int = 0
    virtual_seconds: float = 0.0
    real_seconds: float = 0.0


class Report:
    """What a run found out, filled while it runs.

    Names are unique within figures, series, tables and plots each; adding a second one of the same
    name raises `ValueError`, since one would hide the other.

    Attributes:
        figures: by name, in the order they were added.
        all_series: likewise.
        tables: likewise.
        plots: likewise.
        notes: paragraphs on how to read it and what it does not show.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.all_series: dict[str, Series] = {}
        self.tables: dict[str, Table] = {}
        self.plots: dict[str, Plot] = {}
        self.notes: list[str] = []

    def figure(
        self,
        name: str,
        value: float | None,
        unit: str = "",
        *,
        goal: Goal | None = None,
        detail: str = "",
    ) -> Figure:
        """Add a figure, and judge it by its goal.

        Args:
            name: what it is, in words.
            value: None or NaN if it could not be measured.
            unit: of value and goal.
            goal: made by `at_least` or `at_most`.
            detail: one more sentence.
        """
        value = _number(value)
        return self.add_figure(
            Figure(
                name=name,
                value=value,
                unit=unit,
                goal=goal,
                met=None if goal is None else goal.met_by(value),
                detail=detail,
            )
        )

    def add_figure(self, figure: Figure) -> Figure:
        """Add a figure that has been judged already."""
        _add(self.figures, figure.name, figure, "figure")
        return figure

    def series(
        self,
        name: str,
        x: Iterable[float],
        y: Iterable[float | None],
        *,
        x_label: str,
        y_label: str,
        x_unit: str = "",
        y_unit: str = "",
        label: str = "",
        low: Iterable[float | None] = (),
        high: Iterable[float | None] = (),
        style: Style = "line",
        of: str = "",
    ) -> Series:
        """Add a series; if no plot names it, it gets a plot of its own.

        Args:
            name: unique in the report.
            x: where the points are.
            y: what was measured there; None or NaN leaves a gap.
            x_label: what x is, `virtual time`.
            y_label: what y is.
            x_unit: `s`.
            y_unit: of y, low and high.
            label: beside the line; by default the name.
            low: the lower edge of a band around y; as many as y, or none.
            high: the upper edge.
            style: see `Series`.
            of: the label of the series whose colour it gets.

        Raises:
            ValueError: there are not as many of one as of the other, or an x is not finite.
        """
        return self.add_series(
            Series(
                name=name,
                label=label or name,
                x=tuple(float(each) for each in x),
                y=tuple(_number(each) for each in y),
                low=tuple(_number(each) for each in low),
                high=tuple(_number(each) for each in high),
                x_axis=Axis(x_label, x_unit),
                y_axis=Axis(y_label, y_unit),
                style=style,
                of=of,
            )
        )

    def add_series(self, series: Series) -> Series:
        """Add a series that has been made already.

        Raises:
            ValueError: see `series`.
        """
        if len(series.y) != len(series.x):
            raise ValueError(f"{series.name} has {len(series.x)} x and {len(series.y)} y")
        if not all(math.isfinite(each) for each in series.x):
            raise ValueError(f"{series.name} has an x that is not finite")
        if len(series.low) != len(series.high) or len(series.low) not in {0, len(series.x)}:
            raise ValueError(f"{series.name} has a band of another length than its points")
        if series.style not in _STYLES:
            raise ValueError(f"{series.style} is none of the styles {', '.join(_STYLES)}")
        _add(self.all_series, series.name, series, "series")
        return series

    def table(
        self,
        name: str,
        columns: Sequence[str | Axis],
        rows: Iterable[Sequence[Scalar]],
        *,
        caption: str = "",
    ) -> Table:
        """Add a table.

        Args:
            name: what it shows, in words.
            columns: their headings; an `Axis` has a unit.
            rows: each as long as the columns.
            caption: how to read it.

        Raises:
            ValueError: a row is longer or shorter than the columns.
        """
        return self.add_table(
            Table(
                name=name,
                columns=tuple(each if isinstance(each, Axis) else Axis(each) for each in columns),
                rows=tuple(tuple(_scalar(cell) for cell in row) for row in rows),
                caption=caption,
            )
        )

    def add_table(self, table: Table) -> Table:
        """Add a table that has been made already.

        Raises:
            ValueError: a row is longer or shorter than the columns.
        """
        if any(len(row) != len(table.columns) for row in table.rows):
            raise ValueError(f"a row of {table.name} has not a cell for each column")
        _add(self.tables, table.name, table, "table")
        return table

    def plot(
        self,
        name: str,
        series: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        caption: str = "",
        log_x: bool = False,
        log_y: bool = False,
        marks: Iterable[tuple[float, str]] = (),
        y_from: float | None = None,
        y_to: float | None = None,
    ) -> Plot:
        """Add a plot of series that are in the report by then.

        Args:
            name: what the picture shows, in words; its heading.
            series: names of series, or of each panel by its title.
            caption: how to read it.
            log_x: whether the x axis is logarithmic.
            log_y: the same for the y axis.
            marks: moments to mark on the x axis, with a label each.
            y_from: where the y axis starts; by default the points decide.
            y_to: where it ends.

        Raises:
            ValueError: a series is not in the report, or they have different axes.
        """
        panels = series if isinstance(series, Mapping) else {"": series}
        return self.add_plot(
            Plot(
                name=name,
                panels=tuple(Panel(title, tuple(names)) for title, names in panels.items()),
                caption=caption,
                log_x=log_x,
                log_y=log_y,
                marks=tuple((float(at), label) for at, label in marks),
                y_from=y_from,
                y_to=y_to,
            )
        )

    def add_plot(self, plot: Plot) -> Plot:
        """Add a plot that has been made already.

        Raises:
            ValueError: see `plot`.
        """
        shown = [each for panel in plot.panels for each in panel.series]
        missing = [each for each in shown if each not in self.all_series]
        if missing or not shown:
            raise ValueError(f"{plot.name} is a plot of {missing or 'no series'}")
        axes = {(self.all_series[each].x_axis, self.all_series[each].y_axis) for each in shown}
        if len(axes) > 1:
            raise ValueError(f"the series of {plot.name} have different axes")
        _add(self.plots, plot.name, plot, "plot")
        return plot

    def note(self, text: str) -> None:
        """Add a paragraph: how to read the report, or what it does not show."""
        self.notes.append(text)

    def all_plots(self) -> list[Plot]:
        """List the plots, and one for each series that none of them shows."""
        shown = {
            each for plot in self.plots.values() for panel in plot.panels for each in panel.series
        }
        own = [
            Plot(name=name, panels=(Panel("", (name,)),))
            for name in self.all_series
            if name not in shown
        ]
        return [*self.plots.values(), *own]

    @property
    def missed(self) -> list[Figure]:
        """The figures that did not reach their goals."""
        return [each for each in self.figures.values() if each.met is False]


def _add(items: dict[str, T], name: str, item: T, kind: str) -> None:
    if name in items:
        raise ValueError(f"the report has a {kind} {name!r} already")
    items[name] = item


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _scalar(value: Scalar) -> Scalar:
    return _number(value) if isinstance(value, float) else value
