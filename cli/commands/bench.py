"""`bench …`: measure this machine and this software."""

import os
from pathlib import Path

import click

from cli.open_files import RESERVE, raise_open_files
from cli.options import json_option
from p2pnode.config.experts import CODECS, Codec

_MIB = 1024 * 1024


@click.group()
def bench() -> None:
    """Measure this machine and this software.

    Figures that have a baseline are ratios within one run: only those can be compared between
    machines, and between days.
    """


@bench.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=7,
    show_default=True,
    help="How often each figure is measured; medians count.",
)
@click.option(
    "--peers",
    type=click.IntRange(2, 32),
    default=4,
    show_default=True,
    help="Real processes that average together.",
)
@click.option(
    "--parameters",
    type=click.IntRange(1000, 1_000_000_000),
    default=10_000_000,
    show_default=True,
    help="Of each peer; float32.",
)
@click.option(
    "--hivemind",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, executable=True),
    metavar="PYTHON",
    help="An interpreter that can import hivemind: its averager takes turns with ours.",
)
@json_option
def averaging(
    *, rounds: int, peers: int, parameters: int, hivemind: Path | None, as_json: bool
) -> None:
    """Measure averaging in a group of real processes on loopback.

    Only reducing is timed, from the moment at which the group is there to that at which the last
    peer has the result. Nothing leaves this machine.
    """
    from cli.bench.averaging import Plan, run_averaging  # noqa: PLC0415  # `bench --help` stays quick
    from cli.bench.figures import print_figures  # noqa: PLC0415
    from cli.output import print_note  # noqa: PLC0415

    plan = Plan(rounds=rounds, peers=peers, parameters=parameters, hivemind=hivemind)
    figures = run_averaging(plan, tell=(lambda _text: None) if as_json else print_note)
    print_figures("Averaging, loopback TCP", figures, as_json=as_json)


@bench.command()
@click.option(
    "--daemons",
    type=click.IntRange(2, 256),
    default=32,
    show_default=True,
    help="Real processes; each needs about 60 MB.",
)
@click.option(
    "--values",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="Stored by daemons drawn at random, and found from others.",
)
@click.option(
    "--hosts",
    type=click.IntRange(0, 64),
    default=2,
    show_default=True,
    help="How many of the daemons host 16 experts each; those need about 350 MB.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@json_option
def dht(*, daemons: int, values: int, hosts: int, seed: int, as_json: bool) -> None:
    """Measure storing and finding in a DHT of real daemons on loopback.

    Nothing leaves this machine, and the daemons end with the command. All of them share its
    processors: in a DHT of as many machines, the network's round trips count instead.
    """
    if hosts >= daemons:
        raise click.UsageError("some of the daemons must not host, to look for the experts")
    from cli.bench.dht import Plan, run_dht  # noqa: PLC0415  # `bench --help` stays quick
    from cli.bench.figures import print_figures  # noqa: PLC0415
    from cli.output import print_note  # noqa: PLC0415

    plan = Plan(daemons=daemons, values=values, hosts=hosts, seed=seed)
    figures = run_dht(plan, tell=(lambda _text: None) if as_json else print_note)
    print_figures(f"DHT of {daemons} daemons, loopback TCP", figures, as_json=as_json)


@bench.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="How often each figure is measured; medians count.",
)
@click.option(
    "--calls",
    type=click.IntRange(10, 100_000),
    default=500,
    show_default=True,
    help="Small calls, one after the other, in one round.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600.0),
    default=3.0,
    show_default=True,
    help="Of concurrent calls in one round.",
)
@click.option(
    "--callers",
    type=click.IntRange(1, 64),
    default=16,
    show_default=True,
    help="At once, each with an expert of its own.",
)
@click.option(
    "--hidden-dim",
    type=click.IntRange(8, 16_384),
    default=1024,
    show_default=True,
    help="Width of the experts; an `ffn` of 1024 has 100 MB of weights.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, 16_384),
    default=64,
    show_default=True,
    help="Of a batch that is computed.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Of torch, for one operation, in hosts and here.  [as many as processors]",
)
@click.option(
    "--hivemind",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, executable=True),
    metavar="PYTHON",
    help="An interpreter that can import hivemind: the same calls are made there, in turn.",
)
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
    from cli.bench.figures import print_figures  # noqa: PLC0415  # `bench --help` stays quick
    from cli.bench.rpc import Plan, run_rpc  # noqa: PLC0415
    from cli.output import print_note  # noqa: PLC0415

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
    figures = run_rpc(plan, tell=(lambda _text: None) if as_json else print_note)
    print_figures("Calls of experts, loopback TCP", figures, as_json=as_json)


@bench.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=7,
    show_default=True,
    help="How often each figure is measured; medians count.",
)
@click.option(
    "--megabytes",
    type=click.IntRange(1, 4096),
    default=128,
    show_default=True,
    help="MiB of one transfer.",
)
@click.option(
    "--pings",
    type=click.IntRange(1, 100_000),
    default=300,
    show_default=True,
    help="Round trips in one round.",
)
@click.option(
    "--dials",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Dials in one round.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 10_000),
    default=500,
    show_default=True,
    help="Idle connections whose memory is counted.",
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
    from cli.bench.figures import print_figures  # noqa: PLC0415  # `bench --help` stays quick
    from cli.bench.stream import Plan, run_stream  # noqa: PLC0415

    plan = Plan(
        rounds=rounds,
        size=megabytes * _MIB,
        pings=pings,
        dials=dials,
        connections=connections,
    )
    print_figures("Streams, loopback TCP", run_stream(plan), as_json=as_json)


@bench.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="How often each figure is measured; medians count.",
)
@click.option(
    "--megabytes",
    type=click.IntRange(1, 16_384),
    default=100,
    show_default=True,
    help="Millions of bytes of the weights.",
)
@click.option(
    "--peers",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Processes that fetch at the same time; each needs about 250 MB.",
)
@click.option(
    "--sources",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Processes that have the weights in the beginning.",
)
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    default="none",
    show_default=True,
    help="In which the weights are.",
)
@click.option(
    "--calls",
    type=click.IntRange(10, 100_000),
    default=300,
    show_default=True,
    help="Small calls of a source in one round, without transfers.",
)
@click.option(
    "--throttle",
    type=click.IntRange(1, 10_000),
    default=25,
    show_default=True,
    help="MB/s of one more peer, beside which calls are measured, too.",
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
    from cli.bench.figures import print_figures  # noqa: PLC0415  # `bench --help` stays quick
    from cli.bench.weights import Plan, run_weights  # noqa: PLC0415
    from cli.output import print_note  # noqa: PLC0415

    plan = Plan(
        rounds=rounds,
        size=megabytes * 1_000_000,
        peers=peers,
        sources=sources,
        codec=codec,
        calls=calls,
        throttle=throttle * 1_000_000,
    )
    figures = run_weights(plan, tell=(lambda _text: None) if as_json else print_note)
    print_figures(f"{megabytes} MB of weights to {peers} peers", figures, as_json=as_json)
