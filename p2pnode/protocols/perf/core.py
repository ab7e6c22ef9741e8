"""Perf: the dialer uploads, then the listener sends as much as the dialer asked for.

Source: libp2p/specs, perf. On one stream:

1. The dialer sends how many bytes it wants back, eight bytes big endian.
2. It sends its upload, of any size, and closes its side.
3. The listener, which has read all of that and not before, sends the bytes and closes its side.

So the first byte of the answer, or its end, tells the dialer that its upload has arrived.
"""

from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError, ResourceLimitError

PROTOCOL: Final = "/perf/1.0.0"
REQUEST_BYTES: Final = 8
MAX_DOWNLOAD: Final = 2 ** (8 * REQUEST_BYTES) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfResult:
    """What one measurement found.

    Attributes:
        upload: bytes sent.
        download: bytes received.
        upload_seconds: from the opening of the stream until the peer had read the upload; one
            round trip is part of it.
        download_seconds: from then on to the end of the answer.
    """

    upload: int
    download: int
    upload_seconds: float
    download_seconds: float

    @property
    def upload_rate(self) -> float | None:
        """Bytes a second; None if nothing was uploaded."""
        return _rate(self.upload, self.upload_seconds)

    @property
    def download_rate(self) -> float | None:
        """Bytes a second; None if nothing was downloaded."""
        return _rate(self.download, self.download_seconds)


def _rate(size: int, seconds: float) -> float | None:
    return size / seconds if size and seconds > 0 else None


def encode_request(download: int) -> bytes:
    """Write how many bytes the listener is to send.

    Raises:
        ValueError: the number is negative or takes more than eight bytes.
    """
    if not 0 <= download <= MAX_DOWNLOAD:
        raise ValueError(f"a download is of 0 to {MAX_DOWNLOAD} bytes")
    return download.to_bytes(REQUEST_BYTES, "big")


class Run:
    """The listener's side of one run, byte by byte; `limit` holds for each direction."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._request = b""
        self._received = 0

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take in what the dialer sent.

        Raises:
            ResourceLimitError: it asks for more, or sends more, than the limit.
        """
        missing = REQUEST_BYTES - len(self._request)
        if missing:
            self._request += data[:missing]
            if len(self._request) == REQUEST_BYTES:
                self._check("asks for", int.from_bytes(self._request, "big"))
        self._received += max(0, len(data) - missing)
        self._check("sends", self._received)

    def receive_end(self) -> int:
        """Take in the end of the upload; returns how many bytes to send.

        Raises:
            ProtocolError: the stream ended inside the request.
        """
        if len(self._request) < REQUEST_BYTES:
            raise ProtocolError("a perf stream ended before it said how much to send")
        return int.from_bytes(self._request, "big")

    def _check(self, verb: str, size: int) -> None:
        if size > self._limit:
            raise ResourceLimitError(f"a perf run {verb} {size} bytes, more than {self._limit}")


class Answer:
    """The dialer's side of one run once its upload is sent: counts what comes back."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.missing = size

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take in a part of the answer.

        Raises:
            ProtocolError: there is more of it than was asked for.
        """
        if len(data) > self.missing:
            raise ProtocolError(f"the peer sends more than the {self._size} bytes asked for")
        self.missing -= len(data)

    def receive_end(self) -> None:
        """Take in the end of the answer.

        Raises:
            ProtocolError: it came too early.
        """
        if self.missing:
            raise ProtocolError(f"the peer sent {self.missing} of {self._size} bytes too few")
