"""`python -m p2pnode.testing.peer`, as whoever tests their libp2p against ours starts it."""

import json
import re
import signal
import socket
import subprocess
import sys

import pytest

from p2pnode.testing.peer.__main__ import main
from p2pnode.testing.peer.checks.table import table
from p2pnode.testing.peer.node import key_from

pytestmark = pytest.mark.real

COMMAND = [sys.executable, "-m", "p2pnode.testing.peer"]
NAMES = [each.name for each in table("")]


@pytest.fixture
def start():
    started = []

    def start(*arguments):
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE)
        started.append(process)
        return process, json.loads(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def dial(*arguments):
    done = subprocess.run(
        [*COMMAND, "--dial", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_in_good_order(start, ended_by):
    process, ready = start("--seed", "a test")
    assert list(ready) == ["event", "peer", "addrs"]
    assert ready["event"] == "ready"
    assert ready["peer"] == str(key_from("a test").peer_id)
    tcp, ws = ready["addrs"]
    assert re.fullmatch(rf"/ip4/127\.0\.0\.1/tcp/\d+/p2p/{ready['peer']}", tcp)
    assert re.fullmatch(rf"/ip4/127\.0\.0\.1/tcp/\d+/ws/p2p/{ready['peer']}", ws)
    process.send_signal(ended_by)
    assert process.wait(20) == 0
    assert process.stdout.read() == b""


def test_it_listens_on_the_ports_it_is_given(start):
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        tcp, ws = (each.getsockname()[1] for each in (one, other))
    _, ready = start("--tcp", str(tcp), "--ws", str(ws))
    assert [address.split("/")[4] for address in ready["addrs"]] == [str(tcp), str(ws)]


@pytest.mark.parametrize("transport", [0, 1])
def test_one_checks_another_over_each_transport(start, transport):
    _, ready = start("--kad", "/a-net/kad/1.0.0", "--key-type", "ed25519")
    done, lines = dial(ready["addrs"][transport], "--kad", "/a-net/kad/1.0.0")
    assert [line["check"] for line in lines] == NAMES
    assert [line for line in lines if not line.get("ok")] == []
    assert all(line["seconds"] >= 0 for line in lines)
    assert done.returncode == 0, done.stderr


def test_the_dht_of_another_network_is_not_checked(start):
    _, ready = start()
    done, lines = dial(ready["addrs"][0], "--kad", "/a-net/kad/1.0.0")
    skipped = {line["check"] for line in lines if "skipped" in line}
    assert skipped == {name for name in NAMES if name.startswith("kad-")}
    assert done.returncode == 0, done.stderr


def test_the_exit_code_is_the_number_of_failures():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}/p2p/{key_from('x').peer_id}"
        done, lines = dial(address)
    assert done.returncode == 1
    assert [line["check"] for line in lines if line.get("ok") is False] == ["connect"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tcp", "x"], "'x' is not a port"),
        (["--ws", "65536"], "'65536' is not a port"),
        (["--dial", "nonsense"], "nonsense"),
        (["--dial", "/ip4/127.0.0.1/tcp/1"], "/p2p"),
        (["--kad", "kad"], "'kad' is not a protocol"),
        (["--key-type", "rsa"], "rsa"),
        (["--timeout", "0"], "'0' is not a number of seconds"),
        (["--ip", "nowhere"], "nowhere"),
        (["--absent"], "--absent"),
    ],
)
def test_a_wrong_option_is_one_sentence(capsys, arguments, says):
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_port_that_is_taken_is_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--tcp", str(port)]) == 2
    error = capsys.readouterr().err
    assert str(port) in error
    assert len(error.splitlines()) == 1
