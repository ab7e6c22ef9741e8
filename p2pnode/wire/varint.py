"""Unsigned LEB128 integers as libp2p uses them: at most 9 bytes, in minimal form.

Source: multiformats/unsigned-varint.
"""

from typing import Final

from p2pnode.errors import ProtocolError

MAX_VARINT_BYTES: Final = 9  # 63 bits, the specification's practical maximum


def encode(value: int) -> bytes:
    """Encode `value` (0 <= value < 2**63)."""
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{value} does not fit an unsigned varint of 63 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int] | None:
    """Decode the varint at `offset`.

    Returns:
        The value and the offset behind it, or None when more bytes are needed.

    Raises:
        ProtocolError: the number is longer than 9 bytes or not in minimal form.
    """
    value = 0
    for index in range(MAX_VARINT_BYTES):
        if offset + index >= len(data):
            return None
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise ProtocolError("varint is not in minimal form")
            return value, offset + index + 1
    raise ProtocolError("varint is longer than 9 bytes")


def prefixed(payload: bytes) -> bytes:
    """Return `payload` behind its own length."""
    return encode(len(payload)) + payload
