import pytest
import trio

from p2pnode.transport.shortcut import SocketShortcut


@pytest.mark.real
async def test_a_socket_that_was_closed_says_so_whether_or_not_it_was_drained():
    for drained in (False, True):
        ends = trio.socket.socketpair()
        near, far = map(trio.SocketStream, ends)
        shortcut = SocketShortcut.of(near)
        if drained:
            await far.send_all(b"x")
            assert await shortcut.receive_some(100) == b"x"
        await trio.aclose_forcefully(near)
        with pytest.raises(trio.ClosedResourceError):
            await shortcut.receive_some(100)
        await trio.aclose_forcefully(far)


@pytest.mark.real
async def test_a_reader_that_waits_while_its_socket_is_closed_is_told():
    near, far = map(trio.SocketStream, trio.socket.socketpair())

    async def read():
        with pytest.raises(trio.ClosedResourceError):
            await SocketShortcut.of(near).receive_some(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(near)
    await trio.aclose_forcefully(far)
