"""`simulate NAME`: run a scenario on a virtual network, from a seed."""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import click

from cli.options import json_option
from cli.simulation.progress import RunDisplay, SweepDisplay
from cli.simulation.results import (
    LOG_FILE,
    finish_run,
    finish_sweep,
    print_scenario,
    print_scenarios,
)
from p2pnode.errors import LocalError
from simulations.ray_engine import run_ray_sweep
from simulations.report import check_drawing
from simulations.runner import Plan, check, run_seed
from simulations.sweep import Result, cores, run_sweep

_MAX_SEEDS: Final = 10_000


class Seeds(click.ParamType[range]):
    """Seeds of a sweep, such as 0:20; the end is not among them."""

    name = "seeds"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """Read some."""
        found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", str(value))
        seeds = range(int(found[1]), int(found[2])) if found else range(0)
        if not 0 < len(seeds) <= _MAX_SEEDS:
            self.fail(f"{value!r} is not a range of seeds such as 0:20", param, ctx)
        return seeds


@click.command(epilog="docs/simulation.md tells how to write a scenario of your own.")
@click.argument("scenario", required=False, metavar="[NAME|FILE]")
@click.option("--list", "listing", is_flag=True, help="List the scenarios, or NAME's parameters.")
@click.option("--nodes", metavar="N", help="Short for --set nodes=N.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all chance.")
@click.option("--seeds", type=Seeds(), metavar="A:B", help="Sweep from A to below B.")
@click.option("--set", "assignments", multiple=True, metavar="PARAMETER=VALUE", help="Repeatable.")
@click.option("--fidelity", metavar="light|full", default="", help="By default the scenario's own.")
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to leave the report: JSON, CSV, plots, a page, and the event log.",
)
@click.option("--trace", is_flag=True, help="Log what every node does, too: much.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Seeds at once.  [all cores]")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where a sweep runs: on this machine's cores, or on a Ray cluster.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of the cluster.  [one of this machine]")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option
def simulate(
    *,
    scenario: str | None,
    listing: bool,
    nodes: str | None,
    seed: int,
    seeds: range | None,
    assignments: tuple[str, ...],
    fidelity: str,
    folder: Path | None,
    trace: bool,
    jobs: int | None,
    engine: str,
    ray_address: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a scenario: real nodes on a virtual network, under virtual time.

    The same scenario, parameters and seed give the same events in every run. The exit code is 1
    when a figure misses its goal. A FILE is a scenario of your own, in Python or TOML.
    """
    if listing:
        if scenario is None:
            print_scenarios(as_json=as_json)
        else:
            print_scenario(scenario, as_json=as_json)
        return 0
    if scenario is None:
        raise click.UsageError("name a scenario; `p2pnode simulate --list` shows them")
    if seeds is None and (jobs is not None or engine != "processes"):
        raise click.UsageError("--jobs and --engine are of sweeps: give --seeds, such as 0:20")
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address is of --engine ray")
    chosen = _read(assignments)
    if nodes is not None:
        chosen["nodes"] = nodes
    plan = Plan(scenario=scenario, chosen=chosen, seed=seed, fidelity=fidelity, trace=trace)
    check(plan)
    if folder is not None:
        check_drawing()
        _make(folder)
    if seeds is None:
        return _run(plan, folder, quiet=quiet or as_json, as_json=as_json)
    plans = [
        Plan(scenario=scenario, chosen=chosen, seed=each, fidelity=fidelity, trace=trace)
        for each in seeds
    ]
    title = f"{scenario}, seeds {seeds.start} to {seeds.stop - 1}"
    with SweepDisplay(title, len(plans), quiet=quiet or as_json) as display:
        if engine == "ray":
            results = run_ray_sweep(plans, address=ray_address, observer=display)
        else:
            results = _sweep(plans, folder, jobs or cores(), display)
    finish_sweep(results, _sweep_command(plan, seeds), folder, as_json=as_json)
    return 0 if all(each.is_good for each in results) else 1


def _run(plan: Plan, folder: Path | None, *, quiet: bool, as_json: bool) -> int:
    title = f"{plan.scenario}, seed {plan.seed}"
    with (
        _log_in(folder) as log_file,
        RunDisplay(title, quiet=quiet) as display,
        contextlib.redirect_stdout(sys.stderr),  # what a scenario prints is no result
    ):
        outcome = run_seed(plan, log_file=log_file, observer=display.receive, ends_process=True)
    finish_run(outcome, folder, as_json=as_json)
    return 0 if outcome.is_good else 1


def _sweep(
    plans: list[Plan], folder: Path | None, jobs: int, display: SweepDisplay
) -> list[Result]:
    if folder is None:
        return run_sweep(plans, jobs=jobs, observer=display)
    folders = {plan.seed: folder / f"seed-{plan.seed}" for plan in plans}
    for each in folders.values():
        each.mkdir(exist_ok=True)
    return run_sweep(
        plans,
        jobs=jobs,
        observer=display,
        log_path=lambda plan: folders[plan.seed] / LOG_FILE,
    )


@contextlib.contextmanager
def _log_in(folder: Path | None) -> Iterator[IO[bytes] | None]:
    if folder is None:
        yield None
        return
    with (folder / LOG_FILE).open("wb") as file:
        yield file


def _make(folder: Path) -> None:
    """Make the folder of a report before the run, which would be lost without it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"the report cannot be left in {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise LocalError(f"the report cannot be left in {folder}: nothing may be written there")


def _read(assignments: tuple[str, ...]) -> dict[str, str]:
    chosen = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes PARAMETER=VALUE, not {assignment!r}")
        chosen[name] = value
    return chosen


def _sweep_command(plan: Plan, seeds: range) -> str:
    words = shlex.split(plan.command)
    place = words.index("--seed")
    return shlex.join(
        [*words[:place], "--seeds", f"{seeds.start}:{seeds.stop}", *words[place + 2 :]]
    )
