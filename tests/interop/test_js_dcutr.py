"""Direct connections with js-libp2p that begin over a relay, across real NATs.

js-libp2p does not dial from the port it listens on, so holes are punched to it, not by it: of the
two, one has to be reachable.
"""

import contextlib

import pytest
import trio

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.errors import ProtocolNotSupportedError, StreamResetError
from p2pnode.testing.nat_lab import Lab, why_not

pytestmark = [pytest.mark.real, pytest.mark.interop]

WITHIN = 30
HOME = "port-restricted"


async def ask(daemon, method, **params):
    def call():
        return call_daemon(DataDir(daemon.data_dir).control_socket, method, **params)

    return await trio.to_thread.run_sync(call)


class World:
    """A relay of ours in the middle of an internet, and whoever is added to it."""

    def __init__(self, lab, folder, stack, start_js):
        self._lab = lab
        self._folder = folder
        self._stack = stack
        self._start_js = start_js
        self._relay = self._start("relay", lab.host(), "relay.server=always")
        self.relay = self._relay.address

    def _start(self, name, machine, *assignments):
        chosen = [f"--set={each}" for each in ("portmap.mode=off", *assignments)]
        return self._stack.enter_context(machine.daemon(self._folder / name, *chosen))

    def _place(self, nat):
        return self._lab.host() if nat == "none" else self._lab.router(nat).host()

    async def add_ours(self, nat):
        """Start a daemon that others reach through the relay."""
        settings = "relay.server=never", "relay.client=always", f"relay.relays={self.relay}"
        place = self._place(nat)
        daemon = await trio.to_thread.run_sync(self._start, "ours", place, *settings)
        for _ in range(WITHIN * 10):
            if "p2p-circuit" in str((await ask(daemon, "status"))["addresses"]):
                return daemon
            await trio.sleep(0.1)
        pytest.fail("the daemon has no reservation")

    async def add_js(self, nat):
        place = self._place(nat)
        script = "relay.mjs", "punch", f"/ip4/{place.ip}/tcp/4001"
        return await self._stack.enter_async_context(
            self._start_js(*script, within=place.ns.within)
        )

    def through_relay(self, peer_id):
        return f"{self.relay}/p2p-circuit/p2p/{peer_id}"

    async def call(self, daemon, js):
        """Have a daemon of ours connect to the js-libp2p node over the relay."""
        await js("reserve", address=self.relay)
        # It answers no pings, and closes the relayed connection as soon as there is another one.
        with pytest.raises((ProtocolNotSupportedError, StreamResetError)):
            await ask(daemon, "ping", peer=self.through_relay(js.peer_id))


@pytest.fixture
async def world(tmp_path, start_js):
    if why_not():
        pytest.skip(why_not())
    with Lab() as lab:
        async with contextlib.AsyncExitStack() as stack:
            yield World(lab, tmp_path, stack, start_js)


async def directly(daemon, js):
    """Wait until a daemon of ours and the js-libp2p node are connected directly.

    Returns:
        What our side says of that connection.
    """
    with trio.fail_after(WITHIN):
        while True:
            for each in await ask(daemon, "peers"):
                if each["peer_id"] == str(js.peer_id) and "relayed" not in each["way"]:
                    theirs = await js("connections", peer=daemon.peer_id)
                    assert any("p2p-circuit" not in far_end for far_end in theirs)
                    return each
            await trio.sleep(0.1)


async def test_we_dial_a_js_node_that_called_us_over_a_relay(world):
    ours, js = await world.add_ours(HOME), await world.add_js("none")
    await js("dial", address=world.through_relay(ours.peer_id))
    connection = await directly(ours, js)
    assert connection["direction"] == "outbound"
    assert "made by dialling it" in connection["note"]


async def test_a_js_node_that_we_called_over_a_relay_dials_us(world):
    ours, js = await world.add_ours("none"), await world.add_js(HOME)
    await world.call(ours, js)
    assert (await directly(ours, js))["direction"] == "inbound"


async def test_a_js_node_that_called_us_dials_at_the_moment_that_we_tell_it(world):
    ours, js = await world.add_ours("none"), await world.add_js(HOME)
    await js("dial", address=world.through_relay(ours.peer_id))
    connection = await directly(ours, js)
    assert connection["direction"] == "inbound"
    assert "attempt 1" in connection["note"]


async def test_we_dial_a_js_node_that_we_called_at_the_moment_that_it_tells_us(world):
    ours, js = await world.add_ours(HOME), await world.add_js("none")
    await world.call(ours, js)
    connection = await directly(ours, js)
    assert connection["direction"] == "outbound"
    assert "attempt 1" in connection["note"]
