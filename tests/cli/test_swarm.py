import json

import pytest
from click.testing import CliRunner

from cli.commands import inspect, swarm

ONE = "12D3KooWPryHBhiK65dojSdtaZNt3V25kfPPosvZTZQmyJsN6j81"
TWO = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


def said(version=1, **claim):
    return {
        "round": 3,
        "steps": 40,
        "score": 0.91234,
        "scored_on": 500,
        "data": "22" * 32,
        "weights": "ab" * 32,
        "size": 1000,
        "codec": "none",
        "mode": "best",
        "version": version,
        "age": 4.2,
        "expires": 1.0,
    } | claim


def standing(**facts):
    return {
        "peer_id": TWO,
        "points": 50.0,
        "offences": {"false score": 2},
        "last_reason": "it claims 1.0 and has 0.1\x1b[2J",
        "back_off": 60.0,
        "is_blacklisted": False,
    } | facts


def member(peer_id, announcement=None, **facts):
    return {
        "peer_id": peer_id,
        "listed": True,
        "connected": True,
        "load": 0,
        "throughput": 0.0,
        "announcement": announcement,
        "shunned": False,
        "standing": None,
    } | facts


def swarm_of(*members, own=None, revision=1):
    return {
        "uid": "mnist/layers.0",
        "hosted": True,
        "peers": len(members),
        "announcing": 2,
        "round": 3,
        "mode": "best",
        "best_score": 0.91234,
        "revision": revision,
        "own": own,
        "members": list(members),
    }


@pytest.fixture
def answers(monkeypatch):
    """Answer as a daemon does, one answer after the other; Ctrl-C comes when there is none."""
    waiting = []

    def call(_path, _method, **_params):
        if not waiting:
            raise KeyboardInterrupt
        return waiting.pop(0)

    monkeypatch.setattr(swarm, "call_daemon", call)
    return waiting


def run(tmp_path, *arguments):
    return CliRunner().invoke(swarm.swarm, [*arguments, "--data-dir", str(tmp_path)])


def row(output, name):
    (line,) = [each for each in output.splitlines() if each.strip().startswith(name)]
    return line.split()


def test_swarms_are_listed_with_their_best_score_and_what_nobody_shares_is_counted(
    answers, tmp_path
):
    found = {"swarms": [swarm_of(member(ONE))], "alone": ["mnist/layers.1", "mnist/layers.2"]}
    answers += [found, found]
    done = run(tmp_path, "list")
    assert row(done.stdout, "mnist/") == ["mnist/layers.0", "yes", "1", "2", "best", "3", "0.9123"]
    assert "Nobody else hosts 2 other experts" in done.stderr
    assert json.loads(run(tmp_path, "list", "--json").stdout) == found


def test_a_swarm_is_shown_with_who_announces_what_and_what_is_held_against_whom(answers, tmp_path):
    liar = member(TWO, said(score=1.0), connected=False, listed=False, standing=standing())
    answers.append(swarm_of(member(ONE), liar, own=said()))
    shown = run(tmp_path, "show", "mnist/layers.0").output
    assert row(shown, "this node")[2:6] == ["3", "40", "0.9123", "500"]
    assert row(shown, ONE)[1:] == ["-"] * 7
    lines = [each for each in shown.splitlines() if TWO in each]
    assert "left alone for 60 s: 2 x false score, not connected, not in the index" in lines[0]
    assert r"it claims 1.0 and has 0.1\x1b[2J" in lines[1]  # nothing steers the terminal


def test_watching_tells_what_has_changed_and_only_that(answers, tmp_path):
    answers += [
        swarm_of(member(ONE, said(1)), own=said(1)),
        swarm_of(member(ONE, said(1)), member(TWO), own=said(2, round=4, score=None), revision=2),
        swarm_of(member(ONE, said(1)), member(TWO, said(5, round=9)), own=said(2), revision=3),
        swarm_of(member(TWO, said(5), shunned=True, standing=standing()), own=said(2), revision=4),
    ]
    lines = run(tmp_path, "watch", "mnist/layers.0").stdout.splitlines()
    assert [line.partition("  ")[2] for line in lines] == [  # behind the time
        "mnist/layers.0: 1 other; Ctrl-C ends",
        f"{TWO} has joined",
        "this node announces round 4, weights abababababab",
        f"{TWO} announces round 9, score 0.9123, weights abababababab",
        f"{ONE} has left",
        rf"{TWO} is left alone (it claims 1.0 and has 0.1\x1b[2J)",
    ]


def test_machines_watch_events_one_a_line(answers, tmp_path):
    answers += [swarm_of(), swarm_of(member(ONE, said()), revision=2)]
    lines = run(tmp_path, "watch", "mnist/layers.0", "--json").stdout.splitlines()
    events = [json.loads(each) for each in lines]
    assert [each["event"] for each in events] == ["watching", "joined", "announced"]
    assert events[2]["peer_id"] == ONE
    assert events[2]["weights"] == "ab" * 32


def test_status_tells_with_whom_layers_are_shared():
    found = {"joined": 2, "members": 1, "linked": 1, "offenders": []}
    assert inspect.describe_swarms(found) == "2 layers shared with 1 peer, 1 linked"
    assert inspect.describe_swarms(found | {"joined": 0}) is None


def test_an_offender_is_described_by_what_follows_from_it():
    assert swarm.describe_offender(standing()) == "left alone for 60 s: 2 x false score"
    assert swarm.describe_offender(standing(is_blacklisted=True)) == "blacklisted: 2 x false score"
    assert swarm.describe_offender(standing(back_off=0.0)) == "2 x false score"
