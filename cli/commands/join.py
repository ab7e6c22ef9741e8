"""`join`: start the daemon."""

from pathlib import Path
from typing import Any

import click

from cli.options import data_dir_of, json_option, node_options, settings_from


@click.command()
@node_options
@json_option
def join(
    *,
    as_json: bool,
    assignments: tuple[str, ...],
    config_file: Path | None,
    log_level: str,
    **flags: Any,
) -> None:
    """Start this node's daemon, in the foreground, and join the network.

    Without --bootstrap it is the first node of a new network; it prints the line that lets the
    next machine join.

    \b
    p2pnode join
    p2pnode join --bootstrap /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW…
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    settings = settings_from(flags, assignments, config_file)
    from cli.daemon import run_daemon  # noqa: PLC0415  # `join --help` need not load the node

    run_daemon(data_dir_of(settings), settings, log_level=log_level, as_json=as_json)
