import json

import pytest

from cli.commands import doctor as command
from cli.main import main
from p2pnode.errors import DaemonNotRunningError

GOOD = {"level": "good", "subject": "peers", "says": "Connected to 3 peers.", "advice": ""}
BAD = {
    "level": "problem",
    "subject": "clock",
    "says": "It is 60.0 s behind.\x1b[2J",
    "advice": "Set the clock.",
}
FACTS = {
    "told": ["/ip4/203.0.113.7/tcp/4001/p2p/12D3"],
    "reachability": {"last": ["12D4: reached", "12D5: no answer (it refused)"]},
    "ways": [
        {"peer_id": "12D4", "way": "direct", "note": "", "age": 1.0},
        {"peer_id": "12D5", "way": "relayed", "note": "symmetric NATs", "age": 60.4},
    ],
}


@pytest.fixture
def daemon(monkeypatch):
    """Let a daemon answer with these findings; None when it does not run."""

    def answers(findings):
        def call(_socket, method, **_params):
            assert method == "doctor"
            if findings is None:
                raise DaemonNotRunningError(
                    "no daemon runs on /data; start one with `p2pnode join`"
                )
            return {"findings": findings, "facts": FACTS}

        monkeypatch.setattr(command, "call_daemon", call)

    return answers


def _run(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--data-dir", "/data", *args])
    return ended.value.code or 0, capsys.readouterr().out


def test_a_healthy_node_needs_nothing(daemon, capsys):
    daemon([GOOD])
    code, out = _run(capsys)
    assert code == 0
    assert "✓ peers          Connected to 3 peers." in out
    assert "203.0.113.7/tcp/4001" in out
    assert "12D5: no answer (it refused)" in out
    assert "12D5 is relayed, for 60 s: symmetric NATs" in out
    assert "12D4 is direct" not in out


def test_what_needs_doing_is_said_and_in_the_exit_code(daemon, capsys):
    daemon([BAD, GOOD])
    code, out = _run(capsys)
    assert code == command.EXIT_TO_DO
    assert "✗ clock" in out
    assert "→ Set the clock." in out
    assert "\x1b" not in out  # what peers wrote does not steer the terminal


def test_machines_get_it_as_json(daemon, capsys):
    daemon([BAD])
    code, out = _run(capsys, "--json")
    assert code == command.EXIT_TO_DO
    assert json.loads(out) == {"needs_doing": True, "findings": [BAD], "facts": FACTS}


def test_that_no_daemon_runs_is_a_finding(daemon, capsys):
    daemon(None)
    code, out = _run(capsys)
    assert code == command.EXIT_TO_DO
    assert "✗ daemon         No daemon runs on /data; start one with `p2pnode join`." in out
