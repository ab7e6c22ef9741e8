"""`train-lm`: the command."""

from pathlib import Path
from typing import Any

import click

from cli.options import defaulted, json_option
from cli.train_lm.plan import LEARNING_RATE, MODEL, RUN, Options
from p2pnode.config.experts import CODECS


@click.command(name="train-lm")
@click.option("--bootstrap", multiple=True, metavar="ADDR", help="A node of the run. Repeatable.")
@click.option("--run", default=RUN, show_default=True, metavar="NAME", help="The training run.")
@click.option("--invite", metavar="TOKEN", help="What the run's owner gave you.")
@click.option(
    "--demo",
    is_flag=True,
    help="Start three hosts on this machine instead, and kill one half-way.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for report.json, and for the logs of the demo's hosts.",
)
@click.option(
    "--model",
    default=MODEL,
    show_default=True,
    help="As the hosts have it: tiny, small, medium, or a byte-level model's directory.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--text",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What to read.  [default: Python's own documentation]",
)
@click.option(
    "--ends",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where embedding and head are kept, to go on with them the next time.",
)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True)
@defaulted("--batch", click.IntRange(min=1), 16, "Rows of a step.")
@defaulted("--context", click.IntRange(min=2), 128, "Bytes of a row.")
@defaulted(
    "--micro-batches",
    click.IntRange(min=1),
    1,
    "Parts of a batch, in flight at once; each steps the blocks anew.",
)
@defaulted(
    "--learning-rate",
    click.FloatRange(min=0),
    LEARNING_RATE,
    "Of embedding and head; the blocks' hosts have their own.",
)
@defaulted(
    "--codec",
    click.Choice(CODECS),
    "none",
    "How activations and gradients travel; the others take less of slow links.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--prompt", default="The ", show_default=True, help="What the sample at the end goes on from."
)
@defaulted("--length", click.IntRange(min=0), 200, "Bytes of the sample.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True)
@json_option
def train_lm(**given: Any) -> int:
    """Train a language model, byte by byte, through blocks that others host.

    This process keeps the embedding and the head. A host that dies is replaced by another one of
    the same blocks, from what this process has kept. At the end it generates a sample of text.

    \b
    p2pnode train-lm --demo
    p2pnode train-lm --bootstrap ADDR --run lm --invite TOKEN --ends ends.safetensors
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    options = Options(**given)
    if options.demo and (options.bootstrap or options.invite or options.model != MODEL):
        raise click.UsageError("--demo has hosts, a run and a model of its own; name no others")
    if not options.demo and not options.bootstrap:
        raise click.UsageError("name a node of the run with --bootstrap, or take --demo")
    if not options.prompt:
        raise click.UsageError("the sample needs a --prompt of one byte or more")
    from cli.train_lm.runner import run  # noqa: PLC0415  # --help need not load torch

    return run(options)
