"""The picture of a run: scores over rounds, and over time beside one process alone."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cli.train_layerwise.record import Record

_LAYERS: Final = ("#1f6feb", "#8250df", "#1a7f37", "#bf8700", "#cf222e", "#0a7ea4")
_ALONE: Final = "#bf8700"
_INK: Final = "#24292f"
_FAINT: Final = "#d0d7de"


def draw(record: Record, path: Path) -> None:
    """Write the picture as a PNG."""
    options = record.options
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": _FAINT, "text.color": _INK}):
        figure = Figure(figsize=(10, 5.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)  # no display is needed
        rounds, times = figure.subplots(1, 2, sharey=True)
        _draw_rounds(rounds, record)
        _draw_times(times, record)
        for axes in (rounds, times):
            axes.axhline(options.agreed.threshold, color=_INK, linewidth=0.8, linestyle=":")
            axes.grid(visible=True, color="#eaeef2", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        rounds.legend(loc="lower right", framealpha=0.9, edgecolor="none")
        times.legend(loc="center right", framealpha=0.9, edgecolor="none")
        rounds.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        rounds.set_ylabel("accuracy on hold-outs")
        figure.supxlabel("\n".join(record.in_words()[1:]), fontsize=8)
        figure.suptitle(_title(record), fontsize=9.5, fontweight="bold")
        figure.savefig(path)


def _draw_rounds(axes: Axes, record: Record) -> None:
    """Draw each participant's score after each round."""
    named: set[int] = set()
    for told in record.told:
        colour = _LAYERS[(told.layer - 1) % len(_LAYERS)]
        label = None if told.layer in named else f"participants of layer {told.layer}"
        named.add(told.layer)
        axes.plot(
            [each.round for each in told.scores],
            [each.score for each in told.scores],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.2,
            alpha=0.75,
            label=label,
        )
        if told.killed and told.scores:
            last = told.scores[-1]
            axes.plot(
                last.round, last.score, "x", color=_LAYERS[4], markersize=9, markeredgewidth=2
            )
            axes.annotate("killed", (last.round, last.score), (6, -10), textcoords="offset points")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")


def _draw_times(axes: Axes, record: Record) -> None:
    """Draw the mean of the participants' scores over time, beside one process."""
    options = record.options
    seconds, means = zip(*record.mean_scores, strict=True) if record.mean_scores else ((), ())
    axes.plot(
        seconds,
        means,
        color=_LAYERS[0],
        linewidth=2,
        drawstyle="steps-post",
        label=f"{options.participants} participants, mean",
    )
    axes.plot(
        [each.seconds for each in record.alone],
        [each.score for each in record.alone],
        color=_ALONE,
        linewidth=1.5,
        marker="o",
        markersize=3,
        label="one process",
    )
    for at, colour in ((record.seconds_to_mean, _LAYERS[0]), (record.seconds_alone, _ALONE)):
        if at is not None:
            axes.axvline(at, color=colour, linewidth=0.9, linestyle="--")
            axes.annotate(
                f" {at:.1f} s ",
                (at, 0.02),
                xycoords=("data", "axes fraction"),
                color=colour,
                fontweight="bold",
                ha="right" if at > axes.get_xlim()[1] / 2 else "left",
            )
    axes.set_xlabel("seconds of training, scoring included")
    axes.set_xlim(left=0)


def _title(record: Record) -> str:
    options = record.options
    test, alone = record.test_accuracy or 0.0, record.alone_test_accuracy or 0.0
    return (
        f"{options.layers} layers x {options.peers} peers on one machine, mode"
        f" {options.agreed.mode}: test accuracy {test:.1%}, one process {alone:.1%}\n"
        f"{record.in_words()[0]}"
    )
