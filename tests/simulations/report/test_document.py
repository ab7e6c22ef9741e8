"""The JSON of a report: its form is pinned, and it is read back as it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.report import Report, RunFacts, at_least, at_most, dump, load
from simulations.report.document import document_of


def form_of(value):
    """Return a document's names and types, without its values."""
    if isinstance(value, dict):
        return {name: form_of(each) for name, each in value.items()}
    if isinstance(value, list):
        return [form_of(value[0])] if value else []
    return type(value).__name__


def test_the_form_of_the_document_stays_what_readers_know(make_report, facts):
    document = document_of(make_report(), facts)
    assert document["schema"] == "p2pnode-simulation-report/1"
    axis = {"label": "str", "unit": "str"}
    assert form_of(document) == {
        "schema": "str",
        "run": {
            "scenario": "str",
            "summary": "str",
            "parameters": {
                "nodes": "int",
                "churn.median": "float",
                "delays": ["float"],
                "ok": "bool",
            },
            "changed": ["str"],
            "seeds": ["int"],
            "fidelity": "str",
            "command": "str",
            "versions": {"p2pnode": "str", "python": "str"},
            "log_digest": ["str"],
            "events": "int",
            "virtual_seconds": "float",
            "real_seconds": "float",
        },
        "figures": [
            {
                "name": "str",
                "value": "float",
                "unit": "str",
                "goal": {"comparison": "str", "value": "float"},
                "met": "bool",
                "detail": "str",
                "spread": "NoneType",
            }
        ],
        "series": [
            {
                "name": "str",
                "label": "str",
                "of": "str",
                "style": "str",
                "x": {**axis, "values": ["float"]},
                "y": {**axis, "values": ["int"]},
                "band": "NoneType",
            }
        ],
        "tables": [{"name": "str", "caption": "str", "columns": [axis], "rows": [["str"]]}],
        "plots": [
            {
                "name": "str",
                "caption": "str",
                "panels": [{"title": "str", "series": ["str"]}],
                "log_x": "bool",
                "log_y": "bool",
                "marks": [["float"]],
                "y_from": "NoneType",
                "y_to": "NoneType",
            }
        ],
        "notes": ["str"],
    }


def test_what_could_not_be_measured_is_null(make_report, facts):
    document = document_of(make_report(), facts)
    assert document["figures"][3] == {
        "name": "never",
        "value": None,
        "unit": "",
        "goal": {"comparison": "<=", "value": 1},
        "met": False,
        "detail": "",
        "spread": None,
    }
    assert document["series"][1]["y"]["values"] == [1.5, None]


def test_a_report_is_read_back_as_it_was(make_report, facts):
    text = dump(make_report(), facts)
    report, read = load(text)
    assert read == facts
    assert dump(report, read) == text


numbers = st.none() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=True)
names = st.text(max_size=8)


@given(
    figures=st.dictionaries(
        names,
        st.tuples(
            numbers,
            st.none() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9),
        ),
    ),
    points=st.lists(st.tuples(st.floats(-1e9, 1e9), numbers), max_size=5),
    rows=st.lists(st.tuples(names | st.booleans() | numbers), max_size=4),
    notes=st.lists(names, max_size=2),
)
def test_any_report_is_read_back_as_it_was(figures, points, rows, notes):
    report = Report()
    for number, (name, (value, goal)) in enumerate(figures.items()):
        kind = at_least if number % 2 else at_most
        report.figure(name, value, goal=None if goal is None else kind(goal))
    report.series("s", [x for x, _ in points], [y for _, y in points], x_label="x", y_label="y")
    report.table("t", ["a"], rows)
    for note in notes:
        report.note(note)
    facts = RunFacts(scenario="s", summary="", parameters={}, seeds=(0,), command="")
    text = dump(report, facts)
    again, read = load(text)
    assert (dump(again, read), read) == (text, facts)
    assert again.figures == report.figures


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(schema="p2pnode-simulation-report/2"),
        lambda document: document.pop("figures"),
        lambda document: document["run"].pop("seeds"),
        lambda document: document["figures"][0].pop("goal"),
        lambda document: document["figures"][0]["goal"].update(comparison="=="),
        lambda document: document["figures"].append(document["figures"][0]),
        lambda document: document["series"][0]["x"]["values"].pop(),
        lambda document: document["series"][0].update(style="pie"),
        lambda document: document["tables"][0]["rows"][0].pop(),
        lambda document: document["plots"][0]["panels"][0].update(series=["nothing"]),
        lambda document: document.update(notes=None),
    ],
)
def test_a_document_of_another_form_is_refused(make_report, facts, change):
    document = json.loads(dump(make_report(), facts))
    change(document)
    with pytest.raises(ValueError, match=r"."):
        load(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "7", "null", '{"schema": 1}'])
def test_what_is_no_document_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        load(text)
