"""Ctrl-C and its relatives, before the daemon is ready and after."""

import json
import signal
import socket
import subprocess
import sys

import pytest

from p2pnode.testing.daemons import COMMAND, LOOPBACK, ask_command

pytestmark = pytest.mark.real

# A node that is asked to stop and takes for ever over it.
STUBBORN = """
import trio
from cli.daemon import _stop_on_signal

class Node:
    def request_stop(self):
        print("asked", flush=True)

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, Node(), trio.CancelScope())
        print("up", flush=True)

trio.run(main)
"""


@pytest.fixture
def silent_address(tmp_path):
    """The address of a peer that takes connections and never says a word."""
    peer = ask_command("id", "--data-dir", tmp_path / "silent")["peer_id"]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{peer}", silent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_is_given_up_at_once(number, tmp_path, silent_address):
    address, silent = silent_address
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    try:
        process = subprocess.Popen(
            [
                *(*COMMAND, "join", "--json", "--data-dir", tmp_path / "node"),
                *("--listen", LOOPBACK, "--bootstrap", address),
                *("--set", "node.bootstrap_timeout=600", "--set", "network.dial_timeout=600"),
                *("--set", "network.handshake_timeout=600"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, previous)
    with process:
        dialled, _ = silent.accept()
        with dialled:
            process.send_signal(number)
            told, _ = process.communicate(timeout=20)
    assert [json.loads(line) for line in told.splitlines()] == [{"event": "stopped"}]
    assert process.returncode == 0


def test_a_second_interrupt_ends_a_stop_that_takes_too_long():
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        for number, answer in [(None, "up"), (signal.SIGINT, "asked"), (signal.SIGTERM, "asked")]:
            if number is not None:
                process.send_signal(number)
            assert process.stdout.readline() == f"{answer}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_a_daemon_under_nohup_outlives_its_terminal(start):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        daemon = start("node")
    finally:
        signal.signal(signal.SIGHUP, previous)
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ask("status")["peer_id"] == daemon.peer_id
    assert daemon.terminate() == 0
