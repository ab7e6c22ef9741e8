import base64
import json

import pytest
from click.testing import CliRunner

from cli.commands import dht

PEER = "12D3KooWPryHBhiK65dojSdtaZNt3V25kfPPosvZTZQmyJsN6j81"
ANSWERS = {
    "dht.peers": [{"peer_id": PEER, "addresses": ["/ip4/1.2.3.4/tcp/4001"], "connected": True}],
    "dht.find": {"addresses": ["/ip4/1.2.3.4/tcp/4001"], "seconds": 0.012},
    "dht.get": {"value": base64.b64encode(b"\0value").decode(), "seconds": 0.012},
    "dht.put": {"stored": 20, "seconds": 0.034},
}


@pytest.fixture
def asked(monkeypatch):
    """Answer as a daemon does; returns what was asked."""
    calls = []

    def call(_path, method, **params):
        calls.append((method, params))
        return ANSWERS[method]

    monkeypatch.setattr(dht, "call_daemon", call)
    return calls


def run(tmp_path, *arguments, data=None):
    return CliRunner().invoke(
        dht.dht, [*arguments, "--data-dir", str(tmp_path)], input=data, catch_exceptions=False
    )


def test_the_table_of_peers_is_listed(asked, tmp_path):
    shown = run(tmp_path, "peers").output
    assert "1 peer in the routing table" in shown
    assert PEER in shown
    assert "/ip4/1.2.3.4/tcp/4001" in shown


def test_an_address_is_printed_alone_so_that_it_can_be_piped(asked, tmp_path):
    done = run(tmp_path, "find", PEER)
    assert done.stdout == "/ip4/1.2.3.4/tcp/4001\n"
    assert "12.0 ms" in done.stderr
    assert asked == [("dht.find", {"peer": PEER})]


def test_a_value_is_printed_or_written_as_it_is(asked, tmp_path):
    assert run(tmp_path, "get", "/pk/x").stdout == "AHZhbHVl\n"
    file = tmp_path / "value"
    assert run(tmp_path, "get", "/pk/x", "--output", str(file)).stdout == ""
    assert file.read_bytes() == b"\0value"


def test_what_is_stored_is_read_from_a_file_or_standard_input(asked, tmp_path):
    done = run(tmp_path, "put", "/pk/x", "-", data=b"\0value")
    assert "stored at 20 peers" in done.stderr
    assert asked == [("dht.put", {"key": "/pk/x", "value": "AHZhbHVl"})]
    too_long = run(tmp_path, "put", "/pk/x", "-", data=bytes(40_000))
    assert too_long.exit_code == 2
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("dht.peers", ["peers"]),
        ("dht.find", ["find", PEER]),
        ("dht.get", ["get", "/pk/x"]),
        ("dht.put", ["put", "/pk/x", "-"]),
    ],
)
def test_machines_get_the_answer_as_it_is(asked, tmp_path, method, arguments):
    assert json.loads(run(tmp_path, *arguments, "--json").stdout) == ANSWERS[method]
