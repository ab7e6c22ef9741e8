"""Attacks on the TLS of `/wss`: on its handshake, on its records, and through it."""

import ssl
from typing import Final

import trio

from p2pnode.testing.hostile.attacker import Attack, Attacker, send_or_be_cut

_HANDSHAKE, _ALERT, _DATA = b"\x16", b"\x15", b"\x17"
_VERSION: Final = b"\x03\x03"


def record(kind: bytes, body: bytes, *, length: int | None = None) -> bytes:
    """Return a record in the clear; its length may lie."""
    size = len(body) if length is None else length
    return kind + _VERSION + size.to_bytes(2, "big") + body


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False  # whom an attacker attacks it need not be sure of
    context.verify_mode = ssl.CERT_NONE
    return context


def _hello() -> bytes:
    """Return how a client begins."""
    outgoing = ssl.MemoryBIO()
    client = _context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="victim")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a client has to wait for its server")


HELLO: Final = _hello()

GREETINGS: Final[dict[str, bytes]] = {
    "silence": b"",
    "garbage": b"\xff" * 4096,
    "half a greeting": HELLO[:100],
    "a greeting twice": HELLO * 2,
    "a greeting with a bit changed": HELLO[:5] + bytes([HELLO[5] ^ 4]) + HELLO[6:],
    "a record that never ends": record(_HANDSHAKE, bytes([1, 0, 63, 0]), length=16_000),
    "a record that is too long": record(_HANDSHAKE, bytes(5000), length=0xFFFF),
    "a greeting of 16 MB": record(_HANDSHAKE, b"\x01\xff\xff\xff" + bytes(16_000)) * 20,
    "empty records without end": record(_HANDSHAKE, b"") * 10_000,
    "warnings without end": record(_ALERT, b"\x01\x5a") * 10_000,
    "a fatal alert": record(_ALERT, b"\x02\x28"),
    "data before the keys": HELLO + record(_DATA, bytes(64)),
}


class _Tap(trio.abc.Stream):
    """Passes bytes on, and keeps what was sent last."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.last = b""
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        self.last = bytes(data)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


SecuredStream = trio.SSLStream[_Tap]


async def secured(attacker: Attacker) -> SecuredStream:
    """Open a connection and run its TLS handshake."""
    stream = SecuredStream(
        _Tap(await attacker.open()), _context(), server_hostname="victim", https_compatible=True
    )
    await stream.do_handshake()
    return stream


async def send_beneath(stream: SecuredStream, data: bytes) -> None:
    """Send data that is no record, or none that fits; with none, the last record again."""
    tap = stream.transport_stream
    await send_or_be_cut(tap, data or tap.last)


def beneath(data: bytes, *, said: bytes) -> Attack:
    """Say something behind the handshake, then send `data` beneath TLS."""

    async def attack(attacker: Attacker) -> None:
        stream = await secured(attacker)
        await stream.send_all(said)
        await send_beneath(stream, data)

    return attack


RECORDS: Final[dict[str, bytes]] = {
    "garbage": b"\xff" * 4096,
    "a new greeting": HELLO,
    "a record in the clear": record(_DATA, b"GET / HTTP/1.1\r\n\r\n"),
    "a record of random bytes": record(_DATA, bytes(range(100))),
    "a record again": b"",
    "half a record": record(_DATA, bytes(100), length=16_000),
}
