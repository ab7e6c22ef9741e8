"""`node doctor`: what is the matter with this node, and what to do about it."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from cli.options import data_dir_option, json_option
from cli.output import as_one_line, print_json
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.doctor.findings import Level
from p2pnode.errors import DaemonNotRunningError

TIMEOUT: Final = 90.0  # for a look-up that takes as long as it may, and the peers' clocks
EXIT_TO_DO: Final = 3  # something needs doing
_MARKS: Final = {
    Level.PROBLEM: ("✗", "red"),
    Level.WARNING: ("!", "yellow"),
    Level.NOTE: ("·", "cyan"),
    Level.GOOD: ("✓", "green"),
}


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: DataDir, as_json: bool) -> None:
    """Look at the running daemon and say in plain words what is wrong, and what to do.

    It asks peers for the time and looks something up, which takes a few seconds. The exit code is 0
    when nothing needs doing, and 3 when something does.
    """
    try:
        found = call_daemon(data_dir.control_socket, "doctor", timeout=TIMEOUT)
    except DaemonNotRunningError as error:
        found = {"findings": [_absence(error)], "facts": None}
    findings = found["findings"]
    level = max((_level_of(each) for each in findings), default=Level.GOOD)
    if as_json:
        print_json({"needs_doing": level >= Level.WARNING, **found})
    else:
        _print(findings)
        if found["facts"] is not None:
            _print_addresses(found["facts"])
    if level >= Level.WARNING:
        sys.exit(EXIT_TO_DO)


def _absence(error: DaemonNotRunningError) -> dict[str, str]:
    return {
        "level": Level.PROBLEM.name.lower(),
        "subject": "daemon",
        "says": f"{error}."[:1].upper() + f"{error}."[1:],
        "advice": "",
    }


def _level_of(finding: Mapping[str, Any]) -> Level:
    return Level[finding["level"].upper()]


def _print(findings: Iterable[Mapping[str, Any]]) -> None:
    for each in findings:
        mark, colour = _MARKS[_level_of(each)]
        subject = click.style(f"{each['subject']:<14}", bold=True)
        click.echo(f"{click.style(mark, fg=colour)} {subject} {as_one_line(each['says'])}")
        if each["advice"]:
            click.echo(f"{'':16} → {as_one_line(each['advice'])}")


def _print_addresses(facts: Mapping[str, Any]) -> None:
    click.echo()
    click.echo(click.style("Addresses that others are told", bold=True))
    for address in facts["told"]:
        click.echo(f"  {address}")
    probes = facts["reachability"]["last"]
    if probes:
        click.echo(click.style("Who was asked whether it reaches this node", bold=True))
        for each in probes:
            click.echo(f"  {as_one_line(each)}")
    odd = [each for each in facts["ways"] if each["note"] or each["way"] != "direct"]
    if odd:
        click.echo(
            click.style("Peers that are not connected directly, or were not at first", bold=True)
        )
        for each in odd:
            note = f": {as_one_line(each['note'])}" if each["note"] else ""
            click.echo(f"  {each['peer_id']} is {each['way']}, for {each['age']:.0f} s{note}")
