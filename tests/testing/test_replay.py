"""A run in memory depends on its seed alone, not on how Python hashes names in this process."""

import os
import subprocess
import sys

import pytest

# trio shuffles the tasks that are due at once, so that nobody depends on their order; hypothesis
# and pytest-trio seed it by these same names.
SEEDED = """
import trio._core._run
trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
trio._core._run._r.seed(7)

def note(event):
    connection = getattr(event, "connection", None)
    peer_id = getattr(connection or event, "peer_id", None)
    print(trio.current_time(), type(event).__name__, peer_id)
"""

LIGHT = """
import random, trio
from trio.testing import MockClock
from p2pnode.config import DhtSettings
from p2pnode.events import Event
from p2pnode.protocols.kad.service import KadDht
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork

async def story():
    rng = random.Random(7)
    latency = Drawn(lambda *_: rng.uniform(0.01, 0.1))
    async with light_hosts(VirtualNetwork(latency=latency)) as world:
        async with trio.open_nursery() as nursery:
            nodes = []
            for number in range(16):
                host = await world.add_host()
                host.events.on(Event, note)
                dht = KadDht(host, DhtSettings(liveness_interval=5.0), random.Random(number))
                await nursery.start(dht.run)
                if nodes:
                    first = nodes[0][0]
                    await dht.bootstrap([(first.peer_id, each) for each in first.addresses])
                nodes.append((host, dht))
            for host, _ in nodes[3:16:4]:
                world.crash(host)
                await trio.sleep(7)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()

trio.run(story, clock=MockClock(autojump_threshold=0))
"""

WHOLE = """
import random, trio
from trio.testing import MockClock
from p2pnode.errors import P2PNodeError
from p2pnode.events import Event
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.addresses import tcp_address

async def story():
    rng = random.Random(7)
    latency = Drawn(lambda *_: rng.uniform(0.01, 0.1))
    async with full_hosts(VirtualNetwork(latency=latency)) as world:
        hosts = await world.add_hosts(4)
        for host in hosts:
            host.events.on(Event, note)
        ghost = type(hosts[0].peer_id)(bytes([0, 36, 8, 1, 18, 32]) + bytes(32))
        dead = [tcp_address("10.0.0.1", port) for port in range(1, 7)]
        for insist in (False, False, True):
            try:
                await hosts[0].connect(ghost, dead, insist=insist)
            except P2PNodeError as error:
                print(trio.current_time(), error)
        await trio.sleep(60)

trio.run(story, clock=MockClock(autojump_threshold=0))
"""


@pytest.mark.parametrize("story", [LIGHT, WHOLE], ids=["light", "whole"])
def test_one_seed_gives_one_run_in_every_process(story):
    def run(hash_seed):
        environ = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SEEDED + story],
            env=environ,
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    one, other = run("1"), run("2")
    assert one == other
    assert len(one) > 10
