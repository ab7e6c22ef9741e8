"""What commands print: tables for people, one JSON object a line for machines."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

_PIPE_WIDTH: Final = 10_000


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON, at once."""
    print_line(json.dumps(value), sys.stdout)


def print_event(event: str, **facts: Any) -> None:
    """Print a named fact as one line of JSON."""
    print_json({"event": event, **facts})


def print_note(text: str) -> None:
    """Print a line for people, on standard error."""
    print_line(text, sys.stderr)


def print_line(text: str, file: TextIO) -> None:
    """Print a line at once; a daemon whose reader has left goes on without one."""
    try:
        print(text, file=file, flush=True)
    except OSError:  # what is still buffered has to go somewhere, or the interpreter complains
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def as_one_line(text: str) -> str:
    """Escape what would end the line or steer the terminal, such as a peer may have sent."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; `-` stands where a value is not known.

    On a terminal that is too narrow for its columns, each row becomes a paragraph of names and
    values, so that peer ids and addresses can still be read and copied.
    """
    from rich import box  # noqa: PLC0415  # rich takes 50 ms that --help need not pay
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    cells = [["-" if each is None else str(each) for each in row] for row in rows]
    for texts in cells:
        table.add_row(*texts)
    # In a pipe there is no width to fit: lines stay whole, for grep. Names such as `[red]` or
    # `:x:` are what they are.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    unbounded = console.options.update(width=_PIPE_WIDTH)
    console.print(title, style="bold", soft_wrap=True)  # rich would wrap it to the table's width
    if any(columns) and console.measure(table, options=unbounded).maximum > console.width:
        for texts in cells:
            console.print()
            for column, text in zip(columns, texts, strict=True):
                console.print(f" {column:<{max(map(len, columns))}}  {text}", soft_wrap=True)
        console.print()
    else:
        console.print(table)


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
