"""The Noise handshake over a stream, and the encrypted channel that comes of it.

On the wire every message, in the handshake and after, is a 2-byte big-endian length and that many
bytes. The sender packs what it has into as few socket writes as possible: large buffers are
encrypted from where they lie into one reused output buffer; small ones are gathered first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.errors import HandshakeError
from p2pnode.security.noise.core import (
    MAX_PLAINTEXT,
    TAG_BYTES,
    Buffer,
    CipherState,
    Handshake,
)
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

FRAMES_PER_WRITE: Final = 16  # 1 MiB a write: fewer system calls, still in the processor's cache
GATHER_BELOW: Final = 8192  # copying so much costs less than a frame of its own
RECEIVE_BYTES: Final = 256 * 1024  # asked of the socket at once
MAX_HANDSHAKE_MESSAGE: Final = 8192  # an RSA-8192 identity needs 2.5 KiB
MAX_SPARE_OUTPUTS: Final = 4  # buffers kept for the next large write of any channel
_LENGTH: Final = 2
_OUTPUT_BYTES: Final = FRAMES_PER_WRITE * (_LENGTH + MAX_PLAINTEXT + TAG_BYTES)
_spare_outputs: list[memoryview | bytearray] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureSession:
    """An encrypted channel, and who is at its other end."""

    channel: "SecureChannel"
    peer_id: PeerId
    public_key: PublicKey
    muxer: str | None  # agreed within the handshake, or None: negotiate it on the channel


async def secure_outbound(
    stream: trio.abc.Stream,
    key: PrivateKey,
    *,
    expected: PeerId | None = None,
    muxers: Sequence[str] = (),
) -> SecureSession:
    """Run the handshake as the dialer.

    Raises:
        HandshakeError: the peer is not `expected`, or its messages are broken.
        NegotiationError: both sides offered muxers and share none.
        trio.BrokenResourceError: the stream broke.
    """
    return await _secure(stream, Handshake("initiator", key, expected=expected, muxers=muxers))


async def secure_inbound(
    stream: trio.abc.Stream, key: PrivateKey, *, muxers: Sequence[str] = ()
) -> SecureSession:
    """Run the handshake as the listener; raises as `secure_outbound` does."""
    return await _secure(stream, Handshake("responder", key, muxers=muxers))


async def _secure(stream: trio.abc.Stream, handshake: Handshake) -> SecureSession:
    received = bytearray()
    while (result := handshake.result) is None:
        if handshake.wants_to_send:
            message = handshake.next_message()
            await stream.send_all(len(message).to_bytes(_LENGTH, "big") + message)
        else:
            handshake.receive_message(await _receive_message(stream, received))
    channel = SecureChannel(stream, result.sender, result.receiver, received)
    return SecureSession(
        channel=channel,
        peer_id=result.peer_id,
        public_key=result.public_key,
        muxer=result.muxer,
    )


async def _receive_message(stream: trio.abc.Stream, received: bytearray) -> bytes:
    """Take one message from the front of `received`, which keeps what follows it."""
    needed = _LENGTH
    while len(received) < needed or needed == _LENGTH:
        if len(received) >= _LENGTH:
            size = int.from_bytes(received[:_LENGTH], "big")
            if size > MAX_HANDSHAKE_MESSAGE:
                raise HandshakeError(f"a handshake message of {size} bytes is too long")
            needed = _LENGTH + size
            if len(received) >= needed:
                break
        data = await stream.receive_some(MAX_HANDSHAKE_MESSAGE)
        if not data:
            raise HandshakeError("the peer hung up during the handshake")
        received += data
    message = bytes(received[_LENGTH:needed])
    del received[:needed]
    return message


class SecureChannel(trio.abc.Stream):
    """An encrypted byte stream. One task may send while another receives."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        sender: CipherState,
        receiver: CipherState,
        received: Buffer = b"",
    ) -> None:
        self._stream = stream
        self._sender = sender
        self._receiver = receiver
        self._received: Buffer = bytes(received)  # ciphertext not decrypted yet
        self._plaintext = b""  # decrypted, not taken yet

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send `data`."""
        await self.send_many((data,))

    async def send_many(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt and send several buffers, in order, as one byte stream.

        A cancelled send leaves the channel unusable: part of a frame may be on its way.
        """
        if sum(map(len, buffers)) <= GATHER_BELOW:  # one small frame: no buffer to borrow
            sealed = self._sender.encrypt(b"".join(buffers))
            await self._stream.send_all(len(sealed).to_bytes(_LENGTH, "big") + sealed)
            return
        output = memoryview(_spare_outputs.pop() if _spare_outputs else bytearray(_OUTPUT_BYTES))
        try:
            await self._send_large(buffers, output)
        finally:
            if len(_spare_outputs) < MAX_SPARE_OUTPUTS:
                _spare_outputs.append(output)

    async def _send_large(self, buffers: Sequence[Buffer], output: memoryview) -> None:
        filled = frames = 0
        for plaintext in _frames(buffers):
            size = len(plaintext) + TAG_BYTES
            start = filled + _LENGTH
            output[filled:start] = size.to_bytes(_LENGTH, "big")
            filled = start + size
            self._sender.encrypt_into(plaintext, output[start:filled])
            frames += 1
            if frames == FRAMES_PER_WRITE:
                await self._stream.send_all(output[:filled])
                filled = frames = 0
        if frames:
            await self._stream.send_all(output[:filled])

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next plaintext, of whatever size, or b"" at the end.

        Raises:
            HandshakeError: a frame does not decrypt, or the stream ended inside one.
        """
        while not self._plaintext:
            if not await self._fill():
                return b""
        if max_bytes is None or len(self._plaintext) <= max_bytes:
            taken, self._plaintext = self._plaintext, b""
        else:
            taken = self._plaintext[:max_bytes]
            self._plaintext = self._plaintext[max_bytes:]
        return taken

    async def _fill(self) -> bool:
        """Decrypt the next frame; returns whether there was one."""
        while True:
            received = self._received
            if len(received) >= _LENGTH:
                end = _LENGTH + int.from_bytes(received[:_LENGTH], "big")
                if len(received) >= end:
                    break
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data and received:
                raise HandshakeError("the connection ended inside an encrypted frame")
            if not data:
                return False
            self._received = bytes(received) + data if received else data
        view = memoryview(received)
        self._plaintext = self._receiver.decrypt(view[_LENGTH:end])
        self._received = view[end:]
        return True

    async def aclose(self) -> None:
        """Close the stream beneath."""
        await self._stream.aclose()


def _frames(buffers: Iterable[Buffer]) -> Iterable[Buffer]:
    """Cut buffers into plaintexts of frames: large ones as they lie, small ones gathered."""
    gathered: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if len(buffer) < GATHER_BELOW:
            gathered.append(buffer)
            size += len(buffer)
            if size < MAX_PLAINTEXT - GATHER_BELOW:
                continue
        if gathered:
            yield b"".join(gathered)
            gathered, size = [], 0
        if len(buffer) >= GATHER_BELOW:
            view = memoryview(buffer)
            for start in range(0, len(view), MAX_PLAINTEXT):
                yield view[start : start + MAX_PLAINTEXT]
    if gathered:
        yield b"".join(gathered)
