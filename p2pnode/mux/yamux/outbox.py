"""What one side of a Yamux session has to send, and in which order it goes out; pure.

- Data is never copied on the way out: `next_frames` gives the caller's own buffers, interleaved
  with headers. Control frames go first, then streams with little to send, then the others in turn.
- SYN and ACK ride on a stream's first frame. FIN has a frame of its own: go-yamux and js-libp2p
  act on it before they look at the data it came with.
- A new stream waits while the peer has acknowledged too few of those before it.
"""

from collections import deque
from typing import Final, NamedTuple

from p2pnode.config import NetworkSettings
from p2pnode.mux.yamux.frames import HEADER_BYTES, Flag, FrameType, Header
from p2pnode.mux.yamux.state import Buffer, StreamState

SMALL_BYTES: Final = 4096  # a stream with no more than this to send goes before bulk
ACK_DELAY: Final = 0.02  # seconds an acknowledgement waits for a frame to ride on


class Output(NamedTuple):
    """What to write next; tell the session's `wrote` when that is done."""

    buffers: list[Buffer]  # in wire order
    served: list[tuple[StreamState, int]]  # how much data of which stream is among them


class Outbox:
    """What waits to be sent; see the module.

    Attributes:
        queued: bytes of data that wait to be sent.
        bytes_sent: of data, so far.
        unacknowledged: how many streams of ours the peer has not answered.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self.queued = 0
        self.bytes_sent = 0
        self.unacknowledged = 0
        self._max_frame = settings.yamux_max_frame
        self._accept_backlog = settings.yamux_accept_backlog
        self._unanswered: dict[int, StreamState] = {}  # for a frame that takes our ACK along
        self._held: deque[StreamState] = deque()  # for the peer to acknowledge earlier ones
        self._small: deque[StreamState] = deque()  # for their turn to send
        self._turns: deque[StreamState] = deque()
        self._control: deque[bytes] = deque()
        self._goodbye: bytes | None = None

    @property
    def has_output(self) -> bool:
        """Whether `next_frames` would give anything."""
        if self._control or self._small or self._turns or self._goodbye_is_due:
            return True
        return bool(self._held) and not self._backlog_is_full

    @property
    def control_frames(self) -> int:
        """How many control frames wait to be sent."""
        return len(self._control)

    @property
    def is_taking_leave(self) -> bool:
        """Whether a go-away has been decided on, but not yet been given out."""
        return self._goodbye is not None

    # --- what is to be sent ---------------------------------------------------------------------

    def queue(self, stream: StreamState, data: memoryview) -> None:
        """Add `data`, which goes when the stream is scheduled, or greeted; unless it has failed."""
        if stream.failure is not None:
            return
        stream.queue(data)
        self.queued += len(data)

    def schedule(self, stream: StreamState) -> None:
        """Let a stream that can send wait for its turn."""
        if not stream.scheduled and stream.can_send:
            stream.scheduled = True
            is_small = stream.outgoing_bytes <= SMALL_BYTES
            (self._small if is_small else self._turns).append(stream)

    def greet(self, stream: StreamState) -> None:
        """Send the stream's SYN or ACK now, with all that is queued, or alone."""
        if (stream.greet or stream.outgoing) and stream.failure is None and not stream.scheduled:
            stream.scheduled = True
            self._small.append(stream)

    def greet_soon(self, stream: StreamState, now: float) -> None:
        """Send the stream's ACK with its first frame, or in a moment if there is none."""
        stream.due_at = now + ACK_DELAY
        self._unanswered[stream.stream_id] = stream

    def greeting(self, stream: StreamState) -> int:
        """Return the flag that the stream's first frame carries, once."""
        flag, stream.greet = stream.greet, Flag.NONE
        if flag == Flag.SYN:
            stream.awaits_ack = True
            self.unacknowledged += 1
        elif flag == Flag.ACK and not stream.outgoing:  # else what was queued early still waits
            self._unanswered.pop(stream.stream_id, None)
        return flag

    def note_ack(self, stream: StreamState) -> None:
        """Note that the peer has answered a stream of ours, or that none will come."""
        stream.awaits_ack = False
        self.unacknowledged -= 1

    def control(self, kind: FrameType, flags: int, stream_id: int, length: int) -> None:
        """Send a frame without data, before all others."""
        self._control.append(Header(kind, flags, stream_id, length).encode())

    def say_goodbye(self, code: int) -> None:
        """Send a go-away behind all that streams have queued."""
        self._goodbye = Header(FrameType.GO_AWAY, Flag.NONE, 0, code).encode()

    def drop_data(self, stream: StreamState) -> None:
        """Forget what a stream has queued."""
        self.queued -= stream.outgoing_bytes
        stream.outgoing.clear()
        stream.outgoing_bytes = 0

    def no_greeting(self, stream: StreamState) -> None:
        """Do not send the ACK that was due soon: the stream is over, or closes."""
        self._unanswered.pop(stream.stream_id, None)

    # --- time -----------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Send the acknowledgements that nothing took along in time."""
        while (stream := self._next_unanswered()) is not None and now >= stream.due_at:
            del self._unanswered[stream.stream_id]
            self.greet(stream)

    def next_deadline(self) -> float:
        """When `handle_timeout` is due."""
        stream = self._next_unanswered()
        return float("inf") if stream is None else stream.due_at

    def _next_unanswered(self) -> StreamState | None:
        return next(iter(self._unanswered.values()), None)

    # --- what goes next -------------------------------------------------------------------------

    def next_frames(self, budget: int) -> Output:
        """Give out up to about `budget` bytes of frames.

        Streams with little to send may use half of the budget before the others get their turn.
        """
        buffers: list[Buffer] = [b"".join(self._control)] if self._control else []
        self._control.clear()
        output = Output(buffers, [])
        if self._held and not self._backlog_is_full:
            self._small.extend(self._held)
            self._held.clear()
        left = budget
        while left > 0 and (self._small or self._turns):
            small_first = self._small and (left * 2 > budget or not self._turns)
            stream = (self._small if small_first else self._turns).popleft()
            if stream.greet == Flag.SYN and stream.failure is None and self._backlog_is_full:
                self._held.append(stream)
                continue
            stream.scheduled = False
            if stream.can_send or (stream.greet and stream.failure is None):
                left -= self._serve(stream, output)
        if self._goodbye is not None and self._goodbye_is_due:
            buffers.append(self._goodbye)
            self._goodbye = None
        return output

    @property
    def _goodbye_is_due(self) -> bool:
        return not (self._goodbye is None or self._small or self._turns or self.queued)

    @property
    def _backlog_is_full(self) -> bool:
        return self.unacknowledged >= self._accept_backlog

    def _serve(self, stream: StreamState, output: Output) -> int:
        """Give out a stream's next frames; returns their size."""
        buffers = output.buffers
        pieces = stream.dequeue(min(self._max_frame, stream.send_window))
        size = sum(map(len, pieces))
        length = HEADER_BYTES + size
        if pieces:
            flags = self.greeting(stream)
            buffers.append(Header(FrameType.DATA, flags, stream.stream_id, size).encode())
            buffers += pieces
            stream.send_window -= size
            self.queued -= size
            self.bytes_sent += size
        finishes = stream.finish_wanted and not stream.outgoing and not stream.finish_sent
        if finishes or stream.greet:
            flags = self.greeting(stream) | (Flag.FIN if finishes else Flag.NONE)
            buffers.append(Header(FrameType.WINDOW_UPDATE, flags, stream.stream_id, 0).encode())
            length += HEADER_BYTES
        if finishes:
            stream.finish_sent = True
        if pieces or finishes:
            output.served.append((stream, size))
        self.schedule(stream)
        return length
