"""Attacks within the messages of protocols: bombs, lies, streams that never end."""

from typing import Final

import trio

from p2pnode.config import KIB, MIB
from p2pnode.mux.yamux.frames import INITIAL_WINDOW, Flag, FrameType
from p2pnode.protocols.identify.core import PROTOCOL as IDENTIFY
from p2pnode.protocols.identify.core import PUSH_PROTOCOL
from p2pnode.protocols.ping.core import PROTOCOL as PING
from p2pnode.testing.hostile.attacker import Attack, Attacker
from p2pnode.testing.hostile.frames import FrameStream, frame
from p2pnode.wire import varint
from p2pnode.wire.envelope import seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import identify_pb2
from p2pnode.wire.records import DOMAIN, PAYLOAD_TYPE, PeerRecord

PIECE: Final = 32 * KIB
SOMEBODY: Final = PrivateKey.from_seed(b"somebody who is not the attacker")


def identify_answer(data: bytes, *, ends: bool = True) -> Attack:
    """Answer the victim's question who we are with `data`; then end the stream, or fall silent."""

    async def attack(attacker: Attacker) -> None:
        wire = await attacker.multiplex()
        await _pour_out(await wire.wait_opened(IDENTIFY), data, ends=ends)

    return attack


def said(protocol: str, data: bytes, *, ends: bool = True) -> Attack:
    """Open a stream and say `data` on it; then end it, or fall silent."""

    async def attack(attacker: Attacker) -> None:
        await _pour_out(await attacker.talk(protocol), data, ends=ends)

    return attack


def identify_push(data: bytes, *, ends: bool = True) -> Attack:
    """Push `data` as news about us."""
    return said(PUSH_PROTOCOL, data, ends=ends)


async def pour(stream: FrameStream, data: bytes) -> None:
    """Send data, as much of it as the victim's window lets through until the stream is over."""
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        await stream.wait_grant(stream.sent + len(piece))
        if stream.wire.is_over(stream.stream_id) or not await stream.send(piece):
            return


async def _pour_out(stream: FrameStream, data: bytes, *, ends: bool) -> None:
    """Send data, perhaps with an end, and wait for the outcome."""
    await pour(stream, data)
    if ends:
        await stream.finish()
    await stream.wait_over()


# --- identify -------------------------------------------------------------------------------------


def _envelope_of(payload: bytes, kind: bytes = PAYLOAD_TYPE) -> bytes:
    envelope = seal(SOMEBODY, DOMAIN, kind, payload)
    return varint.prefixed(identify_pb2.Identify(signedPeerRecord=envelope).SerializeToString())


def _record_of_somebody() -> bytes:
    record = PeerRecord(peer_id=SOMEBODY.peer_id, seq=1, addresses=())
    message = identify_pb2.Identify(signedPeerRecord=record.seal(SOMEBODY))
    return varint.prefixed(message.SerializeToString())


INTRODUCTIONS: Final[dict[str, bytes]] = {
    "of 1 MB": varint.prefixed(bytes(MIB)),
    "of 1 MB in small messages": varint.prefixed(
        identify_pb2.Identify(protocols=["/x"] * 1000).SerializeToString()
    )
    * 256,
    "of a length without end": b"\xff" * 100,
    "of garbage": varint.prefixed(b"\xff" * 400),
    "of groups within groups": varint.prefixed(b"\x7b" * 8000),
    "with a length beyond its end": varint.prefixed(b"\x12\xff\xff\xff\xff\x07"),
    "that is not text": varint.prefixed(b"\x32\x02\xc3\x28"),
    "with another's key": varint.prefixed(
        identify_pb2.Identify(publicKey=SOMEBODY.public_key.protobuf).SerializeToString()
    ),
    "with another's record": _record_of_somebody(),
    "with an envelope of garbage": _envelope_of(b"\xff" * 4000),
    "with a record of another type": _envelope_of(b"", b"\x07\x07"),
    "that stops half-way": varint.encode(4000) + bytes(100),
}

# 4000 protocols of no name and 4000 addresses of no content: legal, and worth nothing.
EMPTY_THINGS: Final = varint.prefixed(b"\x1a\x00" * 4000) + varint.prefixed(b"\x12\x00" * 4000)


async def push_flood(attacker: Attacker, count: int = 300) -> None:
    """Push news at a rate nobody changes at."""
    wire = await attacker.multiplex()
    data = varint.prefixed(identify_pb2.Identify(protocols=["/x"]).SerializeToString())
    for _ in range(count):
        stream = wire.open_stream()
        await stream.propose(PUSH_PROTOCOL)
        if not await stream.send(data, Flag.FIN):
            return


# --- the DHT --------------------------------------------------------------------------------------

FIND_NODE: Final = b"\x08\x04"

REQUESTS: Final[dict[str, bytes]] = {
    "of a giant length": varint.encode(2**40),
    "of a length without end": b"\xff" * 100,
    "of garbage": varint.prefixed(b"\xff" * 4000),
    "of groups within groups": varint.prefixed(b"\x7b" * MIB),
    "with half a million peers of nothing": varint.prefixed(
        FIND_NODE + b"\x42\x00" * (MIB // 2 - 1)
    ),
    "with half a million records": varint.prefixed(FIND_NODE + b"\x1a\x00" * (MIB // 2 - 1)),
    "with a peer of half a million addresses": varint.prefixed(
        FIND_NODE + b"\x42" + varint.prefixed(b"\x12\x00" * (MIB // 2 - 8))
    ),
    "of an unknown type": varint.prefixed(b"\x08\x63" + b"\x78\x01" * (MIB // 2 - 1)),
    "with a giant key": varint.prefixed(FIND_NODE + b"\x12" + varint.prefixed(bytes(4096))),
    "with the record of another key": varint.prefixed(b"\x08\x00\x12\x01a\x1a\x03\x0a\x01b"),
    "with a record nobody can check": varint.prefixed(
        b"\x08\x00\x12\x04/x/y\x1a\x09\x0a\x04/x/y\x12\x01v"
    ),
    "that stops half-way": varint.encode(4000) + bytes(100),
}


async def requests_never_read(attacker: Attacker, protocol: str, count: int = 10_000) -> None:
    """Ask and ask on one stream, and grant no window for the answers."""
    request = varint.prefixed(FIND_NODE + b"\x12" + varint.prefixed(bytes(500)))
    await said(protocol, request * count, ends=False)(attacker)


async def again_and_again(attacker: Attacker, protocol: str, count: int = 100) -> None:
    """Break the rules of a protocol on one stream after the other."""
    wire = await attacker.multiplex()
    for _ in range(count):
        stream = wire.open_stream()
        await stream.propose(protocol)
        if not await stream.send(varint.prefixed(b"\xff" * 40)):
            return
        await stream.wait_over()


async def many_streams(attacker: Attacker, protocol: str, count: int) -> None:
    """Open many streams of a protocol, and use none."""
    wire = await attacker.multiplex()
    streams = [wire.open_stream() for _ in range(count)]
    for stream in streams:
        await stream.propose(protocol)
    with trio.move_on_after(5):
        for stream in streams:
            await stream.wait_over()


# --- ping -----------------------------------------------------------------------------------------

half_a_ping: Final = said(PING, bytes(16))
# A little more than fills the window that the attacker's side begins with, and never adds to.
pings_never_read: Final = said(PING, bytes(INITIAL_WINDOW + INITIAL_WINDOW // 8), ends=False)


async def pings(attacker: Attacker, count: int = 20_000) -> None:
    """Send pings as fast as they are answered, on one stream."""
    stream = await attacker.talk(PING)
    await stream.wire.send(frame(FrameType.WINDOW_UPDATE, 0, stream.stream_id, 2**30))
    for start in range(0, count, 1000):
        await stream.wait_grant((start + 1001) * 32)
        if not await stream.send(bytes(32 * 1000)):
            return
