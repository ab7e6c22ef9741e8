"""`host`: host experts, in the running daemon or in a new one."""

import dataclasses
from pathlib import Path
from typing import Any, Final

import click

from cli.options import data_dir_of, json_option, node_options, settings_from
from cli.output import count, print_event, print_note
from p2pnode.config import HostingSettings, Settings
from p2pnode.config.experts import ALL_BLOCKS, layers_by_block
from p2pnode.daemon.control.client import call_daemon
from p2pnode.errors import DaemonNotRunningError
from p2pnode.models.config import PRESETS

START_TIMEOUT: Final = 300.0  # importing torch and building many experts on a slow disk


@click.command()
@node_options
@json_option
def host(
    *,
    as_json: bool,
    assignments: tuple[str, ...],
    config_file: Path | None,
    log_level: str,
    **flags: Any,
) -> None:
    """Host experts: asks the running daemon of the data directory, or starts one.

    Experts are named run/block.i.j, and [a:b] stands for the coordinates from a up to, but not
    including, b. Layers are blocks of a language model: one that begins with fresh weights, or one
    whose weights are in a directory in Hugging Face's format. With --auto, the node hosts what the
    run needs most, and moves when that is worth it.

    \b
    p2pnode host --experts 'digits/ffn0.[0:4].[0:4]' --bootstrap ADDR --invite TOKEN
    p2pnode host --layers 'lm/blocks.[0:6]' --model tiny --bootstrap ADDR --invite TOKEN
    p2pnode host --run lm --auto --bootstrap ADDR --invite TOKEN
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    settings = settings_from(flags, assignments, config_file)
    if not (settings.node.experts or settings.node.layers or settings.placement.auto):
        raise click.UsageError(
            "say what to host, as in --experts 'digits/ffn0.[0:4].[0:4]' or --layers"
            " 'lm/blocks.[0:6]' --model tiny, or let the node choose, as in --run lm --auto"
        )
    settings = settings.replace(hosting=absolute(settings.hosting))
    data_dir = data_dir_of(settings)
    try:
        added = call_daemon(
            data_dir.control_socket, "host", timeout=START_TIMEOUT, **changed(settings)
        )
    except DaemonNotRunningError:
        from cli.daemon import run_daemon  # noqa: PLC0415  # `host --help` need not load the node

        run_daemon(data_dir, settings, log_level=log_level, as_json=as_json)
        return
    if as_json:
        print_event("hosting", experts=added)
    else:
        restored = sum(expert["restored"] for expert in added)
        more = count(len(added), "more expert")
        print_note(f"the running daemon hosts {more}, {restored} restored")


def absolute(hosting: HostingSettings) -> dict[str, Any]:
    """Return the settings that name files, which a daemon in another directory finds, too."""
    found = {}
    if hosting.model not in {"", *PRESETS}:
        found["model"] = str(Path(hosting.model).expanduser().resolve())
    if ".py:" in hosting.layer:
        layers = []
        for block, layer in layers_by_block(hosting.layer).items():
            source, colon, name = layer.rpartition(":")
            if source.endswith(".py"):
                source = str(Path(source).expanduser().resolve())
            layers.append(("" if block == ALL_BLOCKS else f"{block}=") + source + colon + name)
        found["layer"] = ",".join(layers)
    return found


def changed(settings: Settings) -> dict[str, Any]:
    """Return the sections that a flag may change, without their default values.

    A running daemon takes some of them over, and refuses the others.
    """
    defaults = Settings()
    found = {}
    for section in ("node", "hosting", "placement", "owner", "limits", "metrics"):
        values = dataclasses.asdict(getattr(settings, section))
        usual = dataclasses.asdict(getattr(defaults, section))
        found[section] = {name: value for name, value in values.items() if value != usual[name]}
    found["node"].pop("data_dir", None)  # how it was found
    return found
