"""Attacks on Yamux: frames that break its rules, and floods of frames that keep them."""

import functools
from typing import Final

import trio

from p2pnode.mux.yamux.frames import INITIAL_WINDOW, MAX_U32, Flag, FrameType
from p2pnode.testing.hostile.attacker import Attack, Attacker
from p2pnode.testing.hostile.frames import FrameWire, frame

DATA, UPDATE, PING, GO_AWAY = FrameType
PIECE: Final = 32 * 1024  # bytes of data in one frame, where the size is of no matter
BATCH: Final = 500  # frames sent at once
BATCH_BYTES: Final = 64 * 1024


def frames(*each: bytes) -> Attack:
    """Send these frames, the first ones of a session."""

    async def attack(attacker: Attacker) -> None:
        await (await attacker.multiplex()).send(*each)

    return attack


def _first_id(attacker: Attacker) -> int:
    return 1 if attacker.dials else 2


async def repeat(wire: FrameWire, one: bytes, count: int) -> None:
    """Send a frame many times, or until the victim has had enough."""
    batch = max(1, min(BATCH, BATCH_BYTES // len(one)))
    for start in range(0, count, batch):
        if not await wire.send(one * min(batch, count - start)):
            return


async def window_overflow(attacker: Attacker, protocol: str) -> None:
    """Send more than the window of a stream whose reader is slow, or was never told of it."""
    stream = await attacker.talk(protocol)
    stalled = frame(DATA, 0, stream.stream_id, body=bytes(PIECE))
    await repeat(stream.wire, stalled, 4 * INITIAL_WINDOW // PIECE)


async def giant_frame(attacker: Attacker) -> None:
    """Announce 4 GiB of data on a stream."""
    number = _first_id(attacker)
    wire = await attacker.multiplex()
    await wire.send(frame(DATA, Flag.SYN, number, MAX_U32) + bytes(PIECE))


async def grant_overflow(attacker: Attacker, protocol: str) -> None:
    """Grant a stream so much that its window does not fit into 32 bits."""
    stream = await attacker.talk(protocol)
    await repeat(stream.wire, frame(UPDATE, 0, stream.stream_id, MAX_U32), 2)


async def data_behind_the_end(attacker: Attacker, protocol: str) -> None:
    """Finish a stream, and go on sending on it."""
    stream = await attacker.talk(protocol)
    await stream.wire.send(
        frame(DATA, Flag.FIN, stream.stream_id), frame(DATA, 0, stream.stream_id, body=b"more")
    )


async def open_twice(attacker: Attacker) -> None:
    """Open the same stream twice."""
    wire = await attacker.multiplex()
    await wire.send(frame(UPDATE, Flag.SYN, _first_id(attacker), 0) * 2)


async def wrong_parity(attacker: Attacker) -> None:
    """Open a stream by a number that is the victim's to give."""
    wire = await attacker.multiplex()
    await wire.send(frame(UPDATE, Flag.SYN, 3 - _first_id(attacker), 0))


async def half_a_header(attacker: Attacker, *, hangs_up: bool) -> None:
    """Send half of a frame's header; hang up, or fall silent for good."""
    wire = await attacker.multiplex(reads=hangs_up)
    await wire.send(frame(PING, Flag.SYN, 0, 7)[:6])
    if hangs_up:
        await attacker.raws[-1].aclose()
    else:
        attacker.wires.remove(wire)  # its end is seen on the bytes beneath


async def dead_stream_data(attacker: Attacker, protocol: str) -> None:
    """Send data, grants and ends for streams that are over or never were."""
    stream = await attacker.talk(protocol)
    await stream.send(flags=Flag.RST)
    dead = [stream.stream_id, stream.stream_id + 200, stream.stream_id + 1]
    for number in dead:
        for _ in range(20):
            await stream.wire.send(frame(DATA, 0, number, body=bytes(PIECE)))
        await stream.wire.send(
            frame(UPDATE, 0, number, MAX_U32),
            frame(DATA, Flag.FIN, number),
            frame(UPDATE, 2, number),
        )


async def unknown_flags(attacker: Attacker) -> None:
    """Set flags that nobody knows."""
    wire = await attacker.multiplex()
    await wire.send(frame(PING, 0xFFF0 | Flag.SYN, 0, 1), frame(UPDATE, 0x1230, 99, 5))


async def syn_flood(attacker: Attacker, count: int = 20_000) -> None:
    """Open streams as fast as can be, and say nothing on them."""
    wire = await attacker.multiplex()
    first = _first_id(attacker)
    for start in range(0, count, BATCH):
        numbers = range(first + 2 * start, first + 2 * (start + BATCH), 2)
        if not await wire.send(*(frame(UPDATE, Flag.SYN, each, 0) for each in numbers)):
            return


async def rapid_reset(attacker: Attacker, count: int = 20_000) -> None:
    """Open streams and reset each at once."""
    wire = await attacker.multiplex()
    first = _first_id(attacker)
    for start in range(0, count, BATCH):
        numbers = range(first + 2 * start, first + 2 * (start + BATCH), 2)
        pairs = (
            frame(UPDATE, Flag.SYN, each, 0) + frame(UPDATE, Flag.RST, each, 0) for each in numbers
        )
        if not await wire.send(*pairs):
            return


async def flood(attacker: Attacker, one: bytes, count: int = 100_000) -> None:
    """Send one frame over and over."""
    await repeat(await attacker.multiplex(), one, count)


ping_flood: Final = functools.partial(flood, one=frame(PING, Flag.SYN, 0, 7))
pong_flood: Final = functools.partial(flood, one=frame(PING, Flag.ACK, 0, 2**31))
empty_data_flood: Final = functools.partial(flood, one=frame(DATA, 0, 1))
empty_grant_flood: Final = functools.partial(flood, one=frame(UPDATE, 0, 1, 0))
reset_flood: Final = functools.partial(flood, one=frame(UPDATE, Flag.RST, 1, 0))
one_byte_flood: Final = functools.partial(flood, one=frame(DATA, 0, 77, body=b"x"))


async def pings_never_read(attacker: Attacker, count: int = 20_000) -> None:
    """Ask for more answers than the victim can send, since none is ever read."""
    wire = await attacker.multiplex(reads=False)
    attacker.wires.remove(wire)  # its end is seen on the bytes beneath
    await repeat(wire, frame(PING, Flag.SYN, 0, 7), count)


async def echo_never_read(
    attacker: Attacker, protocol: str, streams: int = 64, *, alive: bool = False
) -> None:
    """Ask for much on many streams, grant it all, and never read a byte of the connection.

    Args:
        attacker: who does it.
        protocol: one that echoes.
        streams: how many.
        alive: whether signs of life follow, for as long as the connection stands.
    """
    wire = await attacker.multiplex(reads=False)
    attacker.wires.remove(wire)
    for _ in range(streams):
        stream = wire.open_stream()
        await stream.propose(protocol)
        await stream.wire.send(frame(UPDATE, 0, stream.stream_id, 2**30))
        for _ in range(INITIAL_WINDOW // PIECE - 1):
            if not await stream.send(bytes(PIECE)):
                return
    while alive and await wire.send(frame(PING, Flag.SYN, 0, 7)):  # noqa: ASYNC110  # no event
        await trio.sleep(5)
