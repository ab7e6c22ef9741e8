"""What a session knows of one stream, and what it tells about it."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from p2pnode.errors import P2PNodeError
from p2pnode.transport.session import Buffer, StreamAccount

GATHERED_CHUNK: Final = 4096  # small pieces are copied together up to this size


class EventKind(Enum):
    """What happened to a stream."""

    OPENED = auto()  # by the peer
    READABLE = auto()  # data, the end of data, or a failure
    WRITABLE = auto()  # the peer has confirmed some data, or a failure
    FORGOTTEN = auto()  # nothing more will happen to it


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream. The session alone changes it; its reader and writer look at it."""

    stream_id: int
    account: StreamAccount
    window: int  # what is charged for it: the peer may be so far ahead of the reader
    granted: int  # the offset up to which the peer may send
    granted_at: float
    # --- sending
    finish_wanted: bool = False
    failure: P2PNodeError | None = None  # nothing can be sent any more
    unwanted: bool = False  # since the peer has stopped reading, which need not be a failure
    # --- receiving
    received: deque[Buffer] = field(default_factory=deque)
    received_bytes: int = 0
    taken: int = 0  # by the reader, from the beginning
    remote_finished: bool = False
    receive_failure: P2PNodeError | None = None  # nothing more will come, and no clean end
    discarding: bool = False  # our reader is gone
    forgotten: bool = False
    due_at: float = float("inf")  # of giving it up

    def store(self, data: bytes) -> None:
        """Keep received data for the reader; small pieces, which cost most, are copied together."""
        if not data:
            return
        self.received_bytes += len(data)
        last = self.received[-1] if self.received else None
        if isinstance(last, bytearray) and len(last) + len(data) <= GATHERED_CHUNK:
            last += data
        elif len(data) <= GATHERED_CHUNK // 8:
            self.received.append(bytearray(data))
        else:
            self.received.append(data)

    def unstore(self, max_bytes: int | None) -> bytes:
        """Take what has been received, or its first `max_bytes`."""
        if max_bytes is None or self.received_bytes <= max_bytes:
            data = b"".join(self.received)
            self.received.clear()
        else:
            pieces: list[Buffer] = []
            missing = max_bytes
            while missing:
                piece = self.received.popleft()
                if len(piece) > missing:
                    view = memoryview(piece)  # of a piece as large as a window, perhaps
                    self.received.appendleft(view[missing:])
                    piece = view[:missing]
                pieces.append(piece)
                missing -= len(piece)
            data = b"".join(pieces)
        self.received_bytes -= len(data)
        self.taken += len(data)
        return data

    def restore(self, data: bytes) -> None:
        """Put back the end of what was taken."""
        if data:
            self.received.appendleft(data)
            self.received_bytes += len(data)
            self.taken -= len(data)


class StreamEvent(NamedTuple):
    """Something happened to a stream."""

    kind: EventKind
    stream: StreamState
