import functools
import json
import subprocess
import sys

import pytest

from p2pnode.testing.nat_lab import Lab, why_not

PROBE = [sys.executable, "-m", "p2pnode.testing.nat_lab.probe"]
HELPER_PORT = 3478
NATS = ["none", "full-cone", "restricted", "port-restricted", "symmetric"]


@functools.cache
def reason():
    return why_not()


@pytest.fixture(scope="session", autouse=True)
def _needs_namespaces():
    if reason():
        pytest.skip(reason())


@pytest.fixture
def lab():
    with Lab(seed=1) as opened:
        yield opened


class Helper:
    """The probe's helper, on a public machine with two addresses."""

    def __init__(self, lab):
        machine = lab.host()
        other = "52.2.0.1"
        machine.ns.ip(f"addr add {other}/32 dev eth")
        lab.internet.ip(f"route add {other}/32 via {machine.ip}")
        self.ips = [str(machine.ip), other]
        command = [*PROBE, "serve", *self.ips, str(HELPER_PORT)]
        serving = machine.start(command, stdout=subprocess.PIPE)
        assert serving.stdout.readline() == b"ready\n"

    def start(self, machine, kind, port=4001):
        """Start a probe; call what this returns for its findings."""
        command = [*PROBE, "ask", kind, str(port), *self.ips, str(HELPER_PORT)]
        asking = machine.start(command, stdout=subprocess.PIPE)
        return lambda: json.loads(asking.communicate(timeout=60)[0])

    def ask(self, machine, kind="udp", port=4001):
        return self.start(machine, kind, port)()


@pytest.fixture
def helper(lab):
    return Helper(lab)


@pytest.fixture(scope="module")
def findings():
    """What probes find behind each NAT, over each protocol; all at once, since they wait a lot."""
    with Lab() as lab:
        helper = Helper(lab)
        started = {}
        for nat in NATS:
            machine = lab.router(nat).host()
            for kind in ("udp", "tcp"):
                started[nat, kind] = helper.start(machine, kind)
        return {key: wait() for key, wait in started.items()}
