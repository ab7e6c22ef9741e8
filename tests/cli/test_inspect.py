import json

import pytest
from click.testing import CliRunner

from cli.commands import inspect

PEER = "12D3KooWPryHBhiK65dojSdtaZNt3V25kfPPosvZTZQmyJsN6j81"


def use(used, limit):
    return {"used": used, "limit": limit}


@pytest.fixture
def status(monkeypatch):
    """Answer `status` as a daemon does; returns what it says of budgets, to be changed."""
    budget = {
        "node": {"connections": use(3, 1024), "bytes": use(768 * 1024, 2**31)},
        "top": [
            {"kind": "address", "name": "1.2.3.4/32", "inbound_connections": use(2, 64)},
            {"kind": "peer", "name": PEER, "inbound_streams": use(5, 1024)},
            {"kind": "protocol", "name": "/p2pnode/kad/1.0.0", "outbound_streams": use(7, 2048)},
        ],
        "refused": {},
    }
    found = {
        "peer_id": PEER,
        "version": "1",
        "uptime": 1.0,
        "pid": 1,
        "addresses": [],
        "listening": [],
        "observed": [],
        "reachability": {
            "forced": True,
            "state": "public",
            "families": {},
            "evidence": [],
            "servers": 0,
        },
        "connections": 3,
        "ways": {"direct": 2, "punched": 1},
        "relay": {"held": None, "given": None},
        "dht": {"peers": 0, "mode": "server", "records": 0},
        "experts": 4,
        "swarms": {"joined": 0, "members": 0, "linked": 0, "offenders": []},
        "owner": {"paused": False, "cause": None, "reason": None, "until": None, "missing": None},
        "metrics": "127.0.0.1:9400",
        "placement": [
            {
                "run": "lm",
                "units": 12,
                "capacity": 4,
                "moves": 1,
                "slowest": 2.5,
                "why": ["blocks.4-5: slowest, 1 host", "blocks.6-7: nobody hosted it"],
            }
        ],
        "calls": {},
        "runs": [],
        "budget": budget,
    }
    monkeypatch.setattr(inspect, "call_daemon", lambda *_: found)
    return budget


def show(tmp_path, *options):
    done = CliRunner().invoke(inspect.status, ["--data-dir", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    return done.output


def row(output, name):
    (line,) = [each for each in output.splitlines() if each.strip().startswith(name)]
    return line


def test_status_shows_what_is_used_of_what_may_be_used(status, tmp_path):
    shown = show(tmp_path)
    assert "3 / 1024" in row(shown, "connections   3")
    assert "2 direct, 1 punched" in row(shown, "ways")
    assert "0.75 / 2048" in row(shown, "window MiB")
    assert "2 / 64" in row(shown, "1.2.3.4/32")
    assert "5 / 1024" in row(shown, f"peer …{PEER[-8:]}")
    assert "7 / 2048" in row(shown, "/p2pnode/kad/1.0.0")
    assert "Refused" not in shown


def test_status_shows_what_was_refused_and_why(status, tmp_path):
    status["refused"] = {"peer.bytes": 12, "address.connection_rate": 936}
    shown = show(tmp_path)
    assert "936" in row(shown, "address.connection_rate")
    assert "12" in row(shown, "peer.bytes")


def test_machines_get_the_budget_as_it_is(status, tmp_path):
    assert json.loads(show(tmp_path, "--json"))["budget"] == status


def test_status_tells_through_which_relays_the_node_is_reached():
    one = {"relay": PEER, "limited": True, "seconds_left": 1799.6}
    held = {"wanted": 2, "known_relays": 3, "reservations": [one]}
    shown = inspect.describe_reservations({"held": held})
    assert shown == f"relay {PEER}, limited (renewed within 1800 s)"
    none = held | {"reservations": []}
    assert inspect.describe_reservations({"held": none}) == "no relay yet; 3 relays known"
    assert inspect.describe_reservations({"held": held | {"wanted": 0}}) is None
    assert inspect.describe_reservations({"held": None}) is None


def test_status_tells_what_the_node_carries_for_others():
    given = {
        "serving": True,
        "limited": False,
        "reservations": 1,
        "circuits": 2,
        "bytes_carried": 12_340_000,
        "refused": 0,
    }
    assert inspect.describe_relay({"given": given}) == (
        "1 reservation, 2 circuits, 12.3 MB carried, 0 requests refused"
    )
    assert "(limited)" in inspect.describe_relay({"given": given | {"limited": True}})
    assert inspect.describe_relay({"given": given | {"serving": False}}) is None
    assert inspect.describe_relay({"given": None}) is None


def finding(state, reached, failed):
    return {"state": state, "reached": reached, "failed": failed, "for": 61.6}


def test_status_tells_whether_others_reach_the_node_and_who_was_asked_last():
    evidence = {
        "age": 4.4,
        "peer_id": PEER,
        "addresses": ["/ip4/8.8.8.8/tcp/4001"],
        "result": "reached",
        "text": "OK",
    }
    found = {
        "state": "public",
        "forced": False,
        "families": {"ip4": finding("public", 3, 1), "ip6": finding("unknown", 0, 0)},
        "servers": 4,
        "evidence": [evidence],
    }
    assert inspect.describe_reachability(found) == (
        "public: IPv4 public for 62 s (reached by 3 of 4 networks)\n"
        f"4 s ago {PEER} was asked about /ip4/8.8.8.8/tcp/4001: reached (OK)"
    )
    found |= {"state": "unknown", "families": {"ip4": finding("unknown", 0, 0)}, "evidence": []}
    assert inspect.describe_reachability(found) == "unknown\n4 peers can be asked"
    assert inspect.describe_reachability({"state": "private", "forced": True}) == (
        "private, as the settings say"
    )


def test_status_says_why_a_node_hosts_what_it_hosts(status, tmp_path):
    shown = show(tmp_path)
    assert "blocks.4-5: slowest, 1 host" in row(shown, "chosen in lm")
    assert row(shown, "blocks.6-7: nobody hosted it")
    assert row(shown, "1 move, room for 4 of 12")
