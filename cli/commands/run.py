"""`run create | invite | inspect`: training runs and who may take part in them."""

import click

from cli.commands.inspect import describe_run
from cli.options import Duration, data_dir_option, json_option
from cli.output import print_facts, print_json, print_note
from p2pnode.clock import wall_time
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore


@click.group()
def run() -> None:
    """Create a training run, invite others to it, read invites."""


@run.command()
@click.argument("name")
@data_dir_option
@json_option
def create(name: str, data_dir: DataDir, as_json: bool) -> None:
    """Create a run.

    Its key stays on this node, which becomes the first member of the run NAME.
    """
    membership = RunStore(data_dir).create(name)
    if as_json:
        print_json(membership.summary())
        return
    print_note(f"created run {name} with id {membership.run_id}")
    print_note(f"invite others with: p2pnode run invite {name}")


@run.command()
@click.argument("name")
@click.option(
    "--scope",
    default="host,train",
    show_default=True,
    help="What the holder may do: host, train, or both.",
)
@click.option("--expires", default="7d", show_default=True, type=Duration(), help="For how long.")
@click.option("--peer", help="Only for the node with this peer id.")
@data_dir_option
@json_option
def invite(
    *, name: str, scope: str, expires: float, peer: str | None, data_dir: DataDir, as_json: bool
) -> None:
    """Print an invite to a run.

    Whoever holds the invite may use it until it expires: hand it over in private.
    """
    scopes = [each.strip() for each in scope.split(",") if each.strip()]
    expires_at = wall_time() + expires
    text = RunStore(data_dir).invite(name, scopes=scopes, expires_at=expires_at, peer=peer)
    if as_json:
        print_json({"invite": text, "scopes": scopes, "expires": expires_at})
    else:
        click.echo(text)


@run.command()
@click.argument("name_or_invite")
@data_dir_option
@json_option
def inspect(name_or_invite: str, data_dir: DataDir, as_json: bool) -> None:
    """Show what an invite, or our membership of a run, allows."""
    summary = RunStore(data_dir).inspect(name_or_invite)
    if as_json:
        print_json(summary)
        return
    print_facts(
        f"Run {summary['run']}",
        {"id": summary["run_id"], "allows": describe_run(summary), "only for": summary.get("peer")},
    )
