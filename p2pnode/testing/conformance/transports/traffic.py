"""What the suite does with connections: make, fill, read and cut them."""

import trio
from multiaddr import Multiaddr
from trio.testing import wait_all_tasks_blocked

from p2pnode.transport.base import Listener, RawConnection, Transport

MEGABYTE = bytes(range(256)) * 4096


async def dial(dialer: Transport, address: Multiaddr) -> RawConnection:
    """Dial with a transport of byte streams."""
    connection = await dialer.dial(address)
    assert isinstance(connection, RawConnection)
    return connection


async def accept(listener: Listener) -> RawConnection:
    """Accept with a transport of byte streams."""
    connection = await listener.accept()
    assert isinstance(connection, RawConnection)
    return connection


async def connect(dialer: Transport, listener: Listener) -> tuple[RawConnection, RawConnection]:
    """Connect, and skip connections that a cancelled dial may have left behind."""
    ours = await dial(dialer, listener.addresses[0])
    try:
        with trio.fail_after(5):
            while True:
                theirs = await accept(listener)
                if theirs.remote_address == ours.local_address:
                    return ours, theirs
                await cut(theirs)
    except BaseException:
        await cut(ours)
        raise


async def cut(*connections: RawConnection) -> None:
    """Close connections without a word."""
    with trio.CancelScope(shield=True):  # forceful, so it never waits
        for connection in connections:
            await trio.aclose_forcefully(connection.stream)


async def clog(stream: trio.abc.SendStream) -> int:
    """Send until nothing moves any more; returns the bytes that were taken whole."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stream.send_all(MEGABYTE)
            sent += len(MEGABYTE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        while sent != before:
            before = sent
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    return sent


async def flood(stream: trio.abc.SendStream) -> None:
    """Send without end."""
    while True:
        await stream.send_all(MEGABYTE)


async def send_and_finish(stream: trio.abc.Stream, data: bytes) -> None:
    """Send the last bytes of this side."""
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_all(data)
    await stream.send_eof()


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Return the next `size` bytes."""
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Return all that the other side still sends."""
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the bytes up to a newline, with it."""
    data = bytearray()
    while not data.endswith(b"\n"):
        data += await stream.receive_some(1)
    return bytes(data)


async def echo_line(connection: RawConnection) -> None:
    """Send a line back, and close after the other side."""
    await connection.stream.send_all(await read_line(connection.stream))
    assert await connection.stream.receive_some() == b""
    await connection.stream.aclose()
