"""Asking nodes for what should be found, and what came of it."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from p2pnode.errors import P2PNodeError
from simulations.node import Node
from simulations.report import Report

T = TypeVar("T")

TIMEOUT: Final = 60.0  # seconds after which a probe counts as missed, whatever becomes of it


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of `values` lies, interpolated; NaN of none.

    Args:
        values: in any order.
        share: from 0 to 1.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True)
class Probe:
    """One question and its outcome.

    Attributes:
        at: when it was asked, in virtual seconds.
        seconds: how long it took.
        found: whether the answer was right.
    """

    at: float
    seconds: float
    found: bool


@dataclass(slots=True)
class Probes:
    """The probes of one kind, in the order in which they ended."""

    all: list[Probe] = field(default_factory=list)

    async def ask(
        self, node: Node, question: Callable[[], Awaitable[T]], is_right: Callable[[T], bool]
    ) -> bool | None:
        """Ask, and note what came of it.

        Args:
            node: who asks; if it goes down meanwhile, nothing is noted.
            question: what is done.
            is_right: whether its result is the right one; an error is a wrong one.

        Returns:
            Whether the answer was right; None if nothing was noted.
        """
        at, found = trio.current_time(), False
        with trio.move_on_after(TIMEOUT):
            try:
                found = is_right(await question())
            except P2PNodeError:
                found = False
        if not node.is_up:
            return None
        self.all.append(Probe(at, trio.current_time() - at, found))
        return found

    def since(self, at: float) -> "Probes":
        """Return those asked at `at` or later."""
        return Probes([each for each in self.all if each.at >= at])

    @property
    def found(self) -> float:
        """The share that was found, in per cent; NaN of none."""
        return mean([100.0 * each.found for each in self.all])

    def milliseconds(self, share: float) -> float:
        """Return a percentile of how long those that were found took, in virtual ms."""
        return 1000 * percentile([each.seconds for each in self.all if each.found], share)

    def over_time(
        self, bin_seconds: float, zero: float, measure: "Callable[[Probes], float]"
    ) -> tuple[list[float], list[float]]:
        """Measure the probes of each bin of time; returns when the bins begin, and what came out.

        Times are counted from `zero`; bins without probes are left out.
        """
        bins: dict[int, Probes] = {}
        for each in self.all:
            bins.setdefault(int((each.at - zero) // bin_seconds), Probes()).all.append(each)
        places = sorted(bins)
        return [place * bin_seconds for place in places], [measure(bins[p]) for p in places]


def report_over_time(
    report: Report,
    probes: Probes,
    *,
    zero: float,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
) -> None:
    """Add series and plots of how much was found, and how soon, in each minute.

    Args:
        report: where to.
        probes: what was asked.
        zero: the virtual second that the plots call 0.
        x_label: what their x axis shows.
        marks: minutes to mark, with their labels.
    """
    measures: tuple[tuple[str, str, Callable[[Probes], float]], ...] = (
        ("found", "%", lambda some: some.found),
        ("median look-up", "ms", lambda some: some.milliseconds(0.5)),
    )
    for name, unit, measure in measures:
        seconds, values = probes.over_time(60.0, zero, measure)
        minutes = [each / 60 for each in seconds]
        report.series(
            name, minutes, values, x_label=x_label, x_unit="min", y_label=name, y_unit=unit
        )
        report.plot(name, [name], marks=marks)
