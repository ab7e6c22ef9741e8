"""`run create | invite | describe | inspect`: training runs, and who may take part in them."""

from typing import Any

import click

from cli.commands.inspect import describe_run
from cli.options import Duration, data_dir_option, json_option
from cli.output import count, print_facts, print_json, print_note
from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import DaemonNotRunningError
from p2pnode.swarm.description import OF_BLOCK, SHARED, SHARED_ROUNDS, Kind, Option, RunDescription


@click.group()
def run() -> None:
    """Create a training run, invite others to it, say what it consists of, read invites."""


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
@click.argument("name")
@click.option(
    "--layers", multiple=True, metavar="PATTERN", help="All blocks of its model: 'blocks.[0:12]'."
)
@click.option(
    "--experts", multiple=True, metavar="PATTERN", help="All its experts: 'ffn.[0:4].[0:16]'."
)
@click.option("--model", metavar="NAME", help="Whose blocks the layers are: tiny, small, medium.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of [hosting] that all hosts use: learning_rate=3e-4. Repeatable.",
)
@click.option(
    "--unset", multiple=True, metavar="NAME", help="Leave a setting to the hosts again. Repeatable."
)
@data_dir_option
@json_option
def describe(
    *,
    name: str,
    layers: tuple[str, ...],
    experts: tuple[str, ...],
    model: str | None,
    assignments: tuple[str, ...],
    unset: tuple[str, ...],
    data_dir: DataDir,
    as_json: bool,
) -> None:
    """Say what a run of yours consists of, and how it is trained; or show what was said.

    Whoever hosts in it then uses these settings, and can let his node choose what to host:

    \b
    p2pnode run describe lm --layers 'blocks.[0:12]' --model tiny --set learning_rate=3e-4
    p2pnode host --run lm --auto --invite TOKEN --bootstrap ADDR

    A setting behind a block's name counts for that block alone: --set wide:hidden_dim=1024.
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    if layers and experts:
        raise click.UsageError("a run consists of --layers or of --experts, not of both")
    store = RunStore(data_dir)
    options = _options(model, assignments, unset)
    if not (layers or experts or options):
        _show(store.description(name), None, as_json=as_json, name=name)
        return
    kind = Kind.LAYERS if layers else Kind.EXPERTS if experts else None
    said = store.describe(
        name, kind=kind, patterns=layers or experts, options=options, now=wall_time()
    )
    try:
        stored = int(call_daemon(data_dir.control_socket, "run.publish", run=name)["stored"])
    except DaemonNotRunningError:
        stored = None
    _show(said, stored, as_json=as_json, name=name)
    if stored is None and not as_json:
        print_note("your daemon publishes it as soon as it runs")


def _options(
    model: str | None, assignments: tuple[str, ...], unset: tuple[str, ...]
) -> dict[str, Option | None]:
    """Read the settings that all hosts are to use; None for those that are taken back."""
    texts = {} if model is None else {"model": model}
    for assignment in assignments:
        setting, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, not {assignment!r}")
        texts[setting] = value
    for setting in (*texts, *unset):
        block, _, name = setting.rpartition(OF_BLOCK)
        if name not in (SHARED if block else SHARED + SHARED_ROUNDS):
            known = ", ".join(SHARED + SHARED_ROUNDS)
            raise click.UsageError(
                f"{setting!r} is no setting that all members must agree on; those are {known}"
            )
    # What counts for one block is checked together with what counts for all.
    by_block: dict[str, dict[str, str]] = {}
    for setting in texts:
        block, _, name = setting.rpartition(OF_BLOCK)
        by_block.setdefault(block, {})[name] = setting
    found: dict[str, Option | None] = {}
    for block in sorted(by_block):
        by_section: dict[str, dict[str, str]] = {"hosting": {}, "rounds": {}}
        chosen = {**by_block.get("", {}), **by_block[block]}
        for name, setting in chosen.items():
            section, _, option = name.rpartition(".")
            by_section[section or "hosting"][option] = texts[setting]
        checked = Settings.load(environ={}, texts=by_section)
        for name, setting in by_block[block].items():
            section, _, option = name.rpartition(".")
            found[setting] = getattr(getattr(checked, section or "hosting"), option)
    return found | dict.fromkeys(unset)


def _show(
    description: RunDescription | None, stored: int | None, *, as_json: bool, name: str
) -> None:
    facts: dict[str, Any] = {"kind": None, "patterns": [], "options": {}}
    if description is not None:
        facts = {
            "kind": str(description.kind),
            "patterns": list(description.patterns),
            "options": dict(description.options),
        }
    if as_json:
        print_json({"run": name, **facts, "stored": stored})
        return
    rows = {str(facts["kind"] or "consists of"): "\n".join(facts["patterns"]) or "not said yet"}
    settings = {each: str(value) for each, value in facts["options"].items()}
    print_facts(f"Run {name}", rows | settings | {"stored at": stored and count(stored, "peer")})


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
