import socket

import pytest
import trio
import trio.testing

from p2pnode.transport.shortcut import COPY_BELOW, SocketShortcut

pytestmark = pytest.mark.real


@pytest.fixture
async def pair():
    one, other = trio.socket.socketpair()
    async with trio.SocketStream(one) as near, trio.SocketStream(other) as far:
        yield near, far


def test_only_sockets_have_one():
    near, _ = trio.testing.memory_stream_pair()
    assert SocketShortcut.of(near) is None


async def test_what_is_sent_arrives_whether_it_was_waited_for_or_not(pair):
    near, far = map(SocketShortcut.of, pair)
    received = []

    async def receive():
        received.append(await far.receive())
        received.append(await far.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert near.send_now(b"waited for") == 10
        await trio.testing.wait_all_tasks_blocked()
        assert near.send_now(b"twice") == 5
    assert received == [b"waited for", b"twice"]


async def test_a_large_piece_lies_in_a_buffer_that_is_used_again(pair):
    near, far = map(SocketShortcut.of, pair)
    addresses = set()
    for fill in (b"a", b"b"):
        data = fill * (COPY_BELOW + 1)
        assert near.send_now(data) == len(data)
        piece = await far.receive()
        assert piece == data
        addresses.add(id(piece.obj))
    assert len(addresses) == 1
    far.release()
    near.send_now(b"small")
    small = await far.receive()
    assert isinstance(small, bytes)  # which outlives the next receive


async def test_each_socket_has_its_own_buffer_until_it_releases_it(pair):
    near, far = map(SocketShortcut.of, pair)
    here, there = bytes(COPY_BELOW), b"x" * COPY_BELOW
    assert far.send_now(here) == near.send_now(there) == COPY_BELOW
    one, other = await near.receive(), await far.receive()
    assert (one, other) == (here, there)


async def test_a_full_socket_takes_nothing_and_says_so(pair):
    near = SocketShortcut.of(pair[0])
    while near.send_now(bytes(100_000)):
        pass
    assert near.send_now(b"more") == 0


async def test_the_end_is_an_end_and_a_break_is_a_break(pair):
    near, far = pair
    ours = SocketShortcut.of(near)
    await far.send_all(b"last")
    await far.send_eof()
    assert await ours.receive() == b"last"
    assert await ours.receive() == b""
    await far.aclose()
    assert ours.send_now(b"x") == 0


async def test_a_reset_is_a_break():
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        peer = await listener.accept()
        async with stream, peer:
            ours = SocketShortcut.of(stream)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await peer.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await ours.receive()


@pytest.mark.parametrize("waits", [False, True])
async def test_closing_the_stream_ends_a_receive(pair, waits):
    near, far = pair
    shortcut = SocketShortcut.of(near)
    if waits:
        await far.send_all(b"x")
        assert await shortcut.receive() == b"x"

    async def receive():
        with pytest.raises(trio.ClosedResourceError):
            await shortcut.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await shortcut.receive()


async def test_a_cancelled_receive_loses_nothing(pair):
    near, far = pair
    shortcut = SocketShortcut.of(near)
    await far.send_all(b"kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await shortcut.receive()
    assert scope.cancelled_caught
    assert await shortcut.receive() == b"kept"
