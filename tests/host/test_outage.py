"""How soon a node is back after its network, or that of a peer, was down."""

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError, NoRouteError
from p2pnode.host.node import MAX_UPKEEP_INTERVAL
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address

OUTAGE = 900.0
NOTICED = 1.2 * MAX_UPKEEP_INTERVAL


class Outage:
    """Stands before a machine's transport, and fails its dials while `error` is set."""

    def __init__(self, host, monkeypatch):
        self.error = None
        self.tries = []
        self._dial = host._transports[0].dial
        monkeypatch.setattr(host._transports[0], "dial", self.dial)

    async def dial(self, address, *, reuse_port=True):
        self.tries.append(trio.current_time())
        if self.error is not None:
            await trio.lowlevel.checkpoint()
            raise self.error
        return await self._dial(address, reuse_port=reuse_port)


async def add_friends(world):
    """Add two hosts that stay connected, however idle."""
    settings = NetworkSettings(idle_timeout=10 * OUTAGE)
    friends = [await world.add_host(settings=settings) for _ in range(2)]
    await world.connect_all(friends)
    return friends


async def wait_connected(host, peer_id, addresses):
    """Dial again and again, as the DHT does; returns how long it took."""
    began = trio.current_time()
    while host.connection_to(peer_id) is None:
        try:
            await host.connect(peer_id, addresses)
        except DialError:
            await trio.sleep(0.5)
    return trio.current_time() - began


@pytest.fixture
def outage(monkeypatch):
    return lambda host: Outage(host, monkeypatch)


async def endure(host, peer, outage):
    """Try in vain for long, and then not; returns how long it took then."""
    with trio.move_on_after(OUTAGE):
        await wait_connected(host, peer.peer_id, peer.addresses)
    outage.error = None
    return await wait_connected(host, peer.peer_id, peer.addresses)


async def test_a_node_without_any_peer_is_back_in_seconds_after_the_network(autojump_clock, outage):
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        away = outage(ours)
        away.error = DialError("no answer")
        assert await endure(ours, theirs, away) <= ours.settings.dial_backoff_alone + 1


async def test_a_node_that_lost_its_last_peer_is_back_in_seconds(autojump_clock, outage):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        away = outage(ours)
        away.error = DialError("no answer")
        await ours.connection_to(theirs.peer_id).aclose()
        await trio.sleep(1)
        assert await endure(ours, theirs, away) <= ours.settings.dial_backoff_alone + 1


async def test_while_others_are_connected_a_silent_peer_is_tried_once_a_minute(
    autojump_clock, outage
):
    async with full_hosts() as world:
        ours, _ = await add_friends(world)
        silent = await world.add_host()
        away = outage(ours)
        away.error = DialError("no answer")
        with trio.move_on_after(OUTAGE):
            await wait_connected(ours, silent.peer_id, silent.addresses)
        assert len(away.tries) < OUTAGE / 30 + 6


async def test_no_route_is_no_fault_of_the_peers(autojump_clock, outage):
    async with full_hosts() as world:
        ours, _ = await add_friends(world)
        other = await world.add_host()
        away = outage(ours)
        away.error = NoRouteError("network is unreachable")
        assert await endure(ours, other, away) < 1


async def test_a_peer_that_comes_by_itself_may_be_dialled_at_once(autojump_clock, outage):
    async with full_hosts() as world:
        ours, _ = await add_friends(world)
        other = await world.add_host()
        away = outage(ours)
        away.error = DialError("no answer")
        with trio.move_on_after(OUTAGE):
            await wait_connected(ours, other.peer_id, other.addresses)
        await (await other.connect(ours.peer_id, ours.addresses)).aclose()
        await trio.sleep(0.1)
        away.error = None
        assert await wait_connected(ours, other.peer_id, other.addresses) < 1


async def test_on_another_network_all_may_be_dialled_at_once(autojump_clock, outage, monkeypatch):
    async with full_hosts() as world:
        ours, _ = await add_friends(world)
        other = await world.add_host()
        away = outage(ours)
        away.error = DialError("no answer")
        with trio.move_on_after(OUTAGE):
            await wait_connected(ours, other.peer_id, other.addresses)
        away.error = None
        addresses = other.addresses
        listener = type(ours._local.listeners[0])
        monkeypatch.setattr(listener, "addresses", [tcp_address("10.7.7.7", 7)])
        assert await wait_connected(ours, other.peer_id, addresses) <= NOTICED + 1


@pytest.mark.parametrize("worlds", [full_hosts, light_hosts])
async def test_a_machine_without_power_is_back_in_seconds_in_both_fidelities(
    autojump_clock, worlds
):
    network = VirtualNetwork(latency=Fixed(0.01))
    async with worlds(network) as world:
        machine = network.add_machine()
        ours, theirs = await world.add_host(machine=machine), await world.add_host()
        addresses = theirs.addresses
        await ours.connect(theirs.peer_id, addresses)
        network.take_down(machine)
        await trio.sleep(OUTAGE)
        assert not ours.connections()
        with trio.move_on_after(OUTAGE):
            await wait_connected(ours, theirs.peer_id, addresses)
        network.bring_up(machine)
        took = await wait_connected(ours, theirs.peer_id, addresses)
        settings = NetworkSettings()
        assert took <= settings.dial_attempt_timeout + settings.dial_backoff_alone + 1
