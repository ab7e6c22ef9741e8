"""The Noise handshake over a stream, and the encrypted channel that comes of it.

On the wire every message, in the handshake and after, is a 2-byte big-endian length and that many
bytes.
"""

import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.errors import ConnectionClosedError, HandshakeError, P2PNodeError
from p2pnode.security.noise.core import Buffer, Handshake
from p2pnode.security.noise.frames import LENGTH_BYTES, FrameOpener, FrameSealer
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

RECEIVE_BYTES: Final = 256 * 1024  # asked of the stream at once
MAX_HANDSHAKE_MESSAGE: Final = 8192  # an RSA-8192 identity needs 2.5 KiB


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
            await stream.send_all(len(message).to_bytes(LENGTH_BYTES, "big") + message)
        else:
            handshake.receive_message(await _receive_message(stream, received))
    sealer, opener = FrameSealer(result.sender), FrameOpener(result.receiver)
    channel = SecureChannel(stream, sealer, opener, bytes(received))
    return SecureSession(
        channel=channel,
        peer_id=result.peer_id,
        public_key=result.public_key,
        muxer=result.muxer,
    )


async def _receive_message(stream: trio.abc.Stream, received: bytearray) -> bytes:
    """Take one message from the front of `received`, which keeps what follows it."""
    needed = LENGTH_BYTES
    while len(received) < needed or needed == LENGTH_BYTES:
        if len(received) >= LENGTH_BYTES:
            size = int.from_bytes(received[:LENGTH_BYTES], "big")
            if size > MAX_HANDSHAKE_MESSAGE:
                raise HandshakeError(f"a handshake message of {size} bytes is too long")
            needed = LENGTH_BYTES + size
            if len(received) >= needed:
                break
        data = await stream.receive_some(MAX_HANDSHAKE_MESSAGE)
        if not data:
            raise HandshakeError("the peer hung up during the handshake")
        received += data
    message = bytes(received[LENGTH_BYTES:needed])
    del received[:needed]
    return message


class SecureChannel(trio.abc.Stream):
    """An encrypted byte stream. One task may send while another receives.

    Args:
        stream: what carries the frames; closed with the channel.
        sealer, opener: the two directions.
        received: bytes of frames that came together with the end of the handshake.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        sealer: FrameSealer,
        opener: FrameOpener,
        received: bytes = b"",
    ) -> None:
        self._stream = stream
        self._sealer = sealer
        self._opener = opener
        self._received = received
        self._plaintexts: deque[bytes] = deque()
        self._sending = False
        self._receiving = False
        self._send_broken = False
        self._receive_failure: P2PNodeError | None = None
        self._closed = False

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send `data`; raises as `send_many` does."""
        await self.send_many((data,))

    async def send_many(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt and send several buffers, in order, as one run of bytes.

        A send that was cancelled or failed leaves the channel unable to send: part of a frame may
        be on its way.

        Raises:
            ConnectionClosedError: the key has encrypted as many frames as it may.
            trio.BrokenResourceError: the stream broke, or an earlier send did not finish.
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the channel was closed.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        if self._closed:
            raise trio.ClosedResourceError("the channel is closed")
        if self._send_broken:
            raise trio.BrokenResourceError("an earlier send did not finish")
        if not any(map(len, buffers)):
            await self._stream.send_all(b"")
            return
        self._sending = self._send_broken = True
        try:
            for batch in self._sealer.seal(buffers):
                await self._stream.send_all(batch)
            self._send_broken = False
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        self._sending = True
        try:
            await self._stream.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next plaintext, or its first `max_bytes`; b"" at the end.

        Raises:
            ProtocolError: a frame was changed, replayed or left out on its way.
            ConnectionClosedError: the stream ended inside a frame.
            trio.BrokenResourceError: the stream broke.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: the channel was closed.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._plaintexts and not self._closed:
            await trio.lowlevel.checkpoint()
        elif not await self._fill():
            return b""
        plaintext = self._plaintexts.popleft()
        if max_bytes is not None and len(plaintext) > max_bytes:
            self._plaintexts.appendleft(plaintext[max_bytes:])
            return plaintext[:max_bytes]
        return plaintext

    async def receive_many(self) -> list[bytes]:
        """Return the plaintexts of all frames that have come, at least one; [] at the end.

        Raises as `receive_some` does.
        """
        if self._plaintexts and not self._closed:
            await trio.lowlevel.checkpoint()
        elif not await self._fill():
            return []
        plaintexts = list(self._plaintexts)
        self._plaintexts.clear()
        return plaintexts

    async def _fill(self) -> bool:
        """Wait for plaintexts; returns whether there are any before the end."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this channel")
        if self._receive_failure is not None:
            raise self._receive_failure
        self._receiving = True
        try:
            while not self._plaintexts:
                data = self._received or await self._stream.receive_some(RECEIVE_BYTES)
                self._received = b""
                if data:
                    self._plaintexts.extend(self._opener.receive_data(data))
                elif self._opener.is_inside_frame:
                    raise ConnectionClosedError("the connection ended inside an encrypted frame")
                else:
                    return False
        except P2PNodeError as error:
            self._receive_failure = error
            raise
        finally:
            self._receiving = False
        return True

    async def aclose(self) -> None:
        """Close the stream beneath."""
        self._closed = True
        await self._stream.aclose()
