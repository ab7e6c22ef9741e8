"""`bench …`: measure this machine and this software."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.open_files import RESERVE, raise_open_files
from cli.options import defaulted, json_option
from p2pnode.config.experts import CODECS, Codec
from p2pnode.config.units import MIB

if TYPE_CHECKING:
    from cli.bench.figures import Figure

F = TypeVar("F", bound=Callable[..., Any])


def _rounds(default: int) -> Callable[[F], F]:
    told = "How often each figure is measured; medians count."
    return defaulted("--rounds", click.IntRange(1, 100), default, told)


def _hivemind(told: str) -> Callable[[F], F]:
    interpreter = click.Path(path_type=Path, exists=True, dir_okay=False, executable=True)
    return click.option("--hivemind", type=interpreter, metavar="PYTHON", help=told)


def _teller(as_json: bool) -> Callable[[str], None]:
    """Return what tells people how far a benchmark is."""
    from cli.output import print_note  # noqa: PLC0415  # `bench --help` stays quick

    return (lambda _text: None) if as_json else print_note


def _print(title: str, figures: "Sequence[Figure]", *, as_json: bool) -> None:
    from cli.bench.figures import print_figures  # noqa: PLC0415  # it loads rich

    print_figures(title, figures, as_json=as_json)


@click.group()
def bench() -> None:
    """Measure this machine and this software.

    Figures that have a baseline are ratios within one run: only those can be compared between
    machines, and between days.
    """


@bench.command()
@_rounds(7)
@defaulted("--peers", click.IntRange(2, 32), 4, "Real processes that average together.")
@defaulted(
    "--parameters", click.IntRange(1000, 1_000_000_000), 10_000_000, "Of each peer; float32."
)
@_hivemind("An interpreter that can import hivemind: its averager takes turns with ours.")
@json_option
def averaging(
    *, rounds: int, peers: int, parameters: int, hivemind: Path | None, as_json: bool
) -> None:
    """Measure averaging in a group of real processes on loopback.

    Only reducing is timed, from the moment at which the group is there to that at which the last
    peer has the result. Nothing leaves this machine.
    """
    from cli.bench.averaging import Plan, run_averaging  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(rounds=rounds, peers=peers, parameters=parameters, hivemind=hivemind)
    _print("Averaging, loopback TCP", run_averaging(plan, tell=_teller(as_json)), as_json=as_json)


@bench.command()
@defaulted("--daemons", click.IntRange(2, 256), 32, "Real processes; each needs about 60 MB.")
@defaulted(
    "--values",
    click.IntRange(1, 100_000),
    200,
    "Stored by daemons drawn at random, and found from others.",
)
@defaulted(
    "--hosts",
    click.IntRange(0, 64),
    2,
    "How many of the daemons host 16 experts each; those need about 350 MB.",
)
@defaulted("--seed", click.INT, 0, "Of what is drawn.")
@json_option
def dht(*, daemons: int, values: int, hosts: int, seed: int, as_json: bool) -> None:
    """Measure storing and finding in a DHT of real daemons on loopback.

    Nothing leaves this machine, and the daemons end with the command. All of them share its
    processors: in a DHT of as many machines, the network's round trips count instead.
    """
    if hosts >= daemons:
        raise click.UsageError("some of the daemons must not host, to look for the experts")
    from cli.bench.dht import Plan, run_dht  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(daemons=daemons, values=values, hosts=hosts, seed=seed)
    _print(
        f"DHT of {daemons} daemons, loopback TCP",
        run_dht(plan, tell=_teller(as_json)),
        as_json=as_json,
    )


@bench.command()
@_rounds(7)
@defaulted("--megabytes", click.IntRange(1, 4096), 128, "MiB of one transfer.")
@json_option
def relay(*, rounds: int, megabytes: int, as_json: bool) -> None:
    """Measure bytes that go through a relay, beside a direct connection.

    Source, relay and target are processes of their own on loopback, encrypted from end to end.
    What counts is the processor time of the busiest of them. Nothing leaves this machine.
    """
    from cli.bench.relay import Plan, run_relay  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(rounds=rounds, size=megabytes * MIB)
    _print("Through a relay, loopback TCP", run_relay(plan), as_json=as_json)


@bench.command()
@_rounds(5)
@defaulted(
    "--calls", click.IntRange(10, 100_000), 500, "Small calls, one after the other, in one round."
)
@defaulted("--seconds", click.FloatRange(0.1, 600.0), 3.0, "Of concurrent calls in one round.")
@defaulted("--callers", click.IntRange(1, 64), 16, "At once, each with an expert of its own.")
@defaulted(
    "--hidden-dim",
    click.IntRange(8, 16_384),
    1024,
    "Width of the experts; an `ffn` of 1024 has 100 MB of weights.",
)
@defaulted("--rows", click.IntRange(1, 16_384), 64, "Of a batch that is computed.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Of torch, for one operation, in hosts and here.  [as many as processors]",
)
@_hivemind("An interpreter that can import hivemind: the same calls are made there, in turn.")
@json_option
def rpc(
    *,
    rounds: int,
    calls: int,
    seconds: float,
    callers: int,
    hidden_dim: int,
    rows: int,
    threads: int | None,
    hivemind: Path | None,
    as_json: bool,
) -> None:
    """Measure calls of experts hosted by real daemons on loopback.

    The baselines are a TCP connection that only encrypts, the same experts in this process, and
    hivemind where an interpreter that has it is named. Nothing leaves this machine.
    """
    from cli.bench.rpc import Plan, run_rpc  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(
        rounds=rounds,
        calls=calls,
        seconds=seconds,
        callers=callers,
        hidden_dim=hidden_dim,
        rows=rows,
        threads=threads or os.cpu_count() or 1,
        hivemind=hivemind,
    )
    _print("Calls of experts, loopback TCP", run_rpc(plan, tell=_teller(as_json)), as_json=as_json)


@bench.command()
@_rounds(5)
@defaulted("--steps", click.IntRange(1, 1000), 2, "Of each side in a round.")
@defaulted("--peers", click.IntRange(2, 16), 2, "Real processes that share each batch.")
@defaulted("--hidden-dim", click.IntRange(1, 16384), 512, "Of the layer, an `ffn`.")
@defaulted("--batch", click.IntRange(1, 1_000_000), 4096, "Rows.")
@defaulted(
    "--codec", click.Choice(CODECS), "none", "How the weights' gradients travel to be added up."
)
@json_option
def split(
    *,
    rounds: int,
    steps: int,
    peers: int,
    hidden_dim: int,
    batch: int,
    codec: Codec,
    as_json: bool,
) -> None:
    """Measure a layer whose batches real processes share, beside the same layer in one process.

    All processes have one torch thread each, and share this machine's processors, so more peers
    than there are processors gain nothing. Nothing leaves this machine.
    """
    from cli.bench.split import Plan, run_split  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(
        rounds=rounds, steps=steps, peers=peers, hidden_dim=hidden_dim, batch=batch, codec=codec
    )
    _print("A split layer, loopback TCP", run_split(plan, tell=_teller(as_json)), as_json=as_json)


@bench.command()
@_rounds(7)
@defaulted("--megabytes", click.IntRange(1, 4096), 128, "MiB of one transfer.")
@defaulted("--pings", click.IntRange(1, 100_000), 300, "Round trips in one round.")
@defaulted("--dials", click.IntRange(1, 1000), 10, "Dials in one round.")
@defaulted(
    "--connections", click.IntRange(1, 10_000), 500, "Idle connections whose memory is counted."
)
@json_option
def stream(
    *, rounds: int, megabytes: int, pings: int, dials: int, connections: int, as_json: bool
) -> None:
    """Measure connections and streams over loopback TCP.

    The baselines are a TCP connection that only encrypts, and TCP alone. Nothing leaves this
    machine.
    """
    allowed = raise_open_files()
    if allowed < connections + RESERVE:
        raise click.UsageError(
            f"{connections} connections need {connections + RESERVE} open files, of which the "
            f"system allows {allowed}; raise that with `ulimit -n`, or give fewer --connections"
        )
    from cli.bench.stream import Plan, run_stream  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(
        rounds=rounds,
        size=megabytes * MIB,
        pings=pings,
        dials=dials,
        connections=connections,
    )
    _print("Streams, loopback TCP", run_stream(plan), as_json=as_json)


@bench.command()
@_rounds(5)
@defaulted("--megabytes", click.IntRange(1, 16_384), 100, "Millions of bytes of the weights.")
@defaulted(
    "--peers",
    click.IntRange(1, 64),
    8,
    "Processes that fetch at the same time; each needs about 250 MB.",
)
@defaulted(
    "--sources", click.IntRange(1, 8), 1, "Processes that have the weights in the beginning."
)
@defaulted("--codec", click.Choice(CODECS), "none", "In which the weights are.")
@defaulted(
    "--calls",
    click.IntRange(10, 100_000),
    300,
    "Small calls of a source in one round, without transfers.",
)
@defaulted(
    "--throttle",
    click.IntRange(1, 10_000),
    25,
    "MB/s of one more peer, beside which calls are measured, too.",
)
@json_option
def weights(
    *,
    rounds: int,
    megabytes: int,
    peers: int,
    sources: int,
    codec: Codec,
    calls: int,
    throttle: int,
    as_json: bool,
) -> None:
    """Measure how weights travel to many peers at once, over loopback TCP.

    All processes share this machine's processors and disk; the baseline is one plain copy between
    two of them. Nothing leaves this machine.
    """
    from cli.bench.weights import Plan, run_weights  # noqa: PLC0415  # `bench --help` stays quick

    plan = Plan(
        rounds=rounds,
        size=megabytes * 1_000_000,
        peers=peers,
        sources=sources,
        codec=codec,
        calls=calls,
        throttle=throttle * 1_000_000,
    )
    _print(
        f"{megabytes} MB of weights to {peers} peers",
        run_weights(plan, tell=_teller(as_json)),
        as_json=as_json,
    )
