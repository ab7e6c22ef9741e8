"""The laboratory is what it says: probes from inside tell how each NAT behaves."""

import json
import os
import signal
import subprocess
import sys

import pytest

from p2pnode.testing.nat_lab import Lab, LabError, Namespace
from p2pnode.testing.nat_lab.namespaces import _is_dead

pytestmark = pytest.mark.real

EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"
CONNECT = """
import errno, socket, sys
s = socket.socket()
s.settimeout(0.5)
try:
    print(errno.errorcode.get(s.connect_ex((sys.argv[1], int(sys.argv[2])))))
except TimeoutError:
    print("EAGAIN")
"""
ECHO = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
times = []
for number in range(int(sys.argv[2])):
    began = time.monotonic()
    s.sendto(b"look", (sys.argv[1], 3478))
    try:
        s.recv(100)
        times.append(time.monotonic() - began)
    except TimeoutError:
        pass
    s.settimeout(0.2)
print(json.dumps(times))
"""

LOOK = """
import json, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 4001))
s.settimeout(2)
for number in range(5):
    s.sendto(b"look", (sys.argv[1], 3478))
    try:
        print(*json.loads(s.recv(100)))
        break
    except TimeoutError:
        pass
"""


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines()]


def run_python(machine, text, *arguments):
    return machine.run([sys.executable, "-c", text, *map(str, arguments)]).strip()


@pytest.mark.parametrize("kind", ["udp", "tcp"])
@pytest.mark.parametrize(
    ("nat", "mapping", "filtering"),
    [
        ("none", "none", EI),
        ("full-cone", EI, EI),
        ("restricted", EI, AD),
        ("port-restricted", EI, APD),
        ("symmetric", APD, APD),
    ],
)
def test_a_router_maps_and_filters_as_named(findings, nat, mapping, filtering, kind):
    found = findings[nat, kind]
    assert (found["mapping"], found["filtering"]) == (mapping, filtering)


def test_a_strangers_syn_meets_silence_at_a_router_and_a_reset_at_a_bare_machine(lab):
    stranger, bare, router = lab.host(), lab.host(), lab.router("port-restricted")
    assert run_python(stranger, CONNECT, bare.ip, 4001) == "ECONNREFUSED"
    assert run_python(stranger, CONNECT, router.public_ip, 4001) == "EAGAIN"


def test_two_machines_behind_one_router_meet_in_their_home_and_share_its_address(lab, helper):
    router = lab.router("port-restricted")
    one, other = router.host(), router.host()
    assert one.ip != other.ip
    assert run_python(one, CONNECT, other.ip, 4001) == "ECONNREFUSED"  # it is there, and says no
    first, second = (run_python(each, LOOK, helper.ips[0]).split() for each in (one, other))
    assert first == [str(router.public_ip), "4001"]
    assert second[0] == str(router.public_ip)
    assert second[1] != "4001"


def test_a_router_that_reboots_forgets_its_mappings(lab, helper):
    router = lab.router("symmetric")
    machine = router.host()
    before = run_python(machine, LOOK, helper.ips[0])
    assert run_python(machine, LOOK, helper.ips[0]) == before
    router.reboot()
    after = run_python(machine, LOOK, helper.ips[0])
    assert after.split()[0] == before.split()[0]
    assert after != before


def test_a_router_that_moves_has_another_address_and_lets_its_machines_out_as_before(lab, helper):
    router = lab.router("port-restricted")
    machine = router.host()
    before = router.public_ip
    router.move()
    assert router.public_ip != before
    assert run_python(machine, LOOK, helper.ips[0]).split()[0] == str(router.public_ip)


def test_a_wire_delays_and_loses_what_it_is_told_to(lab, helper):
    slow = lab.router("none", delay=0.05).host()
    lossy = lab.router("none", delay=0.001, loss=0.3).host()
    times = json.loads(run_python(slow, ECHO, helper.ips[0], 3))
    assert len(times) == 3
    assert min(times) >= 0.1
    arrived = len(json.loads(run_python(lossy, ECHO, helper.ips[0], 15)))
    assert 2 <= arrived <= 13  # of 15; about half come there and back


def test_nothing_is_left_of_a_laboratory_nor_of_its_programs():
    with Lab() as lab:
        machine = lab.router("port-restricted").host()
        names = [each for each in namespaces() if f".{os.getpid()}." in each]
        assert len(names) == 3
        process = machine.start(["sleep", "100"])
    assert process.returncode == -signal.SIGKILL
    assert not set(names) & set(namespaces())


def test_who_is_killed_is_swept_up_after():
    text = """
import time
from p2pnode.testing.nat_lab import Lab
with Lab() as lab:
    sleeper = lab.host().start(["sleep", "100"])
    print(sleeper.pid, flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as victim:
        sleeper = int(victim.stdout.readline())
        left = [each for each in namespaces() if f".{victim.pid}." in each]
        victim.kill()
    assert len(left) == 2
    with Lab():
        assert not set(left) & set(namespaces())
    assert _is_dead(sleeper)  # like its parent


def test_a_command_that_fails_tells_what_it_said():
    namespace = Namespace("test")
    try:
        with pytest.raises(LabError, match="Cannot find device"):
            namespace.ip("link set nowhere up")
    finally:
        namespace.close()
