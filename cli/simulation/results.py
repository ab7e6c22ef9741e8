"""What simulations print in the end, and the folders they leave."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cli.output import count, print_facts, print_json, print_line, print_note, print_table
from cli.simulation.progress import duration
from simulations.catalogue import find, names
from simulations.parameters import as_text
from simulations.report import Figure, Goal, Report, RunFacts, merge, write_report
from simulations.report.document import document_of
from simulations.runner import Outcome
from simulations.sweep import Result

LOG_FILE: Final = "events.jsonl"


def print_scenarios(*, as_json: bool) -> None:
    """List the scenarios that ship."""
    scenarios = [find(name) for name in names()]
    if as_json:
        for each in scenarios:
            print_json(
                {
                    "name": each.name,
                    "summary": each.summary,
                    "fidelities": list(each.fidelities),
                    "parameters": {
                        name: {
                            "default": parameter.default,
                            "unit": parameter.unit,
                            "help": parameter.help,
                        }
                        for name, parameter in each.parameters.items()
                    },
                }
            )
        return
    print_table(
        "Scenarios",
        ("name", "what it shows", "parameters"),
        [(each.name, each.summary, _briefly(list(each.parameters))) for each in scenarios],
    )
    print_note("All about one of them: p2pnode simulate --list NAME")


def print_scenario(reference: str, *, as_json: bool) -> None:
    """Describe one scenario and its parameters.

    Raises:
        ScenarioError: there is none of that name.
    """
    scenario = find(reference)
    rows = [
        (name, as_text(each.default), each.unit or "", each.bounds, each.help)
        for name, each in scenario.parameters.items()
    ]
    if as_json:
        columns = ("name", "default", "unit", "bounds", "help")
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
        return
    print_table(
        f"{scenario.name}: {scenario.summary}",
        ("parameter", "default", "unit", "may be", "what it does"),
        rows,
    )
    print_note(f"Fidelities: {', '.join(scenario.fidelities)}. Set one with --set NAME=VALUE.")


def finish_run(outcome: Outcome, folder: Path | None, *, as_json: bool) -> None:
    """Print what came of one run, and write its report.

    Raises:
        LocalError: the report cannot be drawn.
    """
    if folder is not None:
        write_report(outcome.report, outcome.facts, folder)
    if as_json:
        print_json(document_of(outcome.report, outcome.facts))
        return
    facts = outcome.facts
    _print_report(outcome.report, f"{facts.scenario}, seed {facts.seeds[0]}, {facts.fidelity}")
    _print_speed(facts, outcome.steps)
    if folder is not None:
        print_note(f"The report is in {folder / 'index.html'}, the event log in {LOG_FILE} there.")
    if outcome.report.missed:
        print_note(f"Goals missed. To see it again: {facts.command}")


def finish_sweep(
    results: Sequence[Result], command: str, folder: Path | None, *, as_json: bool
) -> None:
    """Print what came of all seeds, and write the report of all and of each.

    Raises:
        LocalError: a report cannot be drawn.
    """
    if as_json:
        for result in results:
            print_json(_result_as_json(result))
    outcomes = [each.outcome for each in results if each.outcome is not None]
    if outcomes:
        seeds = [each.facts.seeds[0] for each in outcomes]
        report, facts = merge([each.report for each in outcomes], seeds), _merge(outcomes, command)
        for failed in [each for each in results if each.outcome is None]:
            report.note(f"Seed {failed.plan.seed} is not among these: it {_fault(failed)}")
        if folder is not None:
            write_report(report, facts, folder)
            for seed, each in zip(seeds, outcomes, strict=True):
                write_report(each.report, each.facts, folder / f"seed-{seed}")
        if as_json:
            print_json(document_of(report, facts))
        else:
            _print_report(report, f"{facts.scenario}, {count(len(seeds), 'seed')}")
            _print_speed(facts, sum(each.steps for each in outcomes))
            if folder is not None:
                print_note(f"The report is in {folder / 'index.html'}; those of the seeds below.")
    if not as_json:
        _tell_faults(results)


def _tell_faults(results: Sequence[Result]) -> None:
    for result in results:
        if not result.is_good:
            print_note(f"seed {result.plan.seed} {_fault(result)}")
            print_note(f"  to see it again: {result.plan.command}")


def _result_as_json(result: Result) -> dict[str, Any]:
    if result.outcome is not None:
        return document_of(result.outcome.report, result.outcome.facts)
    return {
        "event": "failed",
        "seed": result.plan.seed,
        "message": result.failure,
        "command": result.plan.command,
    }


def _fault(result: Result) -> str:
    if result.outcome is None:
        return f"failed: {result.failure}"
    return f"misses its goal of {', '.join(each.name for each in result.outcome.report.missed)}"


def _merge(outcomes: Sequence[Outcome], command: str) -> RunFacts:
    facts = [each.facts for each in outcomes]
    return replace(
        facts[0],
        seeds=tuple(seed for each in facts for seed in each.seeds),
        command=command,
        log_digest=tuple(digest for each in facts for digest in each.log_digest),
        events=sum(each.events for each in facts),
        virtual_seconds=sum(each.virtual_seconds for each in facts),
        real_seconds=sum(each.real_seconds for each in facts),
    )


def _print_report(report: Report, title: str) -> None:
    figures = list(report.figures.values())
    rows: list[tuple[str | None, ...]]
    columns: tuple[str, ...]
    if any(each.spread is not None for each in figures):
        columns = ("figure", "mean", "min", "max", "unit", "goal", "")
        rows = [_spread_row(each) for each in figures]
    else:
        columns = ("figure", "value", "unit", "goal", "")
        rows = [
            (each.name, _number(each.value), each.unit, _goal(each.goal), _met(each.met))
            for each in figures
        ]
    print_table(title, columns, rows)
    for table in report.tables.values():
        if table.name != "figures by seed":
            print_table(
                table.name,
                [str(column) for column in table.columns],
                [[_cell(cell) for cell in row] for row in table.rows],
            )
    for note in report.notes:
        print_line(note, sys.stdout)


def _spread_row(figure: Figure) -> tuple[str | None, ...]:
    low = figure.spread.low if figure.spread else None
    high = figure.spread.high if figure.spread else None
    return (
        figure.name,
        _number(figure.value),
        _number(low),
        _number(high),
        figure.unit,
        _goal(figure.goal),
        _met(figure.met),
    )


def _print_speed(facts: RunFacts, steps: int) -> None:
    ratio = facts.virtual_seconds / facts.real_seconds
    print_facts(
        "The run",
        {
            "simulated": f"{duration(facts.virtual_seconds)} in {duration(facts.real_seconds)}, "
            f"{ratio:.1f} x real time",
            "events": f"{steps:,}, {steps / facts.real_seconds:,.0f} a second",
            "event log": f"{facts.events:,} lines, SHA-256 {facts.log_digest[0]}"
            if len(facts.seeds) == 1
            else f"{facts.events:,} lines",
        },
    )


def _briefly(parameters: Sequence[str]) -> str:
    """Name the groups of parameters once: `nodes, network.*`."""
    return ", ".join(
        dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in parameters)
    )


def _number(value: float | None) -> str | None:
    """Write a number with five digits that count."""
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.5g}"


def _cell(cell: bool | float | str | None) -> str | None:
    if isinstance(cell, bool | str) or cell is None:
        return None if cell is None else str(cell)
    return _number(cell)


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return ""
    return f"{'≥' if goal.comparison == '>=' else '≤'} {goal.value:g}"


def _met(met: bool | None) -> str:
    return {True: "met", False: "missed", None: ""}[met]
