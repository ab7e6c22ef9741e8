"""Each scenario that ships runs, small, and finds what it is about."""

import re
from pathlib import Path

import pytest

from simulations.catalogue import find
from simulations.runner import Plan, run_seed

QUICK = {"settle": 6, "join.rate": 5}


def run(scenario, fidelity="light", **chosen):
    return run_seed(Plan(scenario=scenario, chosen=QUICK | chosen, fidelity=fidelity)).report


def value(report, name):
    return report.figures[name].value


def test_light_and_full_fidelity_agree():
    chosen = {"nodes": 12, "duration": 60, "look-ups": 20, "churn.median": 300}
    light = run("dht-churn", "light", **chosen)
    full = run("dht-churn", "full", **chosen)
    assert value(light, "values found") == value(full, "values found") == 100.0
    assert value(light, "hops") == pytest.approx(value(full, "hops"), abs=0.3)
    assert value(light, "look-up, median") == pytest.approx(value(full, "look-up, median"), rel=0.3)
    assert value(light, "time to join, median") == pytest.approx(
        value(full, "time to join, median"), rel=0.3
    )


def test_one_network_is_measured_at_each_size_it_reaches():
    report = run("bootstrap", **{"nodes": "8,16", "look-ups": 10, "idle": 10})
    (table,) = [each for each in report.tables.values() if each.name == "By size"]
    assert [row[0] for row in table.rows] == [8, 16]
    assert value(report, "right answers") == 100.0
    assert value(report, "speed of the simulation") > 0
    assert "Hops of a look-up" in report.plots


def test_values_outlive_the_failure_of_a_third_of_all_nodes():
    report = run("mass-failure", **{"nodes": 20, "refresh": 60, "look-ups": 10})
    assert value(report, "nodes killed") == 6
    assert value(report, "found in the end") == 100.0
    assert not report.missed


def test_whoever_can_fail_fails_when_more_should():
    report = run("mass-failure", **{"nodes": 20, "killed": 90, "refresh": 60, "look-ups": 5})
    assert value(report, "nodes killed") == 16  # all but the bootstrap peers


@pytest.mark.parametrize("strangers", [False, True], ids=["halves", "strangers"])
def test_what_was_parted_becomes_one_dht(strangers):
    chosen = {"nodes": 12, "refresh": 120, "partition": 60, "strangers": strangers}
    report = run("partition-heal", **chosen)
    assert value(report, "found in the end") == 100.0
    assert 0 < value(report, "one DHT again after") <= 240
    assert not report.missed


def test_the_examples_of_the_documentation_run(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    for language, name in (("python", "newcomer.py"), ("toml", "evening.toml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(block)
    report = run_seed(Plan(scenario=str(tmp_path / "newcomer.py"), chosen={"nodes": 12})).report
    assert value(report, "known to five after") > 0
    evening = find(str(tmp_path / "evening.toml"))
    assert evening.resolve({})["churn.sessions"] == "lognormal"
