"""`demo`: the command."""

from pathlib import Path

import click

from cli.demo.plan import DEFAULT_STEPS, Options
from cli.options import json_option
from p2pnode.errors import LocalError

_MIN_STEPS = 6  # a kill, a return, and a step or two before, between and after


@click.command()
@click.option(
    "--steps",
    type=click.IntRange(min=_MIN_STEPS),
    default=DEFAULT_STEPS,
    show_default=True,
    help="How long to train.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all chance."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-report"),
    show_default=True,
    help="Where report.json, report.png and the daemons' logs go.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the daemons keep their state.  [default: a temporary folder]",
)
@json_option
def demo(*, steps: int, seed: int, report: Path, data_dir: Path | None, as_json: bool) -> int:
    """Train on four local daemons, kill one, bring it back.

    Starts four daemons on this machine, each with a part of two mixture-of-experts layers, and
    trains a classifier of handwritten digits through them. After a third of the steps one daemon
    is killed; after two thirds a replacement continues from its checkpoints.
    """
    try:
        from cli.demo.runner import run_demo  # noqa: PLC0415  # `demo --help` need not load torch
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"matplotlib", "sklearn"}:
            raise
        raise LocalError(
            f"the demo needs {error.name}; install it with: pip install 'p2pnode[demo]'"
        ) from error
    options = Options(steps=steps, seed=seed, report=report, data_dir=data_dir, as_json=as_json)
    return run_demo(options)
