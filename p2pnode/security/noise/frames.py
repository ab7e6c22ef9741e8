"""Frames of an established Noise channel, as pure state machines.

Each frame is a 2-byte big-endian length and that many bytes of ciphertext. Nothing large is
copied: sealing encrypts buffers from where they lie into one output buffer, which is reused, and
opening decrypts a frame from where it was received to where its reader wants it. Small buffers are
gathered into one frame, since a frame of their own would cost more than copying them; and a frame
cut by the end of a read is put together by copying.

Source: libp2p/specs, noise, wire format.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.security.noise.core import MAX_PLAINTEXT, TAG_BYTES, Buffer, CipherState

LENGTH_BYTES: Final = 2
GATHER_BELOW: Final = 8192  # bytes; copying so much costs less than a frame of its own
SPARE_BYTES: Final = 768 * 1024  # of a buffer worth keeping: holds a whole write of the muxer
MAX_SPARE_OUTPUTS: Final = 4  # idle channels hold no buffer; a large write takes one of these
_spare_outputs: list[bytearray] = []


class FrameSealer:
    """The sending direction."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher
        self._output: bytearray | None = None

    def seal(self, buffers: Sequence[Buffer]) -> Buffer:
        """Encrypt `buffers`, in order, as one run of bytes.

        Returns:
            What to write. It is valid until `release`, which must come before the next `seal`.

        Raises:
            ConnectionClosedError: the key has encrypted as many frames as it may.
        """
        total = sum(map(len, buffers))
        if total < GATHER_BELOW:  # no buffer to borrow for one small frame
            if not total:
                return b""
            sealed = self._cipher.encrypt(buffers[0] if len(buffers) == 1 else b"".join(buffers))
            return len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed
        plaintexts = list(_plaintexts(buffers))
        self._output = _borrow(total + len(plaintexts) * (LENGTH_BYTES + TAG_BYTES))
        view = memoryview(self._output)
        encrypt_into = self._cipher.encrypt_into
        end = 0
        for plaintext in plaintexts:
            size = len(plaintext) + TAG_BYTES
            start = end + LENGTH_BYTES
            view[end] = size >> 8
            view[end + 1] = size & 0xFF
            end = start + size
            encrypt_into(plaintext, view[start:end])
        return view[:end]

    def release(self) -> None:
        """Give the output buffer back: what `seal` returned has been written, or never will be."""
        output, self._output = self._output, None
        if output is None or len(output) != SPARE_BYTES:
            return
        if len(_spare_outputs) < MAX_SPARE_OUTPUTS:
            _spare_outputs.append(output)


def _borrow(size: int) -> bytearray:
    if size > SPARE_BYTES:
        return bytearray(size)
    try:
        return _spare_outputs.pop()
    except IndexError:
        return bytearray(SPARE_BYTES)


def _plaintexts(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Cut `buffers` into plaintexts of frames: large ones as they lie, small ones gathered."""
    gathered: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if len(buffer) < GATHER_BELOW:
            if size + len(buffer) > MAX_PLAINTEXT:
                yield b"".join(gathered)
                gathered, size = [], 0
            gathered.append(buffer)
            size += len(buffer)
            continue
        view = memoryview(buffer)
        for start in range(0, len(view), MAX_PLAINTEXT):
            piece = view[start : start + MAX_PLAINTEXT]
            if len(piece) < GATHER_BELOW:  # the end of the buffer: the next one may follow it
                gathered, size = [piece], len(piece)
                break
            if size:
                yield b"".join(gathered)
                gathered, size = [], 0
            yield piece
    if size:
        yield b"".join(gathered)


class FrameOpener:
    """The receiving direction: `receive_data`, then `open` while `next_size` finds a frame."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher
        self._data = memoryview(b"")  # received last
        self._offset = 0  # of the first frame there that has not been opened
        self._cut = bytearray()  # a frame whose beginning ended an earlier read

    @property
    def is_inside_frame(self) -> bool:
        """Whether the bytes received so far end within a frame."""
        return bool(self._cut)

    def receive_data(self, data: Buffer) -> None:
        """Take bytes from the peer; all whole frames of earlier ones must have been opened."""
        view = memoryview(data)
        self._data, self._offset = view, 0
        if self._cut:
            self._extend_cut(LENGTH_BYTES)
            if len(self._cut) >= LENGTH_BYTES:
                self._extend_cut(self._cut_size())

    def next_size(self) -> int:
        """Return how many bytes of plaintext the next whole frame has, or -1 if there is none.

        Raises:
            ProtocolError: the frame has no room for its tag.
        """
        if self._cut:
            if len(self._cut) < LENGTH_BYTES or len(self._cut) < self._cut_size():
                return -1
            return _plaintext_size(self._cut_size() - LENGTH_BYTES)
        data, offset = self._data, self._offset
        available = len(data) - offset - LENGTH_BYTES
        if available >= 0:
            size = data[offset] << 8 | data[offset + 1]
            if size <= available:
                return _plaintext_size(size)
        if available > -LENGTH_BYTES:
            self._cut += data[offset:]
        self._data, self._offset = memoryview(b""), 0
        return -1

    def open(self) -> bytes:
        """Return the plaintext of the frame that `next_size` found.

        Raises:
            ProtocolError: it was changed, replayed or left out on its way.
            ConnectionClosedError: the key has decrypted as many frames as it may.
        """
        return self._cipher.decrypt(self._take())

    def open_into(self, buffer: memoryview) -> None:
        """Write the plaintext to `buffer`, of exactly its size; raises as `open` does.

        When it raises, the buffer's content is worthless.
        """
        self._cipher.decrypt_into(self._take(), buffer)

    def forget(self) -> None:
        """Drop what was received and not opened: nobody will."""
        self._data, self._offset, self._cut = memoryview(b""), 0, bytearray()

    def _take(self) -> memoryview:
        if self._cut:
            frame, self._cut = self._cut, bytearray()
            return memoryview(frame)[LENGTH_BYTES:]
        data, offset = self._data, self._offset
        start = offset + LENGTH_BYTES
        self._offset = end = start + (data[offset] << 8 | data[offset + 1])
        return data[start:end]

    def _cut_size(self) -> int:
        return LENGTH_BYTES + (self._cut[0] << 8 | self._cut[1])

    def _extend_cut(self, size: int) -> None:
        """Move bytes from what was received to the cut frame, until it has `size` if they do."""
        start = self._offset
        self._offset = min(start + max(size - len(self._cut), 0), len(self._data))
        self._cut += self._data[start : self._offset]


def _plaintext_size(size: int) -> int:
    if size < TAG_BYTES:
        raise ProtocolError(f"a frame of {size} bytes has no room for its tag")
    return size - TAG_BYTES
