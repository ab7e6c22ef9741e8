"""Real multicast, on the loopback interface or in a network namespace of the test's own."""

import ipaddress
import json
import random
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest
import trio
from zeroconf import NonUniqueNameException

from p2pnode.protocols.mdns.core import Advertisement, build_text, read_texts
from p2pnode.protocols.mdns.lan import run_zeroconf
from p2pnode.protocols.mdns.service import draw_label
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

LOOPBACK = (ipaddress.ip_address("127.0.0.1"),)


def advertisement(interfaces=LOOPBACK):
    key = PrivateKey.generate()
    ours = Advertisement(
        text=build_text(key.peer_id, [tcp_address("127.0.0.1", 4001)]),
        interfaces=interfaces,
    )
    return key.peer_id, ours


class Ear:
    """Waits until a peer is heard."""

    def __init__(self):
        self.heard = {}
        self._changed = trio.Event()

    def __call__(self, texts):
        told = read_texts(texts, limit=8)
        if told is not None:
            self.heard[told.peer_id] = told.addresses
            self._changed.set()

    async def wait_for(self, peer_id):
        while peer_id not in self.heard:
            self._changed = trio.Event()
            await self._changed.wait()
        return self.heard[peer_id]


async def carry(ours, ear):
    await run_zeroconf(ours, ear, label=draw_label(random.Random()), close_timeout=5.0)


@pytest.mark.real
async def test_two_sessions_on_loopback_hear_each_other_whoever_came_first():
    (first, one), (second, other) = advertisement(), advertisement()
    ears = Ear(), Ear()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, one, ears[0])
            await trio.sleep(2)  # real time: the first has announced itself, and is heard later
            nursery.start_soon(carry, other, ears[1])
            assert await ears[0].wait_for(second) == (tcp_address("127.0.0.1", 4001),)
            assert await ears[1].wait_for(first) == (tcp_address("127.0.0.1", 4001),)
            assert first not in ears[0].heard
            nursery.cancel_scope.cancel()


@pytest.mark.real
@pytest.mark.parametrize("after", [0.0, 0.05, 0.5])
async def test_its_thread_ends_with_it_at_whatever_moment(after):
    before = threading.active_count()
    with trio.fail_after(20):
        with trio.move_on_after(after):
            await carry(advertisement()[1], Ear())
        # trio keeps idle threads for reuse; those of an event loop would be further ones.
        assert threading.active_count() <= before + 1


@pytest.mark.real
async def test_an_interface_that_is_not_there_is_an_error_not_a_crash():
    nowhere = ipaddress.ip_address("fd12:3456:789a::1")
    with trio.fail_after(20), pytest.raises(OSError, match="fd12"):
        await carry(advertisement((nowhere,))[1], Ear())


@pytest.mark.real
async def test_who_claims_our_name_cannot_end_the_node(monkeypatch):
    async def refuse(*_arguments, **_options):
        raise NonUniqueNameException

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf.async_register_service", refuse)
    with trio.fail_after(20), pytest.raises(OSError, match="NonUniqueName"):
        await carry(advertisement()[1], Ear())


SCRIPT = """
    import ipaddress, json, sys, trio
    from p2pnode.protocols.mdns.core import SERVICE, Advertisement
    from p2pnode.protocols.mdns.lan import run_zeroconf

    async def speak(interface):
        ours = Advertisement(text=b"\\x00", interfaces=(ipaddress.ip_address(interface),))
        with trio.move_on_after(2):
            await run_zeroconf(ours, lambda texts: None, label="x" * 32, close_timeout=5.0)

    def sent():
        with open("/proc/net/dev") as lines:
            found = dict(line.split(":") for line in lines if ":" in line)
        return {name.strip(): int(text.split()[9]) for name, text in found.items()}

    counts = [sent()]
    for interface in ("127.0.0.1", "10.9.0.1"):
        trio.run(speak, interface)
        counts.append(sent())
    print(json.dumps(counts))
"""
SETUP = (
    "ip link set lo up && ip link add there type veth peer name beyond && "
    "ip addr add 10.9.0.1/24 dev there && ip link set there up && ip link set beyond up && "
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; "
    'exec "$0" -c "$1"'
)


@pytest.mark.real
def test_a_session_speaks_on_its_own_interface_and_on_no_other():
    """Packets are counted in a namespace with loopback and one network."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip")
    command = ["unshare", "-rn", "sh", "-c", SETUP, sys.executable, textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.stderr.startswith(("unshare", "RTNETLINK")):
        pytest.skip(f"this machine lets nobody make network namespaces: {done.stderr}")
    assert done.returncode == 0, done.stderr
    before, after_loopback, after_network = json.loads(done.stdout)
    assert after_loopback["lo"] - before["lo"] > 2
    assert after_loopback["there"] == before["there"]
    assert after_network["there"] - after_loopback["there"] > 2
