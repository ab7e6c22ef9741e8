"""Daemons behind real NATs of each kind, which meet over a relay: by TCP, and by QUIC.

Over QUIC by default a few pairs; `NAT_MATRIX=full pytest tests/nat` tries all of them.
"""

import contextlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.testing.nat_lab import Lab
from p2pnode.testing.nat_lab.punching import DIRECT, FAILED, LISTEN, can_be_punched, punch_all
from p2pnode.testing.network import Nat

pytestmark = pytest.mark.real

ONE_WAY = 0.0125  # from each machine to the middle of the internet: 50 ms for a round trip
COMMON = ["portmap.mode=off", "dcutr.attempt_timeout=2"]
RELAY = ["relay.server=always", "relay.circuit_bytes=0", "relay.circuit_seconds=0"]


def ask(daemon, method, **params):
    """Do as `p2pnode <method>` does, without the process."""
    return call_daemon(DataDir(daemon.data_dir).control_socket, method, **params)


def connections(one, other):
    return [each for each in ask(one, "peers") if each["peer_id"] == other.peer_id]


def is_direct(one, other):
    return {"direct", "punched"} & {each["way"] for each in connections(one, other)}


def has_failed(one, other):
    (connection,) = connections(one, other)
    return connection["way"] == "relayed" and "no hole could be punched" in connection["note"]


FEW = [Nat.PORT_RESTRICTED, Nat.SYMMETRIC]  # the strictest
IS_FULL = os.environ.get("NAT_MATRIX") == "full"
NATS = {"tcp": list(Nat), "quic": list(Nat) if IS_FULL else FEW}
PAIRS = {kind: list(itertools.product(nats, nats)) for kind, nats in NATS.items()}


@contextlib.contextmanager
def nodes_over(transport, folder, eventually):
    """Two daemons behind each NAT; those in `callers` have called all those in `called`."""
    listen, nats = LISTEN[transport], NATS[transport]
    with Lab() as lab, contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:

        def start(name, machine, *assignments):
            chosen = [f"--set={each}" for each in (*COMMON, *assignments)]
            return stack.enter_context(machine.daemon(folder / name, *chosen, listen=listen))

        def start_private(machine, name):
            at = f"relay.relays={relay.address}"
            daemon = start(name, machine, "relay.server=never", "relay.client=always", at)
            eventually(lambda: "p2p-circuit" in str(ask(daemon, "status")["addresses"]))
            return daemon

        def call(caller, daemon):
            ask(caller, "ping", peer=f"{relay.address}/p2p-circuit/p2p/{daemon.peer_id}")

        relay = start("relay", lab.host(delay=ONE_WAY), *RELAY)
        machines = [lab.router(nat, delay=ONE_WAY).host() for nat in (*nats, *nats)]
        names = [f"{side}-{nat.value}" for side in "ab" for nat in nats]
        daemons = list(pool.map(start_private, machines, names))
        callers = dict(zip(nats, daemons[: len(nats)], strict=True))
        called = dict(zip(nats, daemons[len(nats) :], strict=True))
        list(pool.map(lambda pair: call(callers[pair[0]], called[pair[1]]), PAIRS[transport]))
        yield callers, called


@pytest.fixture(scope="module")
def over_tcp(tmp_path_factory, eventually):
    with nodes_over("tcp", tmp_path_factory.mktemp("tcp"), eventually) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def over_quic(tmp_path_factory, eventually):
    with nodes_over("quic", tmp_path_factory.mktemp("quic"), eventually) as nodes:
        yield nodes


def each_pair(transport):
    """Run a test for each pair of NATs, named by it."""
    pairs = PAIRS[transport]
    names = [f"{one.value}_x_{other.value}" for one, other in pairs]
    return pytest.mark.parametrize(("nat_a", "nat_b"), pairs, ids=names)


@each_pair("tcp")
def test_holes_are_punched_over_tcp_where_they_can_be(over_tcp, eventually, ping, nat_a, nat_b):
    check(over_tcp, eventually, ping, nat_a, nat_b)


@each_pair("quic")
def test_holes_are_punched_over_quic_where_they_can_be(over_quic, eventually, ping, nat_a, nat_b):
    check(over_quic, eventually, ping, nat_a, nat_b)


def check(nodes, eventually, ping, nat_a, nat_b):
    """Nodes behind these two NATs come together, directly where that is possible."""
    callers, called = nodes
    ours, theirs = callers[nat_a], called[nat_b]
    if can_be_punched(nat_a, nat_b):
        # On a busy machine all attempts may fail; the next ones come after a minute.
        eventually(lambda: is_direct(ours, theirs), 100.0)
        eventually(lambda: is_direct(theirs, ours))
    else:
        eventually(lambda: has_failed(theirs, ours))
    # A ping may be on its way over a spare connection when the other side closes that.
    assert eventually(lambda: ping(ours, theirs))


@pytest.mark.usefixtures("if_full")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", LISTEN)
def test_nearly_all_holes_are_punched_at_the_first_attempt(tmp_path, transport):
    taken = punch_all(tmp_path, transport, loss=0.0, seed=7)
    assert len(taken) == 22
    punched = [attempts for attempts in taken.values() if attempts != DIRECT]
    assert FAILED not in punched
    assert punched.count(1) >= 0.9 * len(punched)
