"""Attacks on the Noise handshake, at each of its messages, and on the frames behind it."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import trio

from p2pnode.mux.yamux import PROTOCOL as YAMUX
from p2pnode.mux.yamux.frames import Flag, FrameType
from p2pnode.security.noise.core import MAX_MESSAGE, Handshake
from p2pnode.security.noise.frames import LENGTH_BYTES
from p2pnode.testing.hostile.attacker import Attack, Attacker, send_or_be_cut
from p2pnode.testing.hostile.frames import frame
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import noise_pb2

Spoil = Callable[[bytes, Sequence[bytes]], bytes]  # our message, those before it -> what is sent


def sealed(message: bytes) -> bytes:
    """Return a message behind its length, as it stands on the wire."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


# Each may be done to any of the three messages.
SPOILS: Final[dict[str, Spoil]] = {
    "silence": lambda _message, _seen: b"",
    "garbage": lambda message, _seen: sealed(b"\xa5" * len(message)),
    "an empty message": lambda _message, _seen: sealed(b""),
    "a short message": lambda _message, _seen: sealed(b"\x09" * 31),
    "a giant message": lambda _message, _seen: sealed(b"\xa5" * MAX_MESSAGE),
    "half a message": lambda message, _seen: sealed(message)[: len(message) // 2],
    "a degenerate key": lambda message, _seen: sealed(bytes(32) + message[32:]),
    "a changed bit": lambda message, _seen: sealed(message[:-1] + bytes([message[-1] ^ 1])),
    "a replay": lambda message, seen: sealed(seen[0] if seen else message * 2),
}


def at_message(number: int, spoil: Spoil, *, hangs_up: bool = False) -> Attack:
    """Send something else than handshake message `number`: 1 or 3 as the dialer, else 2."""

    async def attack(attacker: Attacker) -> None:
        raw = await attacker.greet()
        handshake = Handshake(_role(attacker), attacker.key, muxers=[YAMUX])
        seen: list[bytes] = []
        for step in (1, 2, 3):
            if not handshake.wants_to_send:
                seen.append(await _receive_message(raw))
                handshake.receive_message(seen[-1])
                continue
            message = handshake.next_message()
            if step == number:
                await send_or_be_cut(raw, spoil(message, seen))
                break
            await raw.send_all(sealed(message))
        if hangs_up:
            await raw.aclose()

    return attack


def _role(attacker: Attacker) -> Literal["initiator", "responder"]:
    return "initiator" if attacker.dials else "responder"


class _Forger(Handshake):
    """A handshake whose payload is of the attacker's making."""

    forge: Callable[[bytes], bytes]  # from the honest payload

    def _payload(self) -> bytes:
        return self.forge(super()._payload())


def with_payload(forge: Callable[[bytes], bytes]) -> Attack:
    """Run the handshake by the rules, but put something else into its payload."""

    async def attack(attacker: Attacker) -> None:
        raw = await attacker.greet()
        handshake = _Forger(_role(attacker), attacker.key, muxers=[YAMUX])
        handshake.forge = forge
        while handshake.result is None:
            if handshake.wants_to_send:
                await send_or_be_cut(raw, sealed(handshake.next_message()))
            else:
                handshake.receive_message(await _receive_message(raw))

    return attack


def _changed(change: Callable[[noise_pb2.NoiseHandshakePayload], object]) -> Callable[..., bytes]:
    def forge(payload: bytes) -> bytes:
        message = noise_pb2.NoiseHandshakePayload.FromString(payload)
        change(message)
        return message.SerializeToString()

    return forge


def _claim(message: noise_pb2.NoiseHandshakePayload) -> None:
    message.identity_key = PrivateKey.from_seed(
        b"somebody else's well-known key  "
    ).public_key.protobuf


def _offer_another(message: noise_pb2.NoiseHandshakePayload) -> None:
    del message.extensions.stream_muxers[:]
    message.extensions.stream_muxers.append("/mplex/6.7.0")


def _offer_thousands(message: noise_pb2.NoiseHandshakePayload) -> None:
    del message.extensions.stream_muxers[:]
    message.extensions.stream_muxers.extend([""] * 3900)


_EXTENSIONS: Final = 4  # field numbers of NoiseHandshakePayload and NoiseExtensions
_MUXERS: Final = 2

PAYLOADS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "no payload": lambda _payload: b"",
    "garbage": lambda _payload: b"\xff" * 300,
    "another's identity": _changed(_claim),
    "a broken signature": _changed(lambda each: setattr(each, "identity_sig", bytes(64))),
    "a key of no kind": _changed(lambda each: setattr(each, "identity_key", b"\x08\x09\x12\x00")),
    "a key that is too large": _changed(
        lambda each: setattr(each, "identity_key", b"\x08\x00\x12\x90\x20" + bytes(4112))
    ),
    "groups within groups": lambda _payload: b"\x7b" * 4000,
    "a length beyond the end": lambda payload: payload + b"\x0a\xff\xff\xff\xff\x07",
    "muxers that are not text": lambda payload: (
        payload + bytes([_EXTENSIONS << 3 | 2, 4, _MUXERS << 3 | 2, 2, 0xC3, 0x28])
    ),
    "a muxer that we do not have": _changed(_offer_another),
    "thousands of unknown muxers": _changed(_offer_thousands),
}


async def as_somebody_else(attacker: Attacker) -> None:
    """Prove to be somebody, but not the one the victim wants."""
    await attacker.secure(key=PrivateKey.generate())


_HARMLESS: Final = frame(FrameType.PING, Flag.ACK, 0, 7)  # what the frame holds is not the point


async def _spoil_frame(attacker: Attacker, spoil: Callable[[bytes], bytes]) -> None:
    """Send one frame of the secured channel after `spoil` has been at it."""
    session = await attacker.secure()
    cipher = session.channel._sealer._cipher  # noqa: SLF001  # our own end of the channel
    await send_or_be_cut(attacker.raws[-1], spoil(sealed(cipher.encrypt(_HARMLESS))))


async def changed_frame(attacker: Attacker) -> None:
    """Change one bit of an encrypted frame."""
    await _spoil_frame(attacker, lambda each: each[:-1] + bytes([each[-1] ^ 1]))


async def replayed_frame(attacker: Attacker) -> None:
    """Send the same encrypted frame twice."""
    await _spoil_frame(attacker, lambda each: each * 2)


async def frame_without_tag(attacker: Attacker) -> None:
    """Send a frame too short for its authentication tag."""
    await _spoil_frame(attacker, lambda _each: sealed(b"\x00" * 15))


async def half_a_frame(attacker: Attacker) -> None:
    """Send half an encrypted frame, and hang up."""
    await _spoil_frame(attacker, lambda each: each[:9])
    await attacker.raws[-1].aclose()


async def frame_that_never_ends(attacker: Attacker) -> None:
    """Send the beginning of an encrypted frame, and fall silent."""
    await _spoil_frame(attacker, lambda each: b"\xff\xff" + each[2:])


async def empty_frames(attacker: Attacker, count: int = 20_000) -> None:
    """Send frames that hold nothing, well encrypted."""
    session = await attacker.secure()
    cipher = session.channel._sealer._cipher  # noqa: SLF001  # our own end of the channel
    for _ in range(count // 1000):
        frames = b"".join(sealed(cipher.encrypt(b"")) for _ in range(1000))
        if not await send_or_be_cut(attacker.raws[-1], frames):
            return


async def _receive_message(raw: trio.abc.ReceiveStream) -> bytes:
    head = await _receive_exactly(raw, LENGTH_BYTES)
    return await _receive_exactly(raw, int.from_bytes(head, "big"))


async def _receive_exactly(raw: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await raw.receive_some(size - len(data))
        if not piece:
            raise trio.BrokenResourceError("the victim hung up")
        data += piece
    return data
