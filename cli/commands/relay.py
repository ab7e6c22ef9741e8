"""`relay`: a daemon that carries connections for nodes that cannot be dialled."""

from pathlib import Path
from typing import Any

import click

from cli.options import Size, config_options, data_dir_of, json_option, settings_from


@click.command()
@click.option(
    "--unlimited",
    is_flag=True,
    help="Carry training, too: connections of any size that last as long as they are used. "
    "Without it, each carries 128 KiB for two minutes, enough for two nodes to find a direct way.",
)
@click.option(
    "--max-rate",
    type=Size(),
    metavar="SIZE",
    help="Bytes a second that all connections together may take, such as 500K or 10M.",
)
@click.option(
    "--listen",
    "node__listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Where to listen; /ws behind it for WebSocket.  [/ip4/0.0.0.0/tcp/4001] Repeatable.",
)
@click.option(
    "--announce",
    "node__announce",
    multiple=True,
    metavar="MULTIADDR",
    help="Told to others instead of --listen. Repeatable.",
)
@click.option(
    "--bootstrap",
    "node__bootstrap",
    multiple=True,
    metavar="ADDR",
    help="A node to join through: /ip4/…/p2p/… Repeatable.",
)
@click.option(
    "--data-dir",
    "node__data_dir",
    metavar="DIR",
    help="Where this node keeps its identity.  [~/.local/share/p2pnode]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning"]),
    default="info",
    show_default=True,
    help="Which events the daemon reports.",
)
@config_options
@json_option
def relay(
    *,
    unlimited: bool,
    max_rate: int | None,
    as_json: bool,
    assignments: tuple[str, ...],
    config_file: Path | None,
    log_level: str,
    **flags: Any,
) -> None:
    """Run a relay: it lets nodes behind routers be reached.

    Run it where others can connect to it, such as on a rented server. Nodes that nobody can dial
    keep a connection to it, and others reach them through it. What it carries is encrypted from
    end to end, so the relay cannot read it. The relay hosts no experts; it stores its share of the
    network's directory.

    \b
    p2pnode relay
    p2pnode relay --unlimited --max-rate 10M

    A node uses it with:

    \b
    p2pnode join --set relay.relays=/ip4/203.0.113.5/tcp/4001/p2p/12D3KooW…
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    settings = settings_from(flags, assignments, config_file)
    changes: dict[str, Any] = {"server": "always", "client": "never"}
    if unlimited:
        changes |= {"circuit_bytes": 0, "circuit_seconds": 0}
    if max_rate is not None:
        changes["max_rate"] = max_rate
    settings = settings.replace(relay=changes)
    from cli.daemon import run_daemon  # noqa: PLC0415  # `relay --help` need not load the node

    run_daemon(data_dir_of(settings), settings, log_level=log_level, as_json=as_json)
