"""The picture of a run: loss, accuracy and live experts over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cli.demo import plan
from cli.demo.record import Record

_REMOTE: Final = "#1f6feb"
_LOCAL: Final = "#e3b341"
_GONE: Final = "#d1242f"
_BACK: Final = "#1a7f37"
_INK: Final = "#24292f"
_SMOOTHED: Final = 7  # steps that the thick loss line averages over


def draw(record: Record, path: Path) -> None:
    """Write the picture as a PNG."""
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": "#d0d7de", "text.color": _INK}):
        figure = Figure(figsize=(9, 8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)  # no display is needed
        loss, accuracy, swarm = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 2))
        _draw_loss(loss, record)
        _draw_accuracy(accuracy, record)
        _draw_swarm(swarm, record)
        for axes in (loss, accuracy, swarm):
            _mark_absence(axes, record)
            axes.grid(visible=True, color="#eaeef2", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        _label_absence(loss, record)
        loss.legend(loc="center right", framealpha=0.9, edgecolor="none")
        accuracy.legend(loc="lower right", framealpha=0.9, edgecolor="none")
        swarm.set_xlabel("step")
        swarm.set_xlim(0, len(record.rows))
        test, local = record.test_accuracy or 0.0, record.local_accuracy or 0.0
        figure.suptitle(
            f"Handwritten digits over {plan.DAEMONS} daemons and {plan.EXPERTS} experts:"
            f" test accuracy {test:.1%}, in one process {local:.1%}",
            fontsize=11,
            fontweight="bold",
        )
        figure.savefig(path)


def _draw_loss(axes: Axes, record: Record) -> None:
    local = [(step.number, step.loss) for step in record.local_steps if step.loss is not None]
    remote = [(row.step.number, row.step.loss) for row in record.rows if row.step.loss is not None]
    axes.plot(*_columns(remote), color=_REMOTE, alpha=0.25, linewidth=0.8)
    axes.plot(*_columns(_smooth(remote)), color=_REMOTE, linewidth=2.2, label="four daemons")
    axes.plot(*_columns(_smooth(local)), color=_LOCAL, linestyle="--", label="one process")
    skipped = [row.step.number for row in record.rows if row.step.loss is None]
    if skipped:
        top = max((value for _, value in remote), default=1.0)
        axes.plot(skipped, [top] * len(skipped), "x", color=_GONE, label="skipped steps")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, record: Record) -> None:
    batches = [
        (row.step.number, row.step.accuracy) for row in record.rows if row.step.accuracy is not None
    ]
    local = [(s.number, s.validation) for s in record.local_steps if s.validation is not None]
    remote = [
        (row.step.number, row.step.validation)
        for row in record.rows
        if row.step.validation is not None
    ]
    axes.plot(*_columns(batches), color=_REMOTE, alpha=0.25, linewidth=0.8, label="training batch")
    axes.plot(
        *_columns(remote),
        color=_REMOTE,
        marker="o",
        markersize=3,
        linewidth=1.8,
        label="validation, four daemons",
    )
    axes.plot(*_columns(local), color=_LOCAL, linestyle="--", label="validation, one process")
    axes.set_ylabel("accuracy")
    lowest = min((value for _, value in (*local, *remote)), default=0.0)
    axes.set_ylim(max(0.0, min(lowest, 0.8) - 0.05), 1.01)


def _draw_swarm(axes: Axes, record: Record) -> None:
    numbers = [row.step.number for row in record.rows]
    live = [row.live_experts for row in record.rows]
    axes.fill_between(numbers, live, step="post", color=_REMOTE, alpha=0.2, linewidth=0)
    axes.step(numbers, live, where="post", color=_REMOTE, linewidth=1.2)
    axes.set_ylim(0, plan.EXPERTS * 1.1)
    axes.set_yticks(range(0, plan.EXPERTS + 1, plan.EXPERTS // plan.DAEMONS))
    axes.set_ylabel("live experts", color=_REMOTE)
    failed = axes.twinx()
    failed.plot(numbers, [row.failed_calls for row in record.rows], color=_GONE, linewidth=1.2)
    failed.set_ylabel("failed calls", color=_GONE)
    failed.set_ylim(bottom=0)
    failed.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    failed.spines[["top", "right"]].set_visible(False)


def _mark_absence(axes: Axes, record: Record) -> None:
    if record.killed_at is None:
        return
    end = len(record.rows) if record.restored_at is None else record.restored_at
    axes.axvspan(record.killed_at, end, color=_GONE, alpha=0.06, linewidth=0)
    axes.axvline(record.killed_at, color=_GONE, linewidth=1.2)
    if record.restored_at is not None:
        axes.axvline(record.restored_at, color=_BACK, linewidth=1.2)


def _label_absence(axes: Axes, record: Record) -> None:
    labels = [(record.killed_at, "daemon killed", _GONE), (record.restored_at, "back", _BACK)]
    for step, text, colour in labels:
        if step is not None:
            axes.annotate(
                f"{text}\nstep {step}",
                (step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -4),
                textcoords="offset points",
                color=colour,
                va="top",
                fontweight="bold",
            )


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average each point with those on both sides."""
    found = []
    reach = _SMOOTHED // 2
    for place, (number, _) in enumerate(points):
        window = [value for _, value in points[max(0, place - reach) : place + reach + 1]]
        found.append((number, sum(window) / len(window)))
    return found


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [number for number, _ in points], [value for _, value in points]
