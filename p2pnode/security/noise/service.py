"""The Noise handshake over a stream, and the encrypted channel that comes of it.

On the wire every message, in the handshake and after, is a 2-byte big-endian length and that many
bytes.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.errors import ConnectionClosedError, HandshakeError, P2PNodeError
from p2pnode.security.noise.core import Buffer, Handshake
from p2pnode.security.noise.frames import LENGTH_BYTES, FrameOpener, FrameSealer
from p2pnode.transport.shortcut import READ_BYTES, SocketShortcut
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

SEND_BYTES: Final = 512 * 1024  # encrypted at once: more would not stay in the processor's cache
MAX_HANDSHAKE_MESSAGE: Final = 8192  # an RSA-8192 identity needs 2.5 KiB
_NOTHING: Final = memoryview(b"")


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
    stream: trio.abc.Stream,
    key: PrivateKey,
    *,
    expected: PeerId | None = None,
    muxers: Sequence[str] = (),
) -> SecureSession:
    """Run the handshake as the listener; raises as `secure_outbound` does."""
    return await _secure(stream, Handshake("responder", key, expected=expected, muxers=muxers))


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

    It has two faces. As a `trio.abc.Stream` it is used like any other. The muxer takes the steps
    one by one: `write` encrypts, `send_now` and `flush` send; `wait_received` waits, `next_size`
    looks, and `read` or `read_into` decrypts, straight to where the bytes are wanted.

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
        self._shortcut = SocketShortcut.of(stream)
        self._sealer = sealer
        self._opener = opener
        self._unsent = _NOTHING
        self._rest = b""  # of a plaintext of which a reader wanted less
        self._sending = False
        self._receiving = False
        self._send_broken = False
        self._receive_failure: P2PNodeError | None = None
        self._closed = False
        if received:
            self._opener.receive_data(received)

    # --- sending --------------------------------------------------------------------------------

    @property
    def is_flushed(self) -> bool:
        """Whether everything that was written has been sent."""
        return not self._unsent

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt `buffers`, in order, for `flush` to send; they may change as soon as it returns.

        What was written before must have been flushed.

        Raises:
            ConnectionClosedError: the key has encrypted as many frames as it may.
        """
        assert not self._unsent
        self._unsent = memoryview(self._sealer.seal(buffers))

    def send_now(self) -> bool:
        """Send what can be sent without waiting; returns whether that was everything.

        Not while another task is in `flush`.
        """
        if self._shortcut is not None and not self._closed:
            self._note_sent(self._shortcut.send_now(self._unsent))
        return not self._unsent

    async def flush(self) -> None:
        """Send what was written.

        A flush that was cancelled or failed leaves the channel unable to send: part of a frame
        may be on its way.

        Raises:
            trio.BrokenResourceError: the stream broke, or an earlier send did not finish.
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the channel was closed.
        """
        self._check_sendable()
        self._sending = self._send_broken = True
        try:
            await self._stream.send_all(self._unsent)
            self._send_broken = False
        finally:
            self._sending = False
            self._note_sent(len(self._unsent))  # or it never will be

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send `data`; raises as `write` and `flush` do."""
        self._check_sendable()
        view = memoryview(data)
        for start in range(0, len(view) or 1, SEND_BYTES):
            self.write((view[start : start + SEND_BYTES],))
            await self.flush()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        self._sending = True
        try:
            await self._stream.wait_send_all_might_not_block()
        finally:
            self._sending = False

    def _check_sendable(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        if self._closed:
            raise trio.ClosedResourceError("the channel is closed")
        if self._send_broken:
            raise trio.BrokenResourceError("an earlier send did not finish")

    def _note_sent(self, size: int) -> None:
        self._unsent = self._unsent[size:]
        if not self._unsent:
            self._unsent = _NOTHING  # which lets go of the sealer's buffer
            self._sealer.release()

    # --- receiving ------------------------------------------------------------------------------

    async def wait_received(self) -> bool:
        """Wait until a frame has come; returns False when none will.

        Raises:
            ProtocolError: the frame has no room for its tag.
            ConnectionClosedError: the stream ended inside a frame.
            trio.BrokenResourceError: the stream broke.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: the channel was closed.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this channel")
        if self._closed:
            raise trio.ClosedResourceError("the channel is closed")
        if self._receive_failure is not None:
            raise self._receive_failure
        if self.next_size() >= 0:
            await trio.lowlevel.checkpoint()
            return True
        self._receiving = True
        try:
            while self.next_size() < 0:
                data = await self._receive()
                if data:
                    self._opener.receive_data(data)
                elif self._opener.is_inside_frame:
                    raise ConnectionClosedError("the connection ended inside an encrypted frame")
                else:
                    return False
        finally:
            self._receiving = False
        return True

    async def _receive(self) -> Buffer:
        """Return bytes of frames, which are looked at until the next call at most."""
        if self._shortcut is not None:
            return await self._shortcut.receive()
        return await self._stream.receive_some(READ_BYTES)

    def next_size(self) -> int:
        """Return how many bytes `read` would give, or -1 if it has to be waited for.

        Raises:
            ProtocolError: the frame has no room for its tag.
        """
        return len(self._rest) or self._opener.next_size()

    def read(self) -> bytes:
        """Return the plaintext that `next_size` found.

        Raises:
            ProtocolError: a frame was changed, replayed or left out on its way.
            ConnectionClosedError: the key has decrypted as many frames as it may.
        """
        rest, self._rest = self._rest, b""
        if rest:
            return rest
        try:
            return self._opener.open()
        except P2PNodeError as error:
            self._receive_failure = error
            raise

    def read_into(self, buffer: memoryview) -> None:
        """Write the plaintext to `buffer`, of exactly its size; raises as `read` does.

        When it raises, the buffer's content is worthless.
        """
        if self._rest:
            buffer[:], self._rest = self._rest, b""
            return
        try:
            self._opener.open_into(buffer)
        except P2PNodeError as error:
            self._receive_failure = error
            raise

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next plaintext, or its first `max_bytes`; b"" at the end.

        Raises as `wait_received` and `read` do.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        while await self.wait_received():
            plaintext = self.read()
            if max_bytes is not None and len(plaintext) > max_bytes:
                self._rest = plaintext[max_bytes:]
                return plaintext[:max_bytes]
            if plaintext:  # a frame may be empty, which is no end
                return plaintext
        return b""

    async def aclose(self) -> None:
        """Close the stream beneath."""
        self._closed = True
        self._rest = b""
        self._opener.forget()  # whoever keeps the error that led here need not keep what came
        if self._shortcut is not None:
            self._shortcut.release()
        await self._stream.aclose()
