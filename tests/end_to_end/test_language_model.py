"""A language model trained by a thin trainer over real hosts, as a user does it."""

import json

import pytest

from cli.main import main

pytestmark = pytest.mark.real
SMALL = ("--batch", "4", "--context", "32", "--length", "20", "--json")


@pytest.fixture
def train(capsys):
    """A function that runs the command in this process; returns the events it prints."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["train-lm", *SMALL, *map(str, arguments)])
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert left.value.code == 0, events[-1]
        return events

    return run


@pytest.mark.timeout(240)  # four processes import torch; busy machines take their time
def test_a_killed_host_costs_no_step_of_a_training_over_three(train, tmp_path):
    *events, report = train("--demo", "--steps", 16, "--report", tmp_path)
    assert (report["steps"], report["steps_lost"]) == (16, 0)
    assert (report["killed"], report["killed_after_step"]) == ("host-0", 8)
    assert report["failed_calls"] > 0
    assert report["held_out_after"] < report["held_out_at_kill"] < report["held_out_before"]
    assert len(report["sample"].encode()) >= len("The ") + 20
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert json.loads((tmp_path / "report.json").read_text())["losses"] == losses
    # What the killed host had learnt lives on in the third one.
    told = [json.loads(line) for line in (tmp_path / "host-2.jsonl").read_text().splitlines()]
    taken_over = {event["uid"][-8:]: event["steps"] for event in told
                  if event["event"] == "replica_took_over"}  # fmt: skip
    assert sorted(taken_over) == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(taken_over.values())


def test_a_training_goes_on_in_a_run_that_exists(start, train, tmp_path):
    host = start(
        "host", "--layers", "lm/blocks.[0:6]", "--model", "tiny",
        "--set", "hosting.threads=1", "--set", "hosting.update_period=1.5",
    )  # fmt: skip
    text = tmp_path / "text"
    text.write_bytes(b"All work and no play makes Jack a dull boy.\n" * 40)
    ends = tmp_path / "ends.safetensors"
    arguments = ("--bootstrap", host.address, "--text", text, "--ends", ends)
    first = train(*arguments, "--steps", 6)[-1]
    assert host.ask("experts")[0]["steps"] == 6
    second = train(*arguments, "--steps", 2)[-1]
    assert second["held_out_before"] == pytest.approx(first["held_out_after"], abs=1e-3)
    assert first["killed"] is None
