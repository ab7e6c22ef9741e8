"""The demo as it is started by a person: real processes, and what becomes of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.demo import plan
from cli.demo.daemons import sigterm_unwinds

pytestmark = pytest.mark.real
COMMAND = [sys.executable, "-m", "cli.main", "demo", "--json"]
ENDS = 40.0  # seconds that daemons have to be gone


def daemons_of(state):
    """Return the processes that run on data directories below `state`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if any(each.startswith(os.fsencode(state)) for each in arguments) and b"join" in arguments:
            found.append(int(entry.name))
    return found


def wait_gone(state):
    until = time.monotonic() + ENDS
    while running := daemons_of(state):
        assert time.monotonic() < until, f"{running} still run"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path):
    """Start a demo whose daemons keep their state in `tmp_path/state`."""
    running = []

    def start(*arguments):
        folders = ["--report", tmp_path / "report", "--data-dir", tmp_path / "state"]
        demo = subprocess.Popen(
            [*map(str, (*COMMAND, *folders, *arguments))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        running.append(demo)
        return demo

    yield start
    for demo in running:
        demo.kill()
        demo.communicate()
    for process in daemons_of(tmp_path / "state"):
        os.kill(process, signal.SIGKILL)


def wait_for_step(demo, number):
    printed = []
    for line in demo.stdout:
        printed.append(line)
        if json.loads(line).get("step") == number:
            return
    pytest.fail("".join(printed) + demo.stderr.read())


@pytest.mark.timeout(170)
def test_the_demo_loses_a_daemon_gets_it_back_and_learns_the_digits(start, tmp_path):
    demo = start("--steps", "72")
    printed, errors = demo.communicate(timeout=160)
    assert demo.returncode == 0, errors + printed[-2000:]
    summary = json.loads(printed.splitlines()[-1])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert summary.pop("event") == "report"
    assert summary.items() <= report.items()
    assert report["test_accuracy"] >= 0.95
    assert report["local_accuracy"] >= 0.95
    assert (report["steps"], report["killed_at"], report["started_again_at"]) == (72, 24, 48)
    assert 48 < report["restored_at"] <= 60
    assert report["failed_calls"] > 0
    assert report["skipped_steps"] <= 1
    # The same arithmetic in the same order: until the kill the network changes nothing.
    assert report["loss_difference_before_kill"] < 1e-4
    victim = report["victim"]
    assert set(victim["steps_restored"]) == set(plan.experts_of(plan.VICTIM))
    for uid, restored in victim["steps_restored"].items():
        assert restored <= victim["steps_before_the_kill"][uid]
    assert sum(victim["steps_restored"].values()) > 0
    assert sum(victim["steps_at_the_end"].values()) > sum(victim["steps_restored"].values())
    assert 24 in report["series"]["live_experts"]  # fewer, where the machine is busy for a moment
    assert report["series"]["live_experts"][-1] == 32
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report" / "daemon-3.jsonl").exists()
    assert daemons_of(tmp_path / "state") == []


def test_an_interrupted_demo_ends_its_daemons_in_good_order(start, tmp_path):
    demo = start()
    wait_for_step(demo, 2)
    assert len(daemons_of(tmp_path / "state")) == plan.DAEMONS
    demo.send_signal(signal.SIGINT)
    printed, errors = demo.communicate(timeout=ENDS)
    assert demo.returncode == 130, errors
    assert "Traceback" not in errors + printed
    assert daemons_of(tmp_path / "state") == []
    for daemon in range(plan.DAEMONS):
        events = (tmp_path / "report" / f"daemon-{daemon}.jsonl").read_text().splitlines()
        assert json.loads(events[-1])["event"] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of that death")
def test_daemons_end_even_if_the_demo_is_killed(start, tmp_path):
    demo = start()
    wait_for_step(demo, 1)
    demo.kill()
    demo.wait()
    wait_gone(tmp_path / "state")


def test_a_daemon_that_cannot_start_is_one_clear_sentence(start, tmp_path):
    state = tmp_path / "state"
    (state / "daemon-0").mkdir(parents=True)
    (state / "daemon-0" / "identity.key").write_bytes(b"damaged")
    (state / "daemon-0" / "identity.key").chmod(0o600)
    demo = start()
    printed, _ = demo.communicate(timeout=ENDS)
    assert demo.returncode == 1
    event = json.loads(printed.splitlines()[-1])
    assert event["event"] == "error"
    assert "daemon-0 cannot start" in event["message"]
    assert "identity.key" in event["message"]
    assert daemons_of(state) == []


def test_sigterm_unwinds_the_demo_like_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, sigterm_unwinds():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
