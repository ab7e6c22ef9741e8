import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    DialError,
    ProtocolError,
    ProtocolNotSupportedError,
    RemoteError,
    StreamResetError,
)
from p2pnode.protocols.ping.core import PROTOCOL
from p2pnode.protocols.ping.service import PingService
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.keys import PrivateKey

ROUND_TRIP = 0.2


@pytest.fixture
async def hosts(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(ROUND_TRIP / 2))) as world:
        hosts = await world.add_hosts(2)
        await trio.sleep(5)
        yield hosts


async def test_a_ping_takes_a_round_trip(hosts, autojump_clock):
    ours, theirs = hosts
    service = PingService(ours)
    for _ in range(3):
        assert await service.ping(theirs.peer_id) == pytest.approx(ROUND_TRIP)
    assert service._outbound == {}


async def test_a_ping_connects_first_if_needed(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        with pytest.raises(DialError):
            await PingService(ours).ping(theirs.peer_id)
        ours.add_addresses(theirs.peer_id, theirs.addresses, 60)
        assert await PingService(ours).ping(theirs.peer_id) == pytest.approx(0.0)


async def test_it_runs_on_light_hosts_too(autojump_clock):
    async with light_hosts(VirtualNetwork(latency=Fixed(0.1))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        await world.nursery.start(PingService(theirs).run)
        await ours.connect(theirs.peer_id, theirs.addresses)
        assert await PingService(ours).ping(theirs.peer_id) == pytest.approx(0.2)


async def test_pings_of_one_peer_wait_for_each_other(hosts, autojump_clock):
    ours, theirs = hosts
    service = PingService(ours)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(service.ping, theirs.peer_id)
    assert trio.current_time() - began == pytest.approx(5 * ROUND_TRIP)
    assert service._outbound == {}


async def test_a_ping_stream_that_is_not_used_does_not_hold_its_connection(hosts, autojump_clock):
    ours, theirs = hosts
    stream = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    for _ in range(3):
        await stream.send_all(bytes(32))
        assert await stream.receive_exactly(32) == bytes(32)
        await trio.sleep(theirs.settings.idle_timeout / 2)
    with pytest.raises(StreamResetError), trio.fail_after(theirs.settings.idle_timeout):
        await stream.receive_some()


async def test_many_pings_may_follow_on_one_stream(hosts, autojump_clock):
    ours, theirs = hosts
    stream = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    for number in range(3):
        payload = bytes([number]) * 32
        await stream.send_all(payload[:5])
        await stream.send_all(payload[5:])
        assert await stream.receive_exactly(32) == payload
    await stream.send_eof()
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_a_third_stream_of_one_peer_is_refused(hosts, autojump_clock):
    ours, theirs = hosts
    held = []
    for _ in range(2):
        stream = await ours.open_stream(theirs.peer_id, [PROTOCOL])
        await stream.send_all(bytes(32))
        await stream.receive_exactly(32)
        held.append(stream)
    third = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    await third.send_all(bytes(32))
    with pytest.raises(StreamResetError):
        await third.receive_exactly(32)
    await held[0].aclose()
    await trio.sleep(1)
    again = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    await again.send_all(bytes(32))
    assert await again.receive_exactly(32) == bytes(32)


async def test_a_wrong_answer_is_a_broken_rule(hosts, autojump_clock):
    async def lie(stream):
        await stream.receive_exactly(32)
        await stream.send_all(bytes(32))

    ours, theirs = hosts
    theirs.set_handler(PROTOCOL, lie)
    with pytest.raises(ProtocolError, match="not what was sent"):
        await PingService(ours).ping(theirs.peer_id)


async def test_a_peer_that_does_not_know_ping_says_so(hosts, autojump_clock):
    ours, theirs = hosts
    theirs.remove_handler(PROTOCOL)
    with pytest.raises(ProtocolNotSupportedError):
        await PingService(ours).ping(theirs.peer_id)


async def test_a_silent_peer_is_given_up_and_its_stream_reset(hosts, autojump_clock):
    async def silent(_stream):
        await trio.sleep_forever()

    ours, theirs = hosts
    theirs.set_handler(PROTOCOL, silent)
    service = PingService(ours, NetworkSettings(ping_timeout=3.0))
    began = trio.current_time()
    with pytest.raises(RemoteError, match="within 3 s"):
        await service.ping(theirs.peer_id)
    assert trio.current_time() - began == pytest.approx(3.0)
    await wait_all_tasks_blocked()
    assert ours.connection_to(theirs.peer_id).streams == 0
    assert service._outbound == {}


async def test_a_cancelled_ping_leaves_nothing_behind(hosts, autojump_clock):
    ours, theirs = hosts
    service = PingService(ours)
    with trio.move_on_after(ROUND_TRIP / 4):
        await service.ping(theirs.peer_id)
    await trio.sleep(1)
    assert ours.connection_to(theirs.peer_id).streams == 0
    assert theirs.connection_to(ours.peer_id).streams == 0
    assert service._outbound == {}
    assert await service.ping(theirs.peer_id) == pytest.approx(ROUND_TRIP)


async def test_when_the_service_ends_pings_are_answered_no_longer(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host(PrivateKey.from_seed(b"p" * 32), identify=False)
        async with trio.open_nursery() as nursery:
            await nursery.start(PingService(ours).run)
            assert ours.protocols == [PROTOCOL]
            nursery.cancel_scope.cancel()
        assert ours.protocols == []
