"""The demo as a person starts it: real processes, one of which is killed."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.real
COMMAND = [sys.executable, "-m", "cli.main", "train-layerwise", "demo", "--json"]


def test_a_killed_participant_costs_no_example_and_the_others_reach_the_threshold(tmp_path):
    arguments = ["--peers", "2", "--kill", "--threshold", "0.7", "--samples", "64"]
    demo = subprocess.run(
        [*COMMAND, *arguments, "--report", str(tmp_path / "report")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    events = [json.loads(line) for line in demo.stdout.splitlines()]
    report = events[-1]
    assert report["event"] == "report"
    assert report["killed"] == "peer-3"
    assert report["samples_lost"] == 0
    assert report["score"] >= 0.7
    assert report["test_accuracy"] > 0.6
    assert report["max_staleness"] <= report["staleness_bound"]
    assert {event["event"] for event in events} == {"note", "round", "alone", "report"}
    kept = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert [each["killed"] for each in kept["participants"]] == [False, False, False, True]
    assert (tmp_path / "report" / "report.png").stat().st_size > 10_000
