"""Attacks on multistream-select, at each of the places where it is spoken.

A connection negotiates twice or three times: its security, its muxer (with peers that do not
settle it within the Noise handshake), and the protocol of each stream. The same faults are tried
in all of them.
"""

from dataclasses import dataclass
from typing import Final

from p2pnode.mux.multistream import select_inbound, select_outbound
from p2pnode.mux.multistream.core import HEADER, MAX_LINE, MAX_PROPOSALS, encode_line
from p2pnode.mux.yamux import PROTOCOL as YAMUX
from p2pnode.mux.yamux.frames import Flag
from p2pnode.testing.hostile.attacker import Attack, Attacker, send_or_be_cut
from p2pnode.wire import varint

_HEADER_LINE: Final = encode_line(HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What an attacker says instead of what it should.

    Attributes:
        name: what is wrong with it.
        data: sent at once.
        hangs_up: whether the end follows; else the attacker falls silent.
    """

    name: str
    data: bytes
    hangs_up: bool = False


# What is wrong whoever negotiates, listener or dialer.
FAULTS: Final = (
    Fault(name="silence", data=b""),
    Fault(name="hang-up", data=b"", hangs_up=True),
    Fault(name="garbage", data=b"\xff" * 4096),
    Fault(name="another protocol", data=b"GET /" + b"." * 200 + b" HTTP/1.1\r\n\r\n"),
    Fault(name="half a line", data=_HEADER_LINE[:7]),
    Fault(name="half a line and a hang-up", data=_HEADER_LINE[:7], hangs_up=True),
    Fault(name="header alone", data=_HEADER_LINE),
    Fault(name="wrong header", data=encode_line("/multistream/2.0.0")),
    Fault(name="oversized line", data=varint.prefixed(b"x" * MAX_LINE + b"\n")),
    Fault(name="line without end", data=varint.encode(2**62) + b"x" * 200_000),
    Fault(name="line without length", data=b"\x00" * 100),
    Fault(name="line without newline", data=varint.prefixed(HEADER.encode())),
    Fault(name="line that is not text", data=varint.prefixed(b"\xc3\x28\n")),
    Fault(name="header replayed for ever", data=_HEADER_LINE * 10_000),
)
# What only a dialer can do wrong ...
DIALER_FAULTS: Final = (
    Fault(
        name="proposals without end",
        data=_HEADER_LINE + encode_line("/nobody/speaks/this") * (MAX_PROPOSALS + 1),
    ),
)
# ... and a listener.
LISTENER_FAULTS: Final = (
    Fault(name="an answer to another question", data=_HEADER_LINE + encode_line("/plaintext/1")),
    Fault(name="refusal", data=_HEADER_LINE + encode_line("na")),
)


def at_security(fault: Fault) -> Attack:
    """Commit a fault where Noise should be agreed on, as the first words of a connection."""

    async def attack(attacker: Attacker) -> None:
        raw = await attacker.open()
        await send_or_be_cut(raw, fault.data)
        if fault.hangs_up:
            await raw.aclose()

    return attack


def at_muxer(fault: Fault) -> Attack:
    """Commit a fault where the muxer should be agreed on, behind the Noise handshake."""

    async def attack(attacker: Attacker) -> None:
        channel = (await attacker.secure(muxers=())).channel
        await send_or_be_cut(channel, fault.data)
        if fault.hangs_up:
            await channel.aclose()

    return attack


def at_stream(fault: Fault) -> Attack:
    """Commit a fault where the protocol of a stream should be agreed on."""

    async def attack(attacker: Attacker) -> None:
        wire = await attacker.multiplex()
        stream = wire.open_stream()
        await stream.send(fault.data, Flag.FIN if fault.hangs_up else Flag.NONE)
        await stream.wait_over()

    return attack


async def muxer_garbage(attacker: Attacker) -> None:
    """Agree on Yamux, and then speak something else."""
    channel = (await attacker.secure(muxers=())).channel
    if attacker.dials:
        await select_outbound(channel, [YAMUX])
    else:
        await select_inbound(channel, YAMUX.__eq__)
    await send_or_be_cut(channel, b"\xa5" * 100_000)
