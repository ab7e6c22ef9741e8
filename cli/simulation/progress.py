"""How far simulations are: a live display on a terminal, a line now and then elsewhere.

All of it goes to standard error; results go to standard output.
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cli.output import count, print_note
from simulations.pulse import Snapshot
from simulations.runner import Plan
from simulations.sweep import Result, SweepObserver

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_INTERVAL: Final = 10.0  # real seconds between two lines where there is no terminal
_REFRESHES: Final = 8  # of the live display, a second, at most
_BAR_WIDTH: Final = 32


def duration(seconds: float) -> str:
    """Write a time as people do: `0.8 s`, `42 s`, `3:07`, `2:00:00`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"


def describe(snapshot: Snapshot) -> str:
    """Write a snapshot in one line."""
    end = f" of {duration(snapshot.horizon)}" if snapshot.horizon else ""
    return (
        f"{snapshot.phase}: {duration(snapshot.virtual)}{end} simulated in "
        f"{duration(snapshot.real)} ({snapshot.ratio:.1f} x), "
        f"{snapshot.rate:,.0f} events/s, {count(snapshot.nodes_up, 'node')} up"
    )


class Display:
    """Shows something while the block runs: live on a terminal, else as lines."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._is_terminal = sys.stderr.isatty() and self._console.is_terminal
        self._quiet = quiet
        self._next_line = time.monotonic() + _LINE_INTERVAL

    def __enter__(self) -> Self:
        """Start the live display, if there is one."""
        if self._is_terminal and not self._quiet:
            # Without a thread of its own: it is refreshed between two steps of the simulation.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live display away."""
        if self._live is not None:
            self._live.stop()

    def show(self, picture: "RenderableType", line: str) -> None:
        """Show `picture` on a terminal, and `line` elsewhere when the last one is old enough."""
        if self._live is not None:
            self._live.update(picture, refresh=True)
        elif not self._quiet and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + _LINE_INTERVAL
            print_note(line)

    def say(self, line: str) -> None:
        """Leave a line above the display."""
        if self._live is not None:
            self._live.console.print(line, markup=False)
        elif not self._quiet:
            print_note(line)


class RunDisplay(Display):
    """Shows one run; `receive` is its observer."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._title = title

    def receive(self, snapshot: Snapshot) -> None:
        """Take how far the run is."""
        table = Table.grid(padding=(0, 2))
        table.add_row(f"[bold]{self._title}[/]", snapshot.phase)
        end = f" of {duration(snapshot.horizon)}" if snapshot.horizon else ""
        table.add_row("virtual time", f"{duration(snapshot.virtual)}{end}")
        if snapshot.horizon:
            table.add_row("", ProgressBar(snapshot.horizon, snapshot.virtual, width=_BAR_WIDTH))
        table.add_row("real time", f"{duration(snapshot.real)}   {snapshot.ratio:.1f} x")
        table.add_row("events/s", f"{snapshot.rate:,.0f}")
        table.add_row("nodes up", str(snapshot.nodes_up))
        self.show(table, describe(snapshot))


class SweepDisplay(Display, SweepObserver):
    """Shows the runs of a sweep."""

    def __init__(self, title: str, total: int, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._title = title
        self._total = total
        self._done = 0
        self._running: dict[int, Snapshot] = {}

    def receive_snapshot(self, plan: Plan, snapshot: Snapshot) -> None:
        """See `SweepObserver`."""
        self._running[plan.seed] = snapshot
        self._draw()

    def receive_result(self, result: Result) -> None:
        """See `SweepObserver`."""
        self._running.pop(result.plan.seed, None)
        self._done += 1
        self.say(f"seed {result.plan.seed}: {_verdict(result)} ({self._done} of {self._total})")
        self._draw()

    def _draw(self) -> None:
        head = f"{self._title}: {self._done} of {count(self._total, 'seed')} done"
        self.show(_sweep_table(head, self._running), head)


def _sweep_table(head: str, running: Mapping[int, Snapshot]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(f"[bold]{head}[/]")
    for seed, snapshot in sorted(running.items()):
        table.add_row(f"  seed {seed}  {describe(snapshot)}")
    return table


def _verdict(result: Result) -> str:
    if result.outcome is None:
        return f"failed: {result.failure.splitlines()[-1]}"
    missed = [each.name for each in result.outcome.report.missed]
    return f"misses its goal of {', '.join(missed)}" if missed else "good"
