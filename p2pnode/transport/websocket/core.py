"""A WebSocket as a byte stream: what libp2p sees of one, and nothing more.

Binary frames carry the bytes; where a frame or a message ends means nothing, so what arrives is
passed on at once and a message may be of any length. Text breaks the rules. (libp2p/specs,
websockets; RFC 6455.)

wsproto does the framing and the HTTP upgrade. It leaves to its caller what a stranger can do with
frames that carry nothing, and it trips over some upgrades with errors of the libraries beneath it;
both end here in one typed failure.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import h11
import numpy as np
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason, Opcode
from wsproto.utilities import ProtocolError as WebSocketProtocolError
from wsproto.utilities import RemoteProtocolError

from p2pnode.errors import HandshakeError, ProtocolError, SimultaneousOpenError

_REQUEST: Final = b"GET "
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127


class ByteStreamWebSocket(WSConnection):
    """One end of a connection, in the shape that trio-websocket drives.

    Args:
        connection_type: which end.
        max_empty_frames: pings and other frames without data that may come in a row.
        draw_mask: returns four bytes that nobody can guess, for each frame a client sends.
        notify: called when `request`, `is_open` or `failure` has changed.

    Attributes:
        request: what a client asked for, at a server.
        is_open: whether the upgrade is done, at a client.
        failure: which rule the other end broke.
    """

    def __init__(
        self,
        connection_type: ConnectionType,
        *,
        max_empty_frames: int,
        draw_mask: Callable[[], bytes],
        notify: Callable[[], None],
    ) -> None:
        super().__init__(connection_type)
        self.request: Request | None = None
        self.is_open = False
        self.failure: ProtocolError | None = None
        self._max_empty_frames = max_empty_frames
        self._draw_mask = draw_mask
        self._notify = notify
        self._empty_frames = 0
        self._found: deque[Event] = deque()

    # --- inputs ---------------------------------------------------------------------------------

    def receive_data(self, data: bytes | None) -> None:
        """Take bytes from the network.

        Raises:
            RemoteProtocolError: the other end broke a rule, which `failure` holds; the error's
                hint is what to answer before the connection is closed.
        """
        upgraded = self.connection is not None
        if self.client and not upgraded and data is not None and data.startswith(_REQUEST):
            self._fail(SimultaneousOpenError("the peer dialled, too: both asked for a WebSocket"))
            raise RemoteProtocolError(str(self.failure), None)
        try:
            super().receive_data(data)
            self._found += self._read()
        except _BrokenRule as broken:
            self._fail(ProtocolError(str(broken)))
            goodbye = CloseConnection(code=broken.code, reason=str(broken))
            raise RemoteProtocolError(
                str(broken), goodbye if self.state is ConnectionState.OPEN else None
            ) from None
        except (WebSocketProtocolError, h11.ProtocolError, ValueError) as error:
            what = "frame" if upgraded else "upgrade"
            self._fail(HandshakeError(f"the WebSocket {what} makes no sense: {error}"))
            hint = getattr(error, "event_hint", None) or RejectConnection(status_code=400)
            can_answer = not self.client and self.state is ConnectionState.CONNECTING
            raise RemoteProtocolError(str(error), hint if can_answer else None) from error

    # --- outputs --------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:  # type: ignore[override]  # no need for a generator
        """Yield what has happened, data as `BytesMessage` events that are complete."""
        while self._found:
            yield self._found.popleft()

    def send(self, event: Event) -> bytes:
        """Return the bytes to send for an event."""
        if isinstance(event, BytesMessage) and self.state is ConnectionState.OPEN:
            return self._frame(event.data)
        if isinstance(event, Pong) and self.state is not ConnectionState.OPEN:
            return b""  # it was under way when the connection began to close
        return super().send(event)

    # --- within ---------------------------------------------------------------------------------

    def _read(self) -> list[Event]:
        """Read the frames received; the data of all of them makes one event."""
        before: list[Event] = []
        after: list[Event] = []
        data: list[bytes | bytearray] = []
        ping: Ping | None = None
        for event in super().events():
            if isinstance(event, BytesMessage) and event.data:
                self._empty_frames = 0
                data.append(event.data)
            elif isinstance(event, BytesMessage | Ping | Pong):
                self._count_empty()
                if isinstance(event, Ping):
                    ping = event  # one answer does for all (RFC 6455, section 5.5.3)
            elif isinstance(event, CloseConnection):
                self._check_close(event)
                after.append(event)
            else:
                self._note(event)
                before.append(event)
        if ping is not None:
            before.append(ping)
        if data:
            before.append(BytesMessage(data=b"".join(data)))
        return before + after

    def _note(self, event: Event) -> None:
        """Note a step of the upgrade."""
        if isinstance(event, TextMessage):
            raise _BrokenRule("text came where libp2p has bytes", CloseReason.UNSUPPORTED_DATA)
        if isinstance(event, RejectConnection):  # whatever its body says
            raise WebSocketProtocolError(f"the server answers {event.status_code}")
        if isinstance(event, Request):
            self.request = event
        self.is_open = isinstance(event, AcceptConnection)
        self._notify()

    def _count_empty(self) -> None:
        self._empty_frames += 1
        if self._empty_frames > self._max_empty_frames:
            raise _BrokenRule(
                f"more than {self._max_empty_frames} frames in a row carried nothing",
                CloseReason.POLICY_VIOLATION,
            )

    def _check_close(self, event: CloseConnection) -> None:
        """Tell a goodbye from a broken frame, which wsproto reports in the same way."""
        if self.state in {ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING}:
            raise _BrokenRule(event.reason or "a frame is broken", CloseReason(event.code))

    def _fail(self, failure: ProtocolError) -> None:
        self.failure = failure
        self._notify()

    def _frame(self, data: bytes | bytearray) -> bytes:
        """Make a frame of `data`; wsproto would copy it four times, and mask it at a walk."""
        size = len(data)
        masked = _MASKED if self.client else 0
        head = bytearray([_FINAL | Opcode.BINARY])
        if size < _TWO_BYTES:
            head.append(masked | size)
        elif size < 1 << 16:
            head.append(masked | _TWO_BYTES)
            head += size.to_bytes(2, "big")
        else:
            head.append(masked | _EIGHT_BYTES)
            head += size.to_bytes(8, "big")
        if not self.client:
            return b"".join((head, data))
        mask = self._draw_mask()
        return b"".join((head, mask, _masked(data, mask)))


class _BrokenRule(Exception):  # noqa: N818  # caught in this module, where it is raised
    def __init__(self, message: str, code: CloseReason) -> None:
        super().__init__(message)
        self.code = code


def _masked(data: bytes | bytearray, mask: bytes) -> bytes:
    words, rest = divmod(len(data), 4)
    masked = np.empty(words + 1, np.uint32)
    np.bitwise_xor(
        np.frombuffer(data, np.uint32, words), np.frombuffer(mask, np.uint32), out=masked[:words]
    )
    view = masked.view(np.uint8)
    tail = np.frombuffer(data, np.uint8, rest, 4 * words) if rest else np.empty(0, np.uint8)
    view[4 * words : 4 * words + rest] = tail ^ np.frombuffer(mask, np.uint8, rest)
    return view[: len(data)].tobytes()
