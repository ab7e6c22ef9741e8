"""A node held to a bandwidth, over the virtual network and its virtual time."""

import pytest
import trio
import trio.testing

from p2pnode.config import KIB, LimitSettings
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork

ECHO, SINK, SOURCE = "/echo/1", "/sink/1", "/source/1"
RATE = 100 * KIB
BULK = bytes(1024 * KIB)


@pytest.fixture
async def world(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.005))) as world:
        yield world


async def swallow_in_place(stream):
    await stream.receive_into(memoryview(bytearray(len(BULK))))
    await stream.send_all(b"thanks")


async def pour(stream):
    await stream.send_all(BULK)


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def pair(world, **limits):
    """A limited host and a free one, and how the limited one reaches it."""
    limited = await world.add_host(limits=LimitSettings(**limits))
    free = await world.add_host()
    for host in (limited, free):
        host.set_handler(ECHO, echo)
        host.set_handler(SINK, swallow_in_place)
        host.set_handler(SOURCE, pour)
    await limited.connect(free.peer_id, free.addresses)
    return limited, free


async def send_bulk(host, peer_id):
    stream = await host.open_stream(peer_id, [SINK])
    await stream.send_all(BULK)
    assert await stream.receive_some() == b"thanks"


async def take_bulk(host, peer_id):
    stream = await host.open_stream(peer_id, [SOURCE])
    received = 0
    while data := await stream.receive_some():
        received += len(data)
    assert received == len(BULK)


async def seconds(*calls):
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for function, *arguments in calls:
            nursery.start_soon(function, *arguments)
    return trio.current_time() - began


async def test_what_a_node_sends_is_held_to_its_upload(autojump_clock, world):
    limited, free = await pair(world, max_upload=RATE)
    assert await seconds((send_bulk, limited, free.peer_id)) == pytest.approx(10.24, rel=0.05)
    assert await seconds((take_bulk, limited, free.peer_id)) < 1


async def test_what_a_node_takes_is_held_to_its_download(autojump_clock, world):
    limited, free = await pair(world, max_download=RATE)
    assert await seconds((take_bulk, limited, free.peer_id)) == pytest.approx(10.24, rel=0.05)
    assert await seconds((send_bulk, free, limited.peer_id)) == pytest.approx(10.24, rel=0.05)
    assert await seconds((send_bulk, limited, free.peer_id)) < 1


async def test_all_streams_of_all_connections_share_it_alike(autojump_clock, world):
    limited, free = await pair(world, max_upload=RATE)
    other = await world.add_host()
    other.set_handler(SINK, swallow_in_place)
    await limited.connect(other.peer_id, other.addresses)
    ends = []

    async def send(peer_id):
        await send_bulk(limited, peer_id)
        ends.append(trio.current_time())

    assert await seconds(
        (send, free.peer_id), (send, free.peer_id), (send, other.peer_id)
    ) == pytest.approx(3 * 10.24, rel=0.05)
    assert ends[-1] - ends[0] < 1


async def test_small_messages_do_not_wait_behind_bulk(autojump_clock, world, nursery):
    limited, free = await pair(world, max_upload=RATE, max_download=RATE)
    for _ in range(8):
        nursery.start_soon(send_bulk, limited, free.peer_id)
        nursery.start_soon(take_bulk, limited, free.peer_id)
    await trio.sleep(5)
    for _ in range(10):
        stream = await limited.open_stream(free.peer_id, [ECHO])
        began = trio.current_time()
        await stream.send_all(b"ping")
        assert await stream.receive_some() == b"ping"
        assert trio.current_time() - began < 0.5
        await stream.aclose()


async def test_who_gives_up_waiting_leaves_the_rate_to_others(autojump_clock, world):
    limited, free = await pair(world, max_upload=RATE)
    for _ in range(3):
        with trio.move_on_after(0.2):
            await send_bulk(limited, free.peer_id)
    # What had been reserved for those three is not waited for, only what was sent.
    assert await seconds((send_bulk, limited, free.peer_id)) < 11


async def test_a_reader_that_wants_only_so_much_time_gets_what_came(autojump_clock, world):
    limited, free = await pair(world, max_download=RATE)
    stream = await limited.open_stream(free.peer_id, [SOURCE])
    buffer = memoryview(bytearray(len(BULK)))
    await stream.send_all(b"go")
    muxed = stream._muxed
    await stream._settle()
    came = await muxed.receive_into(buffer, trio.current_time() + 2)
    assert 100 * KIB < came < 300 * KIB
    stream.reset()


async def test_without_limits_nothing_stands_between_a_stream_and_its_session(
    autojump_clock, world
):
    limited, free = await pair(world)
    stream = await limited.open_stream(free.peer_id, [ECHO])
    assert type(stream._muxed).__name__ == "YamuxStream"
    stream.reset()
