"""Where others see a node, from what they say by identify to what it tells others."""

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.host.node import NetworkHost
from p2pnode.host.reachability.observed import ObservedAddressBelieved, ObservedAddressDropped
from p2pnode.protocols.identify.core import PUSH_PROTOCOL, Introduction, encode
from p2pnode.testing.hosts import full_hosts
from p2pnode.wire.addresses import tcp_address

SEEN = tcp_address("8.8.8.8", 20_000)
NEEDED = NetworkSettings().observed_votes


async def say(liar, host, observed):
    connection = await liar.connect(host.peer_id, host.addresses)
    stream = await connection.open_stream([PUSH_PROTOCOL])
    await stream.send_all(encode(Introduction(observed_address=observed)))
    await stream.aclose()
    await trio.sleep(1)


async def listening_host(world):
    """Add a host of a private network: those of the test network are."""
    return await world.add_host()


async def test_what_enough_peers_see_is_believed_and_told_to_others(autojump_clock):
    seen = tcp_address("11.200.0.1", 20_000)
    async with full_hosts() as world:
        host = await listening_host(world)
        friend = await world.add_host()
        await friend.connect(host.peer_id, host.addresses)
        with host.events.subscribe(ObservedAddressBelieved, ObservedAddressDropped) as events:
            for number in range(NEEDED):
                assert seen not in host.addresses
                await say(await world.add_host(identify=False), host, seen)
                assert (seen in host.addresses) is (number == NEEDED - 1)
            event = await events.get()
        assert event == ObservedAddressBelieved(address=seen, observers=NEEDED)
        assert host.listening == [each for each in host.addresses if each != seen]
        assert host.info().observed == (seen,)
        await trio.sleep(1)
        assert seen in friend.addresses_of(host.peer_id)  # pushed, in the signed record
        assert friend.peerstore.record_of(host.peer_id) is not None


async def test_a_public_address_on_the_word_of_private_observers_counts(autojump_clock):
    async with full_hosts() as world:
        host = await listening_host(world)
        for _ in range(NEEDED):
            await say(await world.add_host(identify=False), host, SEEN)
        assert SEEN in host.addresses


async def test_a_crowd_behind_one_address_is_not_believed(autojump_clock):
    async with full_hosts() as world:
        host = await listening_host(world)
        liar = await world.add_host(identify=False)
        machine = liar._transports[0]
        for number in range(2 * NEEDED):
            other = NetworkHost(
                type(host.key).from_seed(bytes([number + 100]) * 32), transports=[machine]
            )
            await world.nursery.start(other.run)
            await say(other, host, SEEN)
        assert SEEN not in host.addresses


async def test_it_is_dropped_some_time_after_its_observers_have_left(autojump_clock):
    settings = NetworkSettings(observed_address_ttl=60.0, idle_timeout=1e6, keepalive_interval=1e6)
    async with full_hosts() as world:
        host = await world.add_host(settings=settings)
        liars = [await world.add_host(identify=False, settings=settings) for _ in range(NEEDED)]
        for liar in liars:
            await say(liar, host, SEEN)
        assert host.observed == [SEEN]
        await trio.sleep(1000)
        assert host.observed == [SEEN]
        for liar in liars:
            await liar.connection_to(host.peer_id).aclose()
        with host.events.subscribe(ObservedAddressDropped) as events:
            left_at = trio.current_time()
            assert await events.get() == ObservedAddressDropped(address=SEEN)
        assert trio.current_time() - left_at == pytest.approx(60, abs=10)
        assert SEEN not in host.addresses


async def test_a_host_that_announces_its_address_tells_nothing_else(autojump_clock):
    announced = tcp_address("9.9.9.9", 1)
    async with full_hosts() as world:
        host = await listening_host(world)
        host._local._announce = (announced,)
        for liar in [await world.add_host(identify=False) for _ in range(NEEDED)]:
            stream = await liar.open_stream(host.peer_id, [PUSH_PROTOCOL], host.listening)
            await stream.send_all(encode(Introduction(observed_address=SEEN)))
            await stream.aclose()
            await trio.sleep(1)
        assert host.observed == [SEEN]
        assert host.addresses == [announced]
