"""`p2pnode perf`, against real daemons."""

import json

import pytest

from p2pnode.testing.daemons import ask_command, run_command

pytestmark = pytest.mark.real


def test_a_daemon_is_measured_if_it_is_set_to_be(start):
    daemon = start("served", "--set", "perf.serve=true")
    found = ask_command("perf", daemon.address, "--upload", "1M", "--download", "2M")
    assert found["address"] == daemon.address
    assert (found["upload_bytes"], found["download_bytes"]) == (1_048_576, 2_097_152)
    for way in ("upload", "download"):
        expected = found[f"{way}_bytes"] / found[f"{way}_seconds"]
        assert found[f"{way}_rate"] == pytest.approx(expected)
    shown = run_command("perf", daemon.address, "--upload", "0", "--download", "10").stdout
    assert [line.split()[:3] for line in shown.splitlines()] == [
        ["up", "0", "bytes"],
        ["down", "10", "bytes"],
    ]


def test_a_daemon_does_not_serve_it_unless_it_is_set_to(start):
    daemon = start("not-served")
    done = run_command("perf", daemon.address, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "ProtocolNotSupportedError"
