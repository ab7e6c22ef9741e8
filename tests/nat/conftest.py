import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.errors import P2PNodeError
from p2pnode.testing.nat_lab import Lab, why_not

PROBE = [sys.executable, "-m", "p2pnode.testing.nat_lab.probe"]
HELPER_PORT = 3478
IS_FULL = os.environ.get("NAT_MATRIX") == "full"
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
        return lambda: json.loads(asking.communicate(timeout=100)[0])

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


def wait_until(condition, timeout=30.0):
    """Wait in real time until `condition` returns something; return that."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < until, f"this did not come true within {timeout:g} s"
        time.sleep(0.1)
    return found


def call(daemon, method, **params):
    """Do as `p2pnode <method>` does, without a process."""
    return call_daemon(DataDir(daemon.data_dir).control_socket, method, **params)


def call_ping(daemon, other):
    """The seconds that a ping took, by whatever way there is, or None."""
    with contextlib.suppress(P2PNodeError):
        return call(daemon, "ping", peer=other.peer_id)["seconds"]
    return None


@pytest.fixture(scope="session")
def ask():
    return call


@pytest.fixture(scope="session")
def ping():
    return call_ping


@pytest.fixture(scope="session")
def eventually():
    return wait_until


@pytest.fixture
def if_full():
    """For stories that take long."""
    if not IS_FULL:
        pytest.skip("it takes long; NAT_MATRIX=full runs it")


class Igd:
    """miniupnpd, the port mapping daemon of most home routers, on a router of the laboratory."""

    CONFIG = """
ext_ifname=wan
listening_ip=lan
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
uuid=00000000-1111-2222-3333-444444444444
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
upnp_table_name=igd
upnp_nat_table_name=igd
upnp_forward_chain=forwarded
upnp_nat_chain=redirected
upnp_nat_postrouting_chain=masked
"""
    RULES = """
table inet igd {
    chain forwarded {}
    chain redirected {}
    chain masked {}
    chain forward { type filter hook forward priority 0; jump forwarded; }
    chain prerouting { type nat hook prerouting priority dstnat - 5; jump redirected; }
    chain postrouting { type nat hook postrouting priority srcnat + 5; jump masked; }
}
"""

    def __init__(self, router, folder, *, natpmp=True, upnp=True):
        self._router = router
        self._folder = folder
        said = {True: "yes", False: "no"}
        config = self.CONFIG.format(natpmp=said[natpmp], upnp=said[upnp])
        (folder / "igd.conf").write_text(config)
        self._start()

    def _start(self):
        self._router.ns.load_rules(f"table inet igd\ndelete table inet igd\n{self.RULES}")
        folder = self._folder
        command = ["miniupnpd", "-d", "-f", f"{folder}/igd.conf", "-P", f"{folder}/igd.pid"]
        with (folder / "igd.log").open("ab") as log:
            self._process = self._router.ns.start(command, stdout=log, stderr=log)

    def restart(self):
        """Lose all mappings, as a router that reboots."""
        self._process.kill()
        self._process.wait()
        self._router.ns.run(["nft", "flush", "chain", "inet", "igd", "redirected"])
        assert self.mappings() == []
        self._start()

    def mappings(self):
        """The rules that lead in, as nftables prints them."""
        printed = self._router.ns.run(["nft", "list", "chain", "inet", "igd", "redirected"])
        return [line.strip() for line in printed.splitlines() if "dnat" in line]


@pytest.fixture
def igd(tmp_path):
    if shutil.which("miniupnpd") is None:
        pytest.skip("miniupnpd is missing; install the package miniupnpd-nftables")
    return lambda router, **options: Igd(router, tmp_path, **options)
