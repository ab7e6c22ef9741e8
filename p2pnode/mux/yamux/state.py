"""What a Yamux session knows of one stream, and what it tells about it."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from p2pnode.errors import P2PNodeError
from p2pnode.transport.session import StreamAccount

Buffer = bytes | bytearray | memoryview

GATHERED_CHUNK: Final = 4096  # small pieces are copied together up to this size


class EventKind(Enum):
    """What happened to a stream."""

    OPENED = auto()  # by the peer
    READABLE = auto()  # data, the end of data, or a failure
    WRITABLE = auto()  # what was queued has been written, or a failure
    FORGOTTEN = auto()  # nothing more will happen to it


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream. The session alone changes it; its reader and writer look at it."""

    stream_id: int
    inbound: bool
    greet: int  # SYN or ACK, for the next frame
    account: StreamAccount
    # --- sending
    send_window: int
    outgoing: deque[Buffer] = field(default_factory=deque)
    outgoing_bytes: int = 0
    unwritten: int = 0  # bytes queued, or given out and not yet written
    scheduled: bool = False  # waits for its turn to send
    finish_wanted: bool = False
    finish_sent: bool = False
    failure: P2PNodeError | None = None  # nothing can be sent any more
    # --- receiving
    receive_window: int = 0  # what the peer may still send
    receive_target: int = 0  # what the window is brought back to
    granted_at: float = 0.0
    received: deque[Buffer] = field(default_factory=deque)
    received_bytes: int = 0
    taken: int = 0  # read since the last grant
    destination: memoryview | None = None  # what its waiting reader still wants filled
    remote_finished: bool = False
    receive_failure: P2PNodeError | None = None  # nothing more will come, and no clean end
    discarding: bool = False  # our reader is gone
    # --- the session's bookkeeping
    accepted: bool = False
    awaits_ack: bool = False
    due_at: float = float("inf")  # of its acknowledgement, or of giving it up

    @property
    def can_send(self) -> bool:
        """Whether a frame could go out now."""
        if self.failure is not None:
            return False
        if self.outgoing:
            return self.send_window > 0
        return self.finish_wanted and not self.finish_sent

    def queue(self, data: memoryview) -> None:
        """Append to what is to be sent.

        A piece costs 200 bytes of its own, so small ones that have to wait are copied together.
        """
        last = self.outgoing[-1] if self.outgoing else None
        if isinstance(last, bytearray) and len(last) + len(data) <= GATHERED_CHUNK:
            last += data
        elif last is not None and len(data) <= GATHERED_CHUNK // 8:
            self.outgoing.append(bytearray(data))
        else:
            self.outgoing.append(data)
        self.outgoing_bytes += len(data)
        self.unwritten += len(data)

    def dequeue(self, room: int) -> list[Buffer]:
        """Take at most `room` bytes of what is to be sent."""
        pieces: list[Buffer] = []
        while self.outgoing and room:
            piece = self.outgoing.popleft()
            if len(piece) > room:
                view = memoryview(piece)
                piece = view[:room]
                self.outgoing.appendleft(view[room:])
            pieces.append(piece)
            room -= len(piece)
            self.outgoing_bytes -= len(piece)
        return pieces

    def store(self, piece: memoryview) -> None:
        """Keep a received piece for the reader.

        A view keeps the whole of what it looks at alive, so views of small parts are copied: what
        is stored costs at most about twice the window.
        """
        self.received_bytes += len(piece)
        whole = memoryview(piece.obj)
        if len(piece) == len(whole) and isinstance(piece.obj, bytes):
            self.received.append(piece.obj)
            return
        if len(piece) * 2 >= len(whole):
            self.received.append(piece)
            return
        last = self.received[-1] if self.received else None
        if isinstance(last, bytearray) and len(last) < GATHERED_CHUNK:
            last += piece
        else:
            self.received.append(bytearray(piece))

    def unstore(self, max_bytes: int | None) -> Buffer:
        """Take one received piece, or its first `max_bytes`."""
        piece = self.received[0]
        if max_bytes is not None and len(piece) > max_bytes:
            view = memoryview(piece)
            piece, self.received[0] = view[:max_bytes], view[max_bytes:]
        else:
            self.received.popleft()
        self.received_bytes -= len(piece)
        self.taken += len(piece)
        return piece

    def fill(self, piece: memoryview) -> memoryview:
        """Copy a received piece to the waiting reader; returns what it did not want."""
        destination = self.destination
        assert destination is not None
        size = min(len(piece), len(destination))
        destination[:size] = piece[:size]
        self.note_filled(size)
        return piece[size:]

    def note_filled(self, size: int) -> None:
        """Note that so much more of the reader's buffer has been filled."""
        assert self.destination is not None
        self.destination = self.destination[size:]
        self.taken += size

    def drop_received(self) -> None:
        """Forget what has been received, as if it had been read."""
        self.taken += self.received_bytes
        self.received.clear()
        self.received_bytes = 0


class StreamEvent(NamedTuple):
    """Something happened to a stream."""

    kind: EventKind
    stream: StreamState

    @property
    def stream_id(self) -> int:
        """The stream's number; a peer may use it again after the stream's end."""
        return self.stream.stream_id
