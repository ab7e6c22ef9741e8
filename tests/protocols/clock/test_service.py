import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio, wall_time
from p2pnode.config import NetworkSettings
from p2pnode.errors import ProtocolError, ProtocolNotSupportedError, RemoteError
from p2pnode.protocols.clock.core import PROTOCOL, QUESTION_BYTES, encode_answer
from p2pnode.protocols.clock.service import ClockService
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork

ROUND_TRIP = 0.2


@pytest.fixture
async def hosts(autojump_clock):
    bind_wall_time_to_trio(1_700_000_000.0)
    async with light_hosts(VirtualNetwork(latency=Fixed(ROUND_TRIP / 2))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        await ours.connect(theirs.peer_id, theirs.addresses)
        yield ours, theirs


async def _late(stream):
    question = await stream.receive_exactly(QUESTION_BYTES)
    await stream.send_all(encode_answer(question, wall_time() - 90))


async def test_clocks_are_compared_to_half_a_round_trip(hosts, autojump_clock):
    ours, theirs = hosts
    await theirs.world.nursery.start(ClockService(theirs).run)
    service = ClockService(ours)
    found = await service.compare(theirs.peer_id)
    assert found.seconds == pytest.approx(0, abs=1e-6)
    assert found.error == pytest.approx(ROUND_TRIP / 2)

    theirs.set_handler(PROTOCOL, _late)
    assert (await service.compare(theirs.peer_id)).seconds == pytest.approx(-90)


async def _silence(_stream):
    await trio.sleep_forever()


async def _nonsense(stream):
    await stream.send_all(bytes(64))


@pytest.mark.parametrize(
    ("handler", "error"),
    [(None, ProtocolNotSupportedError), (_silence, RemoteError), (_nonsense, ProtocolError)],
)
async def test_who_tells_no_time_is_an_error(hosts, autojump_clock, handler, error):
    ours, theirs = hosts
    if handler is not None:
        theirs.set_handler(PROTOCOL, handler)
    began = trio.current_time()
    with pytest.raises(error):
        await ClockService(ours).compare(theirs.peer_id)
    assert trio.current_time() - began <= NetworkSettings().ping_timeout


async def test_a_dialer_that_asks_nothing_is_let_go(hosts, autojump_clock):
    ours, theirs = hosts
    await theirs.world.nursery.start(ClockService(theirs).run)
    stream = await ours.connection_to(theirs.peer_id).open_stream([PROTOCOL])
    await stream.send_all(b"half")
    with pytest.raises(RemoteError):
        await stream.receive_exactly(1)
    assert not theirs.connection_to(ours.peer_id).streams
