"""Frames of an established Noise channel, as pure state machines.

Each frame is a 2-byte big-endian length and that many bytes of ciphertext. Sealing encrypts large
buffers from where they lie into one output buffer, which is reused; small ones are gathered first,
since a frame of their own would cost more than copying them. Opening decrypts frames from where
they were received; only a frame cut by the end of a read is put together by copying.

Source: libp2p/specs, noise, wire format.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.security.noise.core import MAX_PLAINTEXT, TAG_BYTES, Buffer, CipherState

LENGTH_BYTES: Final = 2
# Fewer system calls, and it stays in the processor's cache. A whole write of the muxer fits: its
# callers' buffers are not looked at any more once the write has begun, even if it is cancelled.
BATCH_BYTES: Final = (1024 + 160) * 1024
GATHER_BELOW: Final = 8192  # bytes; copying so much costs less than a frame of its own
MAX_SPARE_OUTPUTS: Final = 4  # idle channels hold no buffer; a large batch takes one of these
_spare_outputs: list[bytearray] = []


class FrameSealer:
    """The sending direction."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher

    def seal(self, buffers: Sequence[Buffer]) -> Iterator[Buffer]:
        """Encrypt `buffers`, in order, as one run of bytes.

        Yields:
            Batches of about a MiB to write at once. A batch is valid until the next is taken.

        Raises:
            ConnectionClosedError: the key has encrypted as many frames as it may.
        """
        if sum(map(len, buffers)) < GATHER_BELOW:  # no buffer to borrow for one small frame
            sealed = self._cipher.encrypt(b"".join(buffers))
            yield len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed
            return
        output = _spare_outputs.pop() if _spare_outputs else bytearray(BATCH_BYTES)
        try:
            yield from self._seal_into(memoryview(output), buffers)
        finally:
            if len(_spare_outputs) < MAX_SPARE_OUTPUTS:
                _spare_outputs.append(output)

    def _seal_into(self, output: memoryview, buffers: Sequence[Buffer]) -> Iterator[memoryview]:
        filled = 0
        for plaintext in _plaintexts(buffers):
            size = len(plaintext) + TAG_BYTES
            if filled + LENGTH_BYTES + size > BATCH_BYTES:
                yield output[:filled]
                filled = 0
            start = filled + LENGTH_BYTES
            output[filled:start] = size.to_bytes(LENGTH_BYTES, "big")
            filled = start + size
            self._cipher.encrypt_into(plaintext, output[start:filled])
        yield output[:filled]


def _plaintexts(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Cut `buffers` into plaintexts of frames: large ones as they lie, small ones gathered."""
    gathered: list[Buffer] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), MAX_PLAINTEXT):
            piece = view[start : start + MAX_PLAINTEXT]
            small = len(piece) < GATHER_BELOW
            if gathered and (not small or size + len(piece) > MAX_PLAINTEXT):
                yield b"".join(gathered)
                gathered, size = [], 0
            if small:
                gathered.append(piece)
                size += len(piece)
            else:
                yield piece
    if gathered:
        yield b"".join(gathered)


class FrameOpener:
    """The receiving direction."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher
        self._cut = bytearray()  # the beginning of a frame whose rest has not come

    @property
    def is_inside_frame(self) -> bool:
        """Whether the bytes received so far end within a frame."""
        return bool(self._cut)

    def receive_data(self, data: Buffer) -> list[bytes]:
        """Take bytes from the peer; returns the plaintexts of the frames they complete.

        Empty plaintexts are left out.

        Raises:
            ProtocolError: a frame is too short, or was changed, replayed or left out on its way.
            ConnectionClosedError: the key has decrypted as many frames as it may.
        """
        plaintexts: list[bytes] = []
        view = memoryview(data)
        offset = self._complete_cut(view, plaintexts) if self._cut else 0
        available = len(view)
        while available - offset >= LENGTH_BYTES:
            start = offset + LENGTH_BYTES
            end = start + (view[offset] << 8 | view[offset + 1])
            if end > available:
                break
            self._open(view[start:end], plaintexts)
            offset = end
        self._cut += view[offset:]
        return plaintexts

    def _complete_cut(self, view: memoryview, plaintexts: list[bytes]) -> int:
        """Complete the cut frame; returns how many bytes of `view` that took."""
        taken = 0
        while True:
            needed = LENGTH_BYTES
            if len(self._cut) >= LENGTH_BYTES:
                needed += self._cut[0] << 8 | self._cut[1]
            missing = needed - len(self._cut)
            if not missing:
                frame, self._cut = self._cut, bytearray()
                self._open(memoryview(frame)[LENGTH_BYTES:], plaintexts)
                return taken
            piece = view[taken : taken + missing]
            if not piece:
                return taken
            self._cut += piece
            taken += len(piece)

    def _open(self, ciphertext: memoryview, plaintexts: list[bytes]) -> None:
        if len(ciphertext) < TAG_BYTES:
            raise ProtocolError(f"a frame of {len(ciphertext)} bytes has no room for its tag")
        plaintext = self._cipher.decrypt(ciphertext)
        if plaintext:
            plaintexts.append(plaintext)
