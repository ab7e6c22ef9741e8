"""`report.json`: a report and the facts of its run, to plain JSON and back.

The document is one object:

    schema    the name of this form, `SCHEMA`; it changes when a reader of the old one would err
    run       the facts of the run: see `RunFacts`, one member for each attribute
    figures   [{name, value, unit, goal: {comparison, value} | null, met, detail,
              spread: {values, low, high, deviation} | null}]
    series    [{name, label, of, style, x: {label, unit, values}, y: {label, unit, values},
              band: {low, high} | null}]
    tables    [{name, caption, columns: [{label, unit}], rows: [[cell, ...]]}]
    plots     [{name, caption, panels: [{title, series}], log_x, log_y, marks: [[at, label]],
              y_from, y_to}]
    notes     [paragraph, ...]

All members are always there, lists keep their order, and numbers that could not be measured are
null. `report_of` reads no more and no less than this.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, get_args

from simulations.report.data import (
    Axis,
    Comparison,
    Figure,
    Goal,
    Panel,
    Plot,
    Report,
    RunFacts,
    Series,
    Spread,
    Table,
)

SCHEMA: Final = "p2pnode-simulation-report/1"


def document_of(report: Report, facts: RunFacts) -> dict[str, Any]:
    """Return the document, of JSON's own types."""
    return {
        "schema": SCHEMA,
        "run": {
            "scenario": facts.scenario,
            "summary": facts.summary,
            "parameters": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in facts.parameters.items()
            },
            "changed": list(facts.changed),
            "seeds": list(facts.seeds),
            "fidelity": facts.fidelity,
            "command": facts.command,
            "versions": dict(facts.versions),
            "log_digest": list(facts.log_digest),
            "events": facts.events,
            "virtual_seconds": facts.virtual_seconds,
            "real_seconds": facts.real_seconds,
        },
        "figures": [_figure(each) for each in report.figures.values()],
        "series": [_series(each) for each in report.all_series.values()],
        "tables": [
            {
                "name": each.name,
                "caption": each.caption,
                "columns": [_axis(column) for column in each.columns],
                "rows": [list(row) for row in each.rows],
            }
            for each in report.tables.values()
        ],
        "plots": [
            {
                "name": each.name,
                "caption": each.caption,
                "panels": [{"title": p.title, "series": list(p.series)} for p in each.panels],
                "log_x": each.log_x,
                "log_y": each.log_y,
                "marks": [list(mark) for mark in each.marks],
                "y_from": each.y_from,
                "y_to": each.y_to,
            }
            for each in report.plots.values()
        ],
        "notes": list(report.notes),
    }


def dump(report: Report, facts: RunFacts) -> str:
    """Return the document as text, indented, with a line break at its end."""
    return json.dumps(document_of(report, facts), indent=2, allow_nan=False) + "\n"


def load(text: str) -> tuple[Report, RunFacts]:
    """Read the text of a `report.json`.

    Raises:
        ValueError: it is not JSON, or not such a document.
    """
    return report_of(json.loads(text))


def report_of(document: Mapping[str, Any]) -> tuple[Report, RunFacts]:
    """Read a document.

    Raises:
        ValueError: it is of another form, or something is missing or does not fit together.
    """
    try:
        if document["schema"] != SCHEMA:
            raise ValueError(f"this report is of the form {document['schema']}, not {SCHEMA}")
        return _report_of(document), _facts_of(document["run"])
    except KeyError as error:
        raise ValueError(f"the report lacks {error}") from error
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the report has a value of a wrong type: {error}") from error


# --- to JSON ------------------------------------------------------------------------------------


def _figure(figure: Figure) -> dict[str, Any]:
    goal, spread = figure.goal, figure.spread
    return {
        "name": figure.name,
        "value": figure.value,
        "unit": figure.unit,
        "goal": goal and {"comparison": goal.comparison, "value": goal.value},
        "met": figure.met,
        "detail": figure.detail,
        "spread": spread
        and {
            "values": list(spread.values),
            "low": spread.low,
            "high": spread.high,
            "deviation": spread.deviation,
        },
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "label": series.label,
        "of": series.of,
        "style": series.style,
        "x": {**_axis(series.x_axis), "values": list(series.x)},
        "y": {**_axis(series.y_axis), "values": list(series.y)},
        "band": {"low": list(series.low), "high": list(series.high)} if series.low else None,
    }


def _axis(axis: Axis) -> dict[str, str]:
    return {"label": axis.label, "unit": axis.unit}


# --- and back -----------------------------------------------------------------------------------


def _facts_of(run: Mapping[str, Any]) -> RunFacts:
    return RunFacts(
        scenario=run["scenario"],
        summary=run["summary"],
        parameters={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in run["parameters"].items()
        },
        changed=tuple(run["changed"]),
        seeds=tuple(run["seeds"]),
        fidelity=run["fidelity"],
        command=run["command"],
        versions=dict(run["versions"]),
        log_digest=tuple(run["log_digest"]),
        events=run["events"],
        virtual_seconds=run["virtual_seconds"],
        real_seconds=run["real_seconds"],
    )


def _report_of(document: Mapping[str, Any]) -> Report:
    report = Report()
    for each in document["figures"]:
        report.add_figure(_figure_of(each))
    for each in document["series"]:
        band = each["band"] or {"low": (), "high": ()}
        report.add_series(
            Series(
                name=each["name"],
                label=each["label"],
                of=each["of"],
                style=each["style"],
                x=tuple(each["x"]["values"]),
                y=tuple(each["y"]["values"]),
                low=tuple(band["low"]),
                high=tuple(band["high"]),
                x_axis=_axis_of(each["x"]),
                y_axis=_axis_of(each["y"]),
            )
        )
    for each in document["tables"]:
        report.add_table(
            Table(
                name=each["name"],
                caption=each["caption"],
                columns=tuple(_axis_of(column) for column in each["columns"]),
                rows=tuple(tuple(row) for row in each["rows"]),
            )
        )
    for each in document["plots"]:
        report.add_plot(
            Plot(
                name=each["name"],
                caption=each["caption"],
                panels=tuple(Panel(p["title"], tuple(p["series"])) for p in each["panels"]),
                log_x=each["log_x"],
                log_y=each["log_y"],
                marks=tuple((at, label) for at, label in each["marks"]),
                y_from=each["y_from"],
                y_to=each["y_to"],
            )
        )
    for note in document["notes"]:
        report.note(note)
    return report


def _figure_of(figure: Mapping[str, Any]) -> Figure:
    goal, spread = figure["goal"], figure["spread"]
    if goal is not None and goal["comparison"] not in get_args(Comparison):
        raise ValueError(f"{goal['comparison']!r} is no comparison of a goal")
    return Figure(
        name=figure["name"],
        value=figure["value"],
        unit=figure["unit"],
        goal=goal and Goal(goal["comparison"], goal["value"]),
        met=figure["met"],
        detail=figure["detail"],
        spread=spread
        and Spread(
            values=tuple(spread["values"]),
            low=spread["low"],
            high=spread["high"],
            deviation=spread["deviation"],
        ),
    )


def _axis_of(axis: Mapping[str, Any]) -> Axis:
    return Axis(axis["label"], axis["unit"])
