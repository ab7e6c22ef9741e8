"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2pnode.daemon.data_dir import DataDir, default_data_dir

F = TypeVar("F", bound=Callable[..., Any])


def _to_data_dir(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> DataDir:
    return DataDir(value or default_data_dir())


def data_dir_option(command: F) -> F:
    """Add `--data-dir`, passed on as a `DataDir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        callback=_to_data_dir,
        help="Where this node keeps its identity and experts.  [default: ~/.local/share/p2pnode]",
    )(command)


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)
