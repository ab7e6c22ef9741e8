"""What a benchmark reports: a value, what it is compared with, and the goal.

Machines are noisy and shared, so a value alone says little. Each figure is measured in several
rounds, and in each round the baseline right before or after it; the ratio is the median of the
rounds' ratios.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.output import print_json, print_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on a figure's ratio, or on its value where it has no baseline."""

    bound: float
    at_least: bool  # or at most

    def is_met_by(self, number: float) -> bool:
        """Whether `number` lies on the wanted side of the bound."""
        return number >= self.bound if self.at_least else number <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: for machines, stable.
        title: for people.
        unit: of values and baselines.
        values: one of each round.
        baselines: of the same rounds; empty if there is nothing to compare with.
        goal: what the ratio, or without baselines the median value, should be.
        extra: further facts for machines, such as processor seconds.
    """

    name: str
    title: str
    unit: str
    values: Sequence[float]
    baselines: Sequence[float] = ()
    goal: Goal | None = None
    extra: dict[str, float] | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def baseline(self) -> float | None:
        """The median of the baselines."""
        return statistics.median(self.baselines) if self.baselines else None

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios of value to baseline."""
        if not self.baselines:
            return None
        pairs = zip(self.values, self.baselines, strict=True)
        return statistics.median(value / baseline for value, baseline in pairs)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.goal is None:
            return None
        return self.goal.is_met_by(self.value if self.ratio is None else self.ratio)

    def to_json(self) -> dict[str, Any]:
        """Return the figure as one object for machines."""
        found: dict[str, Any] = {
            "event": "figure",
            "name": self.name,
            "title": self.title,
            "value": _short(self.value),
            "unit": self.unit,
            "min": _short(min(self.values)),
            "max": _short(max(self.values)),
            "rounds": len(self.values),
            "baseline": _short(self.baseline),
            "ratio": _short(self.ratio),
            "goal": str(self.goal) if self.goal else None,
            "met": self.met,
        }
        return found | {name: _short(value) for name, value in (self.extra or {}).items()}


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def print_figures(title: str, figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print a table for people, or one line of JSON a figure."""
    if as_json:
        for figure in figures:
            print_json(figure.to_json())
        return
    columns = ("figure", "median", "range", "baseline", "ratio", "goal", "")
    print_table(title, columns, [_row(figure) for figure in figures])


def _row(figure: Figure) -> Sequence[str | None]:
    return (
        figure.title,
        f"{figure.value:.4g} {figure.unit}",
        f"{min(figure.values):.4g} - {max(figure.values):.4g}",
        None if figure.baseline is None else f"{figure.baseline:.4g}",
        None if figure.ratio is None else f"{figure.ratio:.2f}",
        str(figure.goal) if figure.goal else None,
        {True: "met", False: "missed", None: ""}[figure.met],
    )
