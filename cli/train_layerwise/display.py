"""How a run shows its progress: a table that is redrawn on a terminal, lines elsewhere, or JSON."""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.output import print_event, print_facts, print_note
from cli.train_layerwise.record import Look, Record, Told

_NOTES: Final = 5  # the latest ones stay on the screen


class Display(ABC):
    """What a run tells as it goes."""

    def __init__(self, record: Record) -> None:
        self._record = record

    @abstractmethod
    def note(self, text: str) -> None:
        """Say what happens now."""

    @abstractmethod
    def score(self, told: Told) -> None:
        """Show that a participant has ended a round."""

    @abstractmethod
    def alone(self, look: Look) -> None:
        """Show how one process does."""

    def finish(self) -> None:
        """Show the outcome."""
        facts = {
            name.replace("_", " "): f"{each:.3f}" if isinstance(each, float) else each
            for name, each in self._record.summary().items()
            if name != "in_words"
        }
        print_facts("train-layerwise", facts)
        for sentence in self._record.in_words():
            print_note(sentence)


@contextlib.contextmanager
def open_display(record: Record) -> Iterator[Display]:
    """Give the display that suits where standard output goes."""
    console = Console()
    if record.options.as_json:
        yield JsonDisplay(record)
    elif console.is_terminal:
        display = LiveDisplay(record)
        with Live(get_renderable=display.render, console=console, refresh_per_second=4):
            yield display
    else:
        yield LineDisplay(record)


class JsonDisplay(Display):
    """One JSON object a line; the last one is the summary."""

    def note(self, text: str) -> None:
        """See `Display`."""
        print_event("note", text=text)

    def score(self, told: Told) -> None:
        """See `Display`."""
        last = told.scores[-1]
        print_event(
            "round",
            participant=told.name,
            layer=told.layer,
            round=last.round,
            seconds=last.seconds,
            score=last.score,
            samples=told.samples,
        )

    def alone(self, look: Look) -> None:
        """See `Display`."""
        print_event("alone", seconds=look.seconds, samples=look.samples, score=look.score)

    def finish(self) -> None:
        """See `Display`."""
        print_event("report", **self._record.summary())


class LineDisplay(Display):
    """A line for each round, for logs."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._console = Console(highlight=False)

    def note(self, text: str) -> None:
        """See `Display`."""
        self._console.print(text, soft_wrap=True, markup=False)

    def score(self, told: Told) -> None:
        """See `Display`."""
        last = told.scores[-1]
        self.note(
            f"{last.seconds:6.1f} s  {told.name}, layer {told.layer}: round {last.round},"
            f" {last.score:.1%} of its hold-out is right"
        )

    def alone(self, look: Look) -> None:
        """See `Display`."""
        self.note(f"{look.seconds:6.1f} s  one process: {look.samples} samples, {look.score:.1%}")


class LiveDisplay(Display):
    """A table of the participants, redrawn as they go."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._look: Look | None = None

    def note(self, text: str) -> None:
        """See `Display`."""
        self._notes.append(text)

    def score(self, told: Told) -> None:
        """See `Display`: the table shows the newest of each."""

    def alone(self, look: Look) -> None:
        """See `Display`."""
        self._look = look

    def render(self) -> RenderableType:
        """Draw it."""
        table = Table("participant", "layer", "round", "hold-out", "samples", "staleness", "")
        for told in self._record.told:
            score, updates = told.score, told.updates
            table.add_row(
                told.name,
                str(told.layer),
                str(told.scores[-1].round) if told.scores else "-",
                "-" if score is None else f"{score:.1%}",
                str(told.samples),
                f"{told.staleness / updates:.1f}" if updates else "-",
                "killed" if told.killed else told.ended or "training",
            )
        if (look := self._look) is not None:
            table.add_row(
                "one process", "all", "-", f"{look.score:.1%}", str(look.samples), "0", ""
            )
        return Group(table, *map(Text, self._notes))
