import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import PerfSettings
from p2pnode.errors import (
    ProtocolError,
    ProtocolNotSupportedError,
    RemoteError,
    StreamResetError,
)
from p2pnode.protocols.perf.core import PROTOCOL, encode_request
from p2pnode.protocols.perf.service import PerfService
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork

ROUND_TRIP = 0.2
SETTINGS = PerfSettings(max_bytes=1_000_000, max_runs_per_peer=2, max_runs=3, run_timeout=30.0)


@pytest.fixture
async def world(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(ROUND_TRIP / 2))) as world:
        yield world


@pytest.fixture
async def hosts(world):
    """Two connected hosts; the second one serves perf."""
    ours, theirs = await world.add_hosts(2)
    service = PerfService(theirs, SETTINGS)
    await world.nursery.start(service.run)
    yield ours, theirs
    await wait_all_tasks_blocked()
    assert not service._served


@pytest.mark.parametrize(("upload", "download"), [(0, 0), (0, 999_999), (1_000_000, 0), (5, 7)])
async def test_all_that_is_asked_for_goes_up_and_comes_down(
    hosts, upload, download, autojump_clock
):
    ours, theirs = hosts
    result = await PerfService(ours).measure(theirs.peer_id, upload=upload, download=download)
    assert (result.upload, result.download) == (upload, download)
    assert result.upload_seconds >= ROUND_TRIP
    if download == 0:
        assert result.download_seconds == 0
    await trio.sleep(1)
    assert ours.connection_to(theirs.peer_id).streams == 0
    assert theirs.connection_to(ours.peer_id).streams == 0


async def test_it_dials_the_addresses_it_is_given(world, autojump_clock):
    ours, theirs = await world.add_host(), await world.add_host()
    await world.nursery.start(PerfService(theirs).run)
    result = await PerfService(ours).measure(
        theirs.peer_id, download=10, addresses=theirs.addresses
    )
    assert result.download == 10


async def test_the_listener_answers_only_when_the_upload_has_ended(hosts, autojump_clock):
    ours, theirs = hosts
    stream = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    await stream.send_all(encode_request(3) + b"upload")
    with trio.move_on_after(20) as scope:
        await stream.receive_some()
    assert scope.cancelled_caught
    await stream.send_eof()
    assert await stream.receive_exactly(3) == bytes(3)
    assert await stream.receive_some() == b""
    await stream.aclose()


@pytest.mark.parametrize(("upload", "download"), [(0, 1_000_001), (1_000_001, 0)])
async def test_more_than_is_served_ends_the_stream(hosts, upload, download, autojump_clock):
    ours, theirs = hosts
    with pytest.raises(StreamResetError):
        await PerfService(ours).measure(theirs.peer_id, upload=upload, download=download)
    assert (await PerfService(ours).measure(theirs.peer_id, download=1)).download == 1


async def test_a_stream_that_ends_inside_its_request_is_reset(hosts, autojump_clock):
    ours, theirs = hosts
    stream = await ours.open_stream(theirs.peer_id, [PROTOCOL])
    await stream.send_all(bytes(7))
    await stream.send_eof()
    with pytest.raises(StreamResetError):
        await stream.receive_some()


async def hold(host, peer_id):
    stream = await host.open_stream(peer_id, [PROTOCOL])
    await stream.send_all(encode_request(1))
    await trio.sleep(ROUND_TRIP * 3)
    return stream


async def test_a_peer_has_only_so_many_runs_at_once(hosts, autojump_clock):
    ours, theirs = hosts
    held = [await hold(ours, theirs.peer_id) for _ in range(SETTINGS.max_runs_per_peer)]
    with pytest.raises(StreamResetError):
        await PerfService(ours).measure(theirs.peer_id, download=1)
    held[0].reset()
    await trio.sleep(1)
    assert (await PerfService(ours).measure(theirs.peer_id, download=1)).download == 1
    held[1].reset()
    await trio.sleep(1)


async def test_all_peers_together_have_only_so_many_runs_at_once(hosts, world, autojump_clock):
    _, theirs = hosts
    held = []
    for _ in range(SETTINGS.max_runs):
        other = await world.add_host()
        await other.connect(theirs.peer_id, theirs.addresses)
        held.append(await hold(other, theirs.peer_id))
    late = await world.add_host()
    with pytest.raises(StreamResetError):
        await PerfService(late).measure(theirs.peer_id, addresses=theirs.addresses)
    for stream in held:
        stream.reset()
    await trio.sleep(1)
    await PerfService(late).measure(theirs.peer_id)


async def test_a_run_that_takes_too_long_is_given_up_by_the_listener(hosts, autojump_clock):
    ours, theirs = hosts
    stream = await hold(ours, theirs.peer_id)
    began = trio.current_time()
    with pytest.raises(StreamResetError):
        await stream.receive_some()
    assert trio.current_time() - began <= SETTINGS.run_timeout


async def test_a_silent_listener_is_given_up_and_its_stream_reset(hosts, autojump_clock):
    async def silent(_stream):
        await trio.sleep_forever()

    ours, theirs = hosts
    theirs.set_handler(PROTOCOL, silent)
    began = trio.current_time()
    with pytest.raises(RemoteError, match="longer than 3 s"):
        await PerfService(ours, PerfSettings(run_timeout=3.0)).measure(theirs.peer_id)
    assert trio.current_time() - began == pytest.approx(3.0)
    await trio.sleep(1)
    assert ours.connection_to(theirs.peer_id).streams == 0


@pytest.mark.parametrize(("sent", "says"), [(9, "1 of 10 bytes too few"), (11, "more than the 10")])
async def test_an_answer_of_another_length_breaks_the_rules(hosts, sent, says, autojump_clock):
    async def lie(stream):
        while await stream.receive_some():
            pass
        await stream.send_all(bytes(sent))

    ours, theirs = hosts
    theirs.set_handler(PROTOCOL, lie)
    with pytest.raises(ProtocolError, match=says):
        await PerfService(ours).measure(theirs.peer_id, download=10)


async def test_impossible_sizes_are_the_callers_mistake(hosts, autojump_clock):
    ours, theirs = hosts
    for sizes in ({"upload": -1}, {"download": -1}, {"download": 2**64}):
        with pytest.raises(ValueError, match="load is of 0"):
            await PerfService(ours).measure(theirs.peer_id, **sizes)


@pytest.mark.parametrize("upload", [0, 1_000_000])
async def test_a_peer_that_does_not_serve_it_says_so(world, upload, autojump_clock):
    ours, theirs = await world.add_hosts(2)
    with pytest.raises(ProtocolNotSupportedError):
        await PerfService(ours).measure(theirs.peer_id, upload=upload)


async def test_when_the_service_ends_nobody_is_served_any_longer(world, autojump_clock):
    host = await world.add_host(identify=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(PerfService(host).run)
        assert host.protocols == [PROTOCOL]
        nursery.cancel_scope.cancel()
    assert host.protocols == []
