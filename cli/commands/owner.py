"""`pause` and `resume`: the machine's owner comes first."""

from typing import Any

import click

from cli.commands.inspect import describe_owner
from cli.options import Duration, data_dir_option, json_option
from cli.output import print_json, print_note
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir


@click.command()
@click.option(
    "--for",
    "seconds",
    type=Duration(),
    metavar="TIME",
    help="Go on by itself after a time such as 90m or 2h.",
)
@data_dir_option
@json_option
def pause(seconds: float | None, data_dir: DataDir, as_json: bool) -> None:
    """Let the running daemon stand aside: it takes no calls until `p2pnode resume`.

    Its experts are withdrawn, calls under way are finished, and a GPU's memory is given back. The
    node stays in the network, and its connections stay open.
    """
    _report(call_daemon(data_dir.control_socket, "pause", seconds=seconds), as_json=as_json)


@click.command()
@data_dir_option
@json_option
def resume(data_dir: DataDir, as_json: bool) -> None:
    """Let the running daemon take calls again, whatever paused it.

    Quiet hours are overridden until they end, and other programs until they are done.
    """
    _report(call_daemon(data_dir.control_socket, "resume"), as_json=as_json)


def _report(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_note(f"the daemon takes calls: {describe_owner(found)}")
