"""Yamux frames: 12 bytes of header, and for data that many bytes behind it.

Source: hashicorp/yamux, spec.md; libp2p/specs, yamux.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from p2pnode.errors import ProtocolError

PROTOCOL: Final = "/yamux/1.0.0"
HEADER_BYTES: Final = 12
_HEADER: Final = struct.Struct(">BBHII")
_VERSION: Final = 0


class FrameType(IntEnum):
    """What a frame is."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag(IntFlag):
    """Marks on a frame."""

    NONE = 0
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAwayCode(IntEnum):
    """Why a session ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's header.

    `length` is the bytes that follow (data), the window granted (window update), an opaque value
    (ping) or a code (go away).
    """

    kind: FrameType
    flags: Flag
    stream_id: int
    length: int

    def encode(self) -> bytes:
        """Return the 12 bytes."""
        return _HEADER.pack(_VERSION, self.kind, self.flags, self.stream_id, self.length)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Header":
        """Read 12 bytes; unknown flags are ignored.

        Raises:
            ProtocolError: the version or type is unknown.
        """
        version, kind, flags, stream_id, length = _HEADER.unpack(data)
        if version != _VERSION:
            raise ProtocolError(f"yamux version {version} is not known")
        if kind > FrameType.GO_AWAY:
            raise ProtocolError(f"yamux frame type {kind} is not known")
        return cls(_TYPES[kind], _FLAGS[flags & 0xF], stream_id, length)


# Building an enum member costs a microsecond, looking it up a tenth of it.
_TYPES: Final = tuple(FrameType)
_FLAGS: Final = tuple(Flag(value) for value in range(16))
