"""What a member of a swarm says of itself for averaging, with each announcement: pure.

It is the msgpack list `[training, upload]`. Nobody need believe it: see `matchmaking` for what a
lie can change.
"""

from dataclasses import dataclass
from typing import Final, Self

import msgpack

from p2pnode.errors import ProtocolError
from p2pnode.wire.packing import unpack

MAX_NUMBER: Final = 2**53
MAX_BYTES: Final = 32
_FIELDS: Final = 2
_WHAT: Final = "what a member says of averaging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a member takes part.

    Attributes:
        training: tells this training of the member from its others: when it began, on its own
            clock, in milliseconds.
        upload: bytes a second that it has been seen to send, by itself; 0 if that is not known.
    """

    training: int = 0
    upload: int = 0

    def encode(self) -> bytes:
        """Return it as bytes."""
        packed: bytes = msgpack.packb([self.training, self.upload])
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` gave.

        Raises:
            ProtocolError: it is malformed, or too large.
        """
        if len(data) > MAX_BYTES:
            raise ProtocolError(f"{_WHAT} is too large")
        fields = unpack(data, _WHAT)
        if not isinstance(fields, list) or len(fields) != _FIELDS:
            raise ProtocolError(f"{_WHAT} must be a training and an upload rate")
        for each in fields:
            if type(each) is not int or not 0 <= each <= MAX_NUMBER:
                raise ProtocolError(f"{_WHAT} has a number that is out of range")
        return cls(training=fields[0], upload=fields[1])


class UploadMeter:
    """Measures how fast one node sends, from what it sends to several others at the same time.

    Others may be slower than this node, so that its own rate is not what the last of them took.
    Whenever one has taken all that it was sent, all that was taken until then has gone out in the
    time since the beginning; the fastest of these rates is a lower bound of what the node can do.

    Args:
        now: when sending begins.
        least: bytes that must have gone; less fits in buffers on the way, and measures nothing.
    """

    def __init__(self, now: float, least: int) -> None:
        self.rate = 0.0  # bytes a second; 0 while it is not known
        self._began = now
        self._least = least
        self._sent = 0

    def receive_sent(self, size: int, now: float) -> None:
        """Take in that somebody has taken all of so many bytes."""
        self._sent += size
        if self._sent >= self._least and now > self._began:
            self.rate = max(self.rate, self._sent / (now - self._began))


def rounded(rate: float) -> int:
    """Return the power of two below a rate, which changes seldom; 0 for less than 1."""
    return 1 << min(int(rate), MAX_NUMBER).bit_length() - 1 if rate >= 1 else 0
