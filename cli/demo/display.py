"""How the demo shows its progress: a live picture on a terminal, lines elsewhere, or JSON."""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cli.demo import plan
from cli.demo.record import Record, Row
from cli.output import print_event, print_json

_LINES: Final = 20  # progress lines of a whole run, where there is no terminal
_WINDOW: Final = 20  # steps that calls/s is averaged over
_NOTES: Final = 5  # the latest ones stay on the screen
_BARS: Final = "▁▂▃▄▅▆▇█"


class Display(ABC):
    """What a run tells as it goes."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Say what happens now."""

    @abstractmethod
    def step(self, row: Row) -> None:
        """Show a step of the training."""

    @abstractmethod
    def finish(self, record: Record) -> None:
        """Show the outcome."""


@contextlib.contextmanager
def open_display(options: plan.Options) -> Iterator[Display]:
    """Give the display that suits where standard output goes."""
    console = Console()
    if options.as_json:
        yield JsonDisplay()
    elif console.is_terminal:
        with LiveDisplay(console, options).shown() as display:
            yield display
    else:
        yield LineDisplay(console, options)


class JsonDisplay(Display):
    """One JSON object a line; the last one is the summary."""

    def note(self, text: str) -> None:
        """See `Display`."""
        print_event("note", text=text)

    def step(self, row: Row) -> None:
        """See `Display`."""
        print_event("step", **_facts(row))

    def finish(self, record: Record) -> None:
        """See `Display`."""
        print_json({"event": "report", **record.summary()})


class LineDisplay(Display):
    """A line now and then, for logs."""

    def __init__(self, console: Console, options: plan.Options) -> None:
        self._console = console
        self._every = max(1, options.steps // _LINES)
        self._steps = options.steps
        self._speed = _Speed()

    def note(self, text: str) -> None:
        """See `Display`."""
        self._console.print(text, soft_wrap=True)

    def step(self, row: Row) -> None:
        """See `Display`."""
        speed = self._speed.update(row)
        number = row.step.number
        if number % self._every == 0 or number == self._steps:
            self._console.print(
                f"step {number}/{self._steps}  loss {_number(row.step.loss)}"
                f"  accuracy {_number(row.step.accuracy)}  {speed:.0f} calls/s"
                f"  {row.failed_calls} failed calls"
                f"  {row.live_experts}/{plan.EXPERTS} live experts",
                soft_wrap=True,
                highlight=False,
            )

    def finish(self, record: Record) -> None:
        """See `Display`."""
        self._console.print(_outcome(record))


class LiveDisplay(Display):
    """A picture that is redrawn as the training goes."""

    def __init__(self, console: Console, options: plan.Options) -> None:
        self._console = console
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._losses: list[float] = []
        self._speed = _Speed()
        self._row: Row | None = None
        self._validation: float | None = None
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=options.steps, start=False)
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=8, transient=True
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[Self]:
        """Keep the picture on the screen while the block runs."""
        with self._live:
            yield self

    def note(self, text: str) -> None:
        """See `Display`."""
        self._notes.append(text)

    def step(self, row: Row) -> None:
        """See `Display`."""
        if self._row is None:
            self._progress.start_task(self._task)
        self._row = row
        self._speed.update(row)
        self._progress.update(self._task, completed=row.step.number)
        if row.step.loss is not None:
            self._losses.append(row.step.loss)
        if row.step.validation is not None:
            self._validation = row.step.validation

    def finish(self, record: Record) -> None:
        """See `Display`."""
        self._live.stop()
        for note in self._notes:
            self._console.print(Text(note, style="dim"))
        self._console.print(_outcome(record))

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = [Text(f"· {note}", style="dim") for note in self._notes]
        if self._row is not None:
            facts = Table.grid(padding=(0, 3))
            for _ in range(6):
                facts.add_column(justify="left")
            row = self._row
            everybody = row.live_experts == plan.EXPERTS
            facts.add_row(
                _fact("loss", _number(row.step.loss)),
                _fact("accuracy", _number(row.step.accuracy)),
                _fact("validation", _number(self._validation)),
                _fact("calls/s", f"{self._speed.value:.0f}"),
                _fact("failed calls", str(row.failed_calls), "yellow" if row.failed_calls else ""),
                _fact(
                    "live experts",
                    f"{row.live_experts}/{plan.EXPERTS}",
                    "green" if everybody else "bold red",
                ),
            )
            width = max(10, self._console.width - 6)
            parts += [Text(), facts, Text(_sparkline(self._losses, width), style="cyan"), Text()]
            parts.append(self._progress)
        return Panel(Group(*parts), title="p2pnode demo", title_align="left", border_style="blue")


class _Speed:
    """Calls a second over the latest steps."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_WINDOW)
        self.value = 0.0

    def update(self, row: Row) -> float:
        self._seen.append((row.seconds, row.calls))
        (since, before), (now, after) = self._seen[0], self._seen[-1]
        self.value = (after - before) / max(now - since, 1e-9)
        return self.value


def _outcome(record: Record) -> RenderableType:
    options = record.options
    table = Table(title="p2pnode demo", title_justify="left", header_style="bold")
    table.add_column("")
    table.add_column("four daemons", justify="right")
    table.add_column("one process", justify="right")
    last_local = record.local_steps[-1] if record.local_steps else None
    last = record.rows[-1] if record.rows else None
    good = (record.test_accuracy or 0.0) >= plan.REQUIRED_ACCURACY
    table.add_row(
        "test accuracy",
        Text(_number(record.test_accuracy, 4), style="bold green" if good else "bold red"),
        _number(record.local_accuracy, 4),
    )
    table.add_row(
        "last loss",
        _number(last.step.loss if last else None),
        _number(last_local.loss if last_local else None),
    )
    table.add_row("loss difference before the kill", _number(record.loss_difference, 6), "")
    table.add_row("steps", str(len(record.rows)), str(len(record.local_steps)))
    table.add_row("steps skipped", str(record.skipped_steps), "-")
    table.add_row("calls", f"{last.calls if last else 0}", "-")
    table.add_row("calls a second", f"{record.calls_per_second:.0f}", "-")
    table.add_row("failed calls", str(record.failed_calls), "-")
    table.add_row("daemon killed after step", _number(record.killed_at), "-")
    table.add_row("its experts back after step", _number(record.restored_at), "-")
    restored = [steps for steps in record.restored_steps.values() if steps]
    spread = f"{min(restored)} to {max(restored)}" if restored else "-"
    table.add_row("steps restored with them", spread, "-")
    table.add_row("seconds in all", f"{record.seconds:.0f}", "-")
    places = Text(f"report.json, report.png and the daemons' logs are in {options.report}/")
    verdicts = [Text(f"failed: {each}", style="bold red") for each in record.shortcomings()]
    return Group(table, places, *verdicts)


def _facts(row: Row) -> dict[str, Any]:
    return {
        "step": row.step.number,
        "loss": row.step.loss,
        "accuracy": row.step.accuracy,
        "validation_accuracy": row.step.validation,
        "seconds": round(row.seconds, 3),
        "calls": row.calls,
        "failed_calls": row.failed_calls,
        "live_experts": row.live_experts,
    }


def _fact(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style or "bold"))


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _sparkline(values: list[float], width: int) -> str:
    """Draw the latest values, the highest of them all as a full bar."""
    top = max(values, default=1.0)
    shown = values[-width:]
    return "".join(_BARS[min(int(each / top * len(_BARS)), len(_BARS) - 1)] for each in shown)
