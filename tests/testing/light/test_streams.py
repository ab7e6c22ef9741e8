import random

import pytest
import trio

from p2pnode.errors import (
    ConnectionClosedError,
    ProtocolError,
    ProtocolNotSupportedError,
    StreamResetError,
)
from p2pnode.mux.yamux import INITIAL_WINDOW
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, Normal, VirtualNetwork
from p2pnode.wire import varint

WAY = 0.1
NAME = "/test/1"


@pytest.fixture
async def pair(autojump_clock):
    """Two connected hosts: ours, theirs, and our end of the connection."""
    async with light_hosts(VirtualNetwork(latency=Fixed(WAY))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        await trio.sleep(1)
        yield ours, theirs, connection


@pytest.fixture
async def ends(pair):
    """Both ends of one stream, and what ends the handler of theirs."""
    _, theirs, connection = pair
    opened, over = [], trio.Event()

    async def keep(stream):
        opened.append(stream)
        await over.wait()

    theirs.set_handler(NAME, keep)
    stream = await connection.open_stream([NAME])
    await stream.send_all(b"!")
    await trio.sleep(2 * WAY)
    assert await opened[0].receive_exactly(1) == b"!"
    yield stream, opened[0]
    over.set()


async def test_a_stream_is_served_when_its_first_data_arrives(pair, autojump_clock):
    _, theirs, connection = pair
    served = []

    async def serve(stream):
        served.append(trio.current_time())
        assert await stream.receive_some() == b"x"
        served.append(trio.current_time())

    theirs.set_handler(NAME, serve)
    stream = await connection.open_stream([NAME])
    await trio.sleep(1)
    assert served == []  # nothing was said yet
    sent = trio.current_time()
    await stream.send_all(b"x")
    assert await stream.receive_some() == b""
    assert served == [pytest.approx(sent + WAY)] * 2
    assert trio.current_time() == pytest.approx(sent + 2 * WAY)


@pytest.mark.parametrize("first", ["receive_some", "send_eof"])
async def test_who_listens_first_opens_the_stream_too(pair, first, autojump_clock):
    _, theirs, connection = pair

    async def serve(stream):
        await stream.send_all(b"hello")

    theirs.set_handler(NAME, serve)
    stream = await connection.open_stream([NAME])
    answer = await getattr(stream, first)()
    assert (answer or await stream.receive_some()) == b"hello"


async def test_a_refusal_is_known_after_a_round_trip(pair, autojump_clock):
    _, _, connection = pair
    began = trio.current_time()
    stream = await connection.open_stream(["/none"])
    await stream.send_all(b"x")
    with pytest.raises(ProtocolNotSupportedError, match="/none"):
        await stream.receive_some()
    assert trio.current_time() - began == pytest.approx(2 * WAY)
    assert connection.streams == ()


async def test_messages_are_taken_whole_or_in_parts_as_they_came(ends, autojump_clock):
    ours, theirs = ends
    await ours.send_all(varint.prefixed(b"whole"))
    for each in varint.prefixed(b"parts"):
        await ours.send_all(bytes([each]))
    await ours.send_all(varint.prefixed(b"one") + varint.prefixed(b"two") + b"\x05tr")
    await ours.send_eof()
    found = [await theirs.receive_prefixed(10) for _ in range(4)]
    assert found == [b"whole", b"parts", b"one", b"two"]
    with pytest.raises(ProtocolError, match="ended after 2 of 5"):
        await theirs.receive_prefixed(10)


async def test_a_message_that_is_too_long_is_refused(ends, autojump_clock):
    ours, theirs = ends
    await ours.send_all(varint.prefixed(bytes(11)))
    with pytest.raises(ProtocolError, match="exceeds the limit of 10"):
        await theirs.receive_prefixed(10)


async def test_who_does_not_read_is_sent_a_window_and_no_more(ends, autojump_clock):
    ours, theirs = ends
    with trio.move_on_after(60) as scope:
        await ours.send_all(bytes(4 * INITIAL_WINDOW))
    assert scope.cancelled_caught
    await trio.sleep(2 * WAY)
    with pytest.raises(StreamResetError):
        await theirs.receive_some()  # a cancelled send leaves half a message


async def test_the_window_of_who_reads_grows(ends, autojump_clock):
    ours, theirs = ends
    size = 40 * INITIAL_WINDOW
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, bytes(size))
        assert await theirs.receive_exactly(size) == bytes(size)
    assert trio.current_time() - began < 10 * WAY


async def test_a_reset_arrives_one_way_later_and_takes_what_was_not_read(ends, autojump_clock):
    ours, theirs = ends
    await ours.send_all(b"lost")
    ours.reset()
    with pytest.raises(StreamResetError):
        await ours.send_all(b"x")
    await theirs.send_all(b"x")  # it does not know yet
    await trio.sleep(1.1 * WAY)
    with pytest.raises(StreamResetError):
        await theirs.receive_some()
    with pytest.raises(StreamResetError):
        await theirs.send_all(b"x")


async def test_what_was_sent_before_the_end_is_delivered(ends, autojump_clock):
    ours, theirs = ends
    await ours.send_all(b"goodbye")
    await ours.aclose()
    assert await theirs.receive_some() == b"goodbye"
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"to nobody")
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_two_readers_are_one_too_many(ends, autojump_clock):
    ours, _ = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive_some)
        await trio.sleep(1)
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_connection_ends_its_streams_at_both_ends(pair, ends, autojump_clock):
    ours, theirs = ends
    await pair[2].aclose()
    with pytest.raises(ConnectionClosedError):
        await ours.receive_some()
    with pytest.raises(ConnectionClosedError):
        await theirs.receive_some()
    with pytest.raises(ConnectionClosedError):
        await pair[2].open_stream([NAME])


async def test_a_cut_holds_data_ends_resets_and_new_streams_until_it_heals(
    pair, ends, autojump_clock
):
    host, theirs, connection = pair
    ours, far = ends
    network = host.world.network
    received = []

    async def serve(stream):
        received.append(await stream.receive_some())

    theirs.set_handler("/late", serve)
    await trio.sleep(1)
    await ours.send_all(b"under way")
    network.partition([host.machine], [theirs.machine])
    await ours.send_all(b", held")
    await ours.send_eof()
    late = await connection.open_stream(["/late"])
    await late.send_all(b"hello")
    doomed = await connection.open_stream(["/late"])
    await doomed.send_all(b"reset")
    doomed.reset()
    await trio.sleep(3)
    assert received == []
    network.heal()
    data = b""
    while piece := await far.receive_some():
        data += piece
    assert data == b"under way, held"
    await trio.sleep(10)
    assert received == [b"hello"]


async def test_streams_of_one_connection_do_not_overtake_each_other(autojump_clock):
    """They share a TCP connection: what is lost or late there holds up all behind it."""
    network = VirtualNetwork(random.Random(2), latency=Normal(0.1, 0.05), loss=0.05)
    arrived = {}

    async def serve(stream):
        arrived[int(await stream.receive_some())] = trio.current_time()

    async with light_hosts(network) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        theirs.set_handler(NAME, serve)
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        for number in range(200):
            stream = await connection.open_stream([NAME])
            await stream.send_all(b"%d" % number)
            await trio.sleep(0.01)
        await trio.sleep(60)
    times = [arrived[number] for number in range(200)]
    assert times == sorted(times)
