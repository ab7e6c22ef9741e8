"""Yamux frames: 12 bytes of header, and for data that many bytes behind it.

Source: hashicorp/yamux, spec.md; libp2p/specs, yamux.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from p2pnode.errors import ProtocolError

PROTOCOL: Final = "/yamux/1.0.0"
HEADER_BYTES: Final = 12
INITIAL_WINDOW: Final = 256 * 1024  # of each direction of a stream, before any grant
MAX_U32: Final = 2**32 - 1
_HEADER: Final = struct.Struct(">BBHII")
_VERSION: Final = 0


class FrameType(IntEnum):
    """What a frame is."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag:
    """Marks on a frame. Plain numbers: an enum's `&` costs more than the rest of a header."""

    NONE: Final = 0
    SYN: Final = 1
    ACK: Final = 2
    FIN: Final = 4
    RST: Final = 8


class GoAwayCode(IntEnum):
    """Why a session ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Header(NamedTuple):
    """A frame's header.

    `length` is the bytes that follow (data), the window granted (window update), an opaque value
    (ping) or a code (go away).
    """

    kind: int
    flags: int
    stream_id: int
    length: int

    def encode(self) -> bytes:
        """Return the 12 bytes."""
        return _HEADER.pack(_VERSION, *self)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> "Header":
        """Read 12 bytes at `offset`; unknown flags are kept, for the reader to ignore.

        Raises:
            ProtocolError: the version or type is unknown.
        """
        version, kind, flags, stream_id, length = _HEADER.unpack_from(data, offset)
        if version != _VERSION:
            raise ProtocolError(f"yamux version {version} is not known")
        if kind > FrameType.GO_AWAY:
            raise ProtocolError(f"yamux frame type {kind} is not known")
        return cls(kind, flags, stream_id, length)
