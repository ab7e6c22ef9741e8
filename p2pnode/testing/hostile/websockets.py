"""Attacks on WebSocket: on the upgrade, and by frames that are no good.

The attacker speaks HTTP and frames by hand, over a TCP connection to the port of the WebSocket, or
over TLS on top of it.
"""

import struct
from typing import Final

import trio

from p2pnode.testing.hostile.attacker import Attack, Attacker, send_or_be_cut
from p2pnode.testing.hostile.tls import secured, send_beneath

_MASK: Final = bytes(4)  # leaves the bytes as they are
_ANSWER_END: Final = b"\r\n\r\n"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: victim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

REQUESTS: Final[dict[str, bytes]] = {
    "silence": b"",
    "garbage": b"\xff" * 4096,
    "half a request": REQUEST[:60],
    "no upgrade": b"GET / HTTP/1.1\r\nHost: victim\r\n\r\n",
    "headers without end": b"GET / HTTP/1.1\r\n" + b"X-Header: " + b"x" * 300_000,
    "another version": REQUEST.replace(b"Version: 13", b"Version: 99"),
}


def frame(
    opcode: int, body: bytes = b"", *, final: bool = True, length: int | None = None
) -> bytes:
    """Return a masked frame, as clients send them; its length may lie."""
    size = len(body) if length is None else length
    head = bytes([opcode | (0x80 if final else 0)])
    if size < 126:
        head += bytes([size | 0x80])
    elif size < 1 << 16:
        head += struct.pack(">BH", 126 | 0x80, size)
    else:
        head += struct.pack(">BQ", 127 | 0x80, size)
    return head + _MASK + body


FRAMES: Final[dict[str, bytes]] = {
    "text": frame(TEXT, b"hello"),
    "reserved bits": bytes([0x70 | BINARY | 0x80]) + frame(BINARY, b"x")[1:],
    "an unknown kind": frame(3, b"x"),
    "no mask": b"\x82\x01x",
    "a ping in fragments": frame(PING, b"x", final=False),
    "a ping that is too long": frame(PING, bytes(200)),
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "a length of 64 bits": frame(BINARY, b"", length=2**64 - 1),
    "a message within a message": frame(BINARY, b"\x13", final=False) + frame(BINARY, b"x"),
    "pings without end": frame(PING) * 10_000,
    "pongs without end": frame(PONG) * 10_000,
    "fragments without content": frame(BINARY, final=False)
    + frame(CONTINUATION, final=False) * 10_000,
    "fragments of a byte": frame(BINARY, b"\xff", final=False)
    + frame(CONTINUATION, b"\xff", final=False) * 5000,
    "a message that never ends": frame(BINARY, bytes(100_000), length=2**62),
    "a goodbye that is too short": frame(CLOSE, b"x"),
}


def at_upgrade(request: bytes, *, secure: bool = False) -> Attack:
    """Ask for something else than an upgrade, or for nothing."""

    async def attack(attacker: Attacker) -> None:
        stream = await (secured(attacker) if secure else attacker.open())
        await send_or_be_cut(stream, request)

    return attack


def upgraded(frames: bytes, *, secure: bool = False) -> Attack:
    """Upgrade, and then send these frames."""

    async def attack(attacker: Attacker) -> None:
        stream = await (secured(attacker) if secure else attacker.open())
        await _upgrade(stream)
        await send_or_be_cut(stream, frames)

    return attack


def upgraded_beneath(data: bytes) -> Attack:
    """Upgrade over TLS, and then send data that is no record of it."""

    async def attack(attacker: Attacker) -> None:
        stream = await secured(attacker)
        await _upgrade(stream)
        await send_beneath(stream, data)

    return attack


async def _upgrade(stream: trio.abc.Stream) -> None:
    await stream.send_all(REQUEST)
    answer = b""
    while _ANSWER_END not in answer:
        answer += await stream.receive_some(4096)
