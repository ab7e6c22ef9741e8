"""Plots as matplotlib draws them: the labels beside their lines, no box around them, no legend."""

import io
from collections.abc import Sequence
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Annotation
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator

from simulations.report.data import Panel, Plot, Report, Series
from simulations.report.style import FAINT_INK, GRID, INK, line_of, number_text

_MOST_IN_A_ROW: Final = 3
_WIDTHS: Final = {1: 7.2, 2: 9.6, 3: 11.4}  # inches, by the panels in a row
_ROW_HEIGHT: Final = 3.3  # inches
_LABEL_POINTS: Final = 8.5
_LABEL_PITCH: Final = 11.0  # points between the middles of two labels
_FEW_POINTS: Final = 25  # so many get a dot each
_TICKS: Final = 7  # of an axis of whole numbers, at most
_FEW_TICKS: Final = 8  # so many points of a logarithmic axis have a tick each
_DOTS_PER_INCH: Final = 150

_STYLE: Final[Any] = {  # its type lists every setting that there is
    "font.size": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that pictures agree everywhere
    "text.color": INK[0],
    "axes.edgecolor": FAINT_INK[0],
    "axes.labelcolor": INK[0],
    "axes.linewidth": 0.8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": FAINT_INK[0],
    "ytick.color": FAINT_INK[0],
    "svg.fonttype": "none",  # text stays text
}


def draw_png(plot: Plot, report: Report) -> bytes:
    """Return the plot as a PNG on white."""
    with mpl.rc_context(_STYLE):
        out = io.BytesIO()
        _canvas(plot, report).savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def draw_svg(plot: Plot, report: Report) -> str:
    """Return the plot as an SVG on a transparent ground; the same text for the same plot."""
    # The salt keeps the names inside apart when several pictures stand in one page.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        out = io.StringIO()
        _canvas(plot, report).savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return out.getvalue()


class _LogTicks(LogFormatter):
    """Labels those ticks that matplotlib would, but with plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of the tick at x; empty where there is no room for one."""
        return number_text(x) if super().__call__(x, pos) else ""


def _canvas(plot: Plot, report: Report) -> Canvas:
    columns = min(len(plot.panels), _MOST_IN_A_ROW)
    rows = -(-len(plot.panels) // columns)
    canvas = Canvas(
        figsize=(_WIDTHS[columns], _ROW_HEIGHT * rows), dpi=_DOTS_PER_INCH, layout="constrained"
    )
    FigureCanvasAgg(canvas)  # no display is needed
    grid = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    every: list[Axes] = list(grid.flat)
    shown = [[report.all_series[name] for name in panel.series] for panel in plot.panels]
    styles = _styles([each for members in shown for each in members])
    labels = []
    for number, (axes, panel, members) in enumerate(zip(every, plot.panels, shown, strict=False)):
        _draw_panel(axes, plot, panel, members, styles)
        if number >= len(plot.panels) - columns:
            axes.set_xlabel(str(members[0].x_axis))
            axes.tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel(str(members[0].y_axis))
        labels.append((axes, _label_lines(axes, members, styles)))
    for axes in every[len(plot.panels) :]:
        axes.remove()
    _limit(every[0], plot, [each for members in shown for each in members])
    canvas.draw_without_rendering()  # so that it is known where everything will be
    for axes, texts in labels:
        _spread(axes, texts)
    return canvas


def _styles(shown: Sequence[Series]) -> dict[str, tuple[str, Any]]:
    """Return colour and dashes of each label."""
    leaders = dict.fromkeys(each.label for each in shown if not each.of)
    orphans = dict.fromkeys(each.of for each in shown if each.of and each.of not in leaders)
    styles: dict[str, tuple[str, Any]] = {
        label: line_of(number) for number, label in enumerate([*leaders, *orphans])
    }
    for each in shown:
        if each.of:
            styles[each.label] = styles[each.of]
    return styles


def _draw_panel(
    axes: Axes,
    plot: Plot,
    panel: Panel,
    members: Sequence[Series],
    styles: dict[str, tuple[str, Any]],
) -> None:
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.grid(visible=True, color=GRID[0], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for series in members:
        colour, dashes = styles[series.label]
        _draw_series(axes, series, colour, dashes)
    for at, label in plot.marks:
        axes.axvline(at, color=FAINT_INK[0], linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(
            label,
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            fontsize=_LABEL_POINTS,
            color=FAINT_INK[0],
            va="top",
        )


def _draw_series(axes: Axes, series: Series, colour: str, dashes: Any) -> None:
    nan = float("nan")
    x = list(series.x)
    y = [nan if each is None else each for each in series.y]
    if series.low:
        low = [nan if each is None else each for each in series.low]
        high = [nan if each is None else each for each in series.high]
        if series.style == "bars":
            axes.vlines(x, low, high, color=INK[0], linewidth=1.0)
        else:
            step: Literal["post"] | None = "post" if series.style == "steps" else None
            axes.fill_between(x, low, high, step=step, color=colour, alpha=0.18, linewidth=0)
    match series.style:
        case "bars":
            gaps = [after - before for before, after in zip(sorted(x), sorted(x)[1:], strict=False)]
            width = min((gap for gap in gaps if gap > 0), default=1.0)
            axes.bar(x, y, width=0.9 * width, color=colour, linewidth=0)
        case "points":
            axes.plot(x, y, "o", color=colour, markersize=3.5, markeredgewidth=0)
        case "bound":
            axes.plot(x, y, color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
        case "steps":
            axes.step(x, y, where="post", color=colour, linestyle=dashes, linewidth=1.6)
        case _:
            marker = "o" if len(x) <= _FEW_POINTS else None
            axes.plot(
                x, y, color=colour, linestyle=dashes, linewidth=1.7, marker=marker, markersize=3.5
            )


def _limit(axes: Axes, plot: Plot, shown: Sequence[Series]) -> None:
    if plot.y_from is not None or plot.y_to is not None:
        axes.set_ylim(plot.y_from, plot.y_to)
    xs = sorted({each for series in shown for each in series.x})
    if plot.log_x:
        axes.xaxis.set_major_formatter(lambda x, _: number_text(x))
        if len(xs) <= _FEW_TICKS:
            axes.set_xticks(xs)
            axes.xaxis.set_minor_locator(NullLocator())
    elif all(each == int(each) for each in xs):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_TICKS, integer=True))
    if plot.log_y:
        axes.yaxis.set_major_formatter(_LogTicks())
        axes.yaxis.set_minor_formatter(_LogTicks(minor_thresholds=(1.0, 0.4)))
    else:
        axes.yaxis.set_major_formatter(lambda y, _: number_text(y))
    if len(xs) > 1 and not plot.log_x and all(each.style != "bars" for each in shown):
        axes.set_xlim(xs[0], xs[-1])


def _label_lines(
    axes: Axes, members: Sequence[Series], styles: dict[str, tuple[str, Any]]
) -> list[tuple[Annotation, float | None]]:
    """Write the labels at the right of the axes, halfway up; give each with its line's end."""
    if len(members) < 2:
        return []
    return [
        (
            axes.annotate(
                series.label,
                (1.0, 0.5),
                xycoords="axes fraction",
                xytext=(6, 0),
                textcoords="offset points",
                fontsize=_LABEL_POINTS,
                color=styles[series.label][0],
                va="center",
                annotation_clip=False,
            ),
            next((each for each in reversed(series.y) if each is not None), None),
        )
        for series in members
    ]


def _spread(axes: Axes, labels: Sequence[tuple[Annotation, float | None]]) -> None:
    """Move labels to their lines' ends, and apart until none covers another."""
    points = 72.0 / axes.figure.dpi
    box = axes.get_window_extent()
    bottom, top = float(box.y0) * points, float(box.y1) * points

    def height_of(end: float | None) -> float:
        if end is None or (axes.get_yscale() == "log" and end <= 0):
            return bottom  # it is nowhere
        return min(max(float(axes.transData.transform((1.0, end))[1]) * points, bottom), top)

    wanted = [height_of(end) for _, end in labels]
    order = sorted(range(len(labels)), key=wanted.__getitem__)
    heights = apart([wanted[each] for each in order], _LABEL_PITCH, bottom, top)
    for each, height in zip(order, heights, strict=True):
        labels[each][0].set_position((6.0, height - (bottom + top) / 2))


def apart(wanted: Sequence[float], pitch: float, bottom: float, top: float) -> list[float]:
    """Return places near the wanted ones, at least `pitch` apart, between bottom and top.

    Args:
        wanted: ascending.
        pitch: the least distance.
        bottom: the lowest place; more places than fit between it and `top` go on above.
        top: the highest.
    """
    # Places that are too close are joined to a block around the middle of what they want.
    blocks: list[tuple[float, int]] = []  # the middle of each block, and how many it has
    for place in wanted:
        middle, size = place, 1
        while True:
            half = pitch * (size - 1) / 2
            middle = max(min(middle, top - half), bottom + half)
            if not blocks or blocks[-1][0] + pitch * (blocks[-1][1] + size) / 2 <= middle:
                break
            before, count = blocks.pop()
            middle = (before * count + middle * size) / (count + size)
            size += count
        blocks.append((middle, size))
    return [
        middle + pitch * (number - (size - 1) / 2)
        for middle, size in blocks
        for number in range(size)
    ]
