"""Checks of streams, by the echo, and of how fast they are."""

import hashlib
from typing import Final

import trio

from p2pnode.config import MIB
from p2pnode.testing.peer.checks.target import Facts, Target, expect
from p2pnode.testing.peer.node import ECHO

STREAMS: Final = 200
STREAM_BYTES: Final = 20_000
PERF_BYTES: Final = 20 * MIB
_BLOCK: Final = hashlib.shake_256(b"p2pnode").digest(65_521)  # a prime: no frame's length


async def check_echo(target: Target, size: int) -> Facts:
    """Send `size` bytes and get them back, both at once."""
    stream = await target.open(ECHO)
    sent, received, count = hashlib.sha256(), hashlib.sha256(), 0

    async def send() -> None:
        for start in range(0, size, len(_BLOCK)):
            piece = _BLOCK[: size - start]
            sent.update(piece)
            await stream.send_all(piece)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await stream.receive_some():
            received.update(data)
            count += len(data)
    await stream.aclose()
    expect(count == size, f"{count} of {size} bytes came back")
    expect(received.digest() == sent.digest(), "other bytes came back")
    return {"bytes": size}


async def check_half_close(target: Target) -> Facts:
    """Take turns, then end our side behind data that the peer has not answered yet."""
    stream = await target.open(ECHO)
    for number in range(3):
        data = bytes([number]) * 1000
        await stream.send_all(data)
        expect(await stream.receive_exactly(len(data)) == data, "other bytes came back")
    last = _BLOCK[:60_000]
    await stream.send_all(last)
    await stream.send_eof()
    expect(await stream.receive_exactly(len(last)) == last, "other bytes came back")
    expect(not await stream.receive_some(), "bytes that nobody sent came back")
    await stream.aclose()
    return {}


async def check_many_streams(target: Target) -> Facts:
    """Hold many streams open, each with data of its own, and finish them all."""
    count = 0
    all_open = trio.Event()

    async def one(number: int) -> None:
        nonlocal count
        data = number.to_bytes(4, "big") * (STREAM_BYTES // 4)
        stream = await target.open(ECHO)
        await stream.send_all(data[:4])
        expect(await stream.receive_exactly(4) == data[:4], "another stream's bytes came back")
        count += 1
        if count == STREAMS:
            all_open.set()
        await all_open.wait()
        await stream.send_all(data[4:])
        await stream.send_eof()
        expect(
            await stream.receive_exactly(len(data) - 4) == data[4:],
            "another stream's bytes came back",
        )
        expect(not await stream.receive_some(), "bytes that nobody sent came back")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for number in range(STREAMS):
            nursery.start_soon(one, number)
    return {"streams": STREAMS}


async def check_perf(target: Target) -> Facts:
    """Measure both ways."""
    found = await target.peer.network.perf.measure(
        target.peer_id, upload=PERF_BYTES, download=PERF_BYTES
    )
    return {"upload_rate": found.upload_rate, "download_rate": found.download_rate}
