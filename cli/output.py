"""What commands print: tables for people, one JSON object a line for machines."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_PIPE_WIDTH: Final = 250


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON, at once."""
    print(json.dumps(value), flush=True)


def print_event(event: str, **facts: Any) -> None:
    """Print a named fact as one line of JSON."""
    print_json({"event": event, **facts})


def print_note(text: str) -> None:
    """Print a line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; `-` stands where a value is not known."""
    from rich import box  # noqa: PLC0415  # rich takes 50 ms that --help need not pay
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if each is None else str(each) for each in row))
    # In a pipe there is no width to fit: lines stay whole, for grep.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    print_table(title, ("", ""), list(facts.items()))


def count(number: int, noun: str) -> str:
    """Say how many there are: 1 peer, 2 peers."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def report_error(error: BaseException, *, as_json: bool) -> None:
    """Print an expected error: one sentence for people, one object for machines."""
    if as_json:
        print_event("error", error=type(error).__name__, message=str(error))
    else:
        import click  # noqa: PLC0415  # every caller has it by now

        click.secho("error: ", fg="red", bold=True, err=True, nl=False)
        click.echo(str(error), err=True)
