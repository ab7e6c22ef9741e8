"""One side of a Yamux session, as a pure state machine.

Methods that begin with `receive_` or `handle_` are inputs and return events; plain verbs are
commands; `next_frames` and `next_deadline` are outputs. Rules:

- Each stream starts with a window of 256 KiB in each direction. Only data counts against it. A
  receiver grants more as its reader takes data; it doubles the window when that happens faster
  than four round trips, up to a limit for the stream and one for the session.
- Data is never copied on the way out: `next_frames` gives the caller's own buffers, interleaved
  with headers. Small frames go first, then streams take turns.
- Whatever a peer makes us keep or answer is bounded; breaking a rule is a `ProtocolError` and ends
  the session with a go-away frame.

Source: hashicorp/yamux, spec.md; libp2p/specs, yamux; go-yamux 4 for the window's growth.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.mux.yamux.frames import HEADER_BYTES, Flag, FrameType, GoAwayCode, Header

Buffer = bytes | bytearray | memoryview

MAX_WINDOW_TOTAL: Final = 2**32 - 1  # what a peer may grant: the field's own range
MAX_CONTROL_FRAMES: Final = 4096  # waiting to be sent; a peer that never reads costs 48 KiB
GATHERED_CHUNK: Final = 4096  # small received pieces are copied together up to this size
GROWTH_ROUND_TRIPS: Final = 4  # a window used up within so many is doubled, as in go-yamux
# Frames that cost the peer nothing and us a little: resets, pings, empty data. Honest peers send a
# few a second; a trainer that cancels a whole step of calls resets hundreds at once.
NUISANCE_BURST: Final = 2000.0
NUISANCE_RATE: Final = 200.0  # a second


class EventKind(Enum):
    """What happened to a stream."""

    OPENED = auto()  # by the peer
    READABLE = auto()  # data, the end of data, or a failure
    WRITABLE = auto()  # a failure, for one who waits to send
    FORGOTTEN = auto()  # nothing more will happen to it


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something happened to a stream."""

    kind: EventKind
    stream_id: int


@dataclass(slots=True)
class StreamState:
    """What the session knows of one stream."""

    stream_id: int
    inbound: bool
    send_window: int
    receive_window: int  # what the peer may still send
    receive_target: int  # what the window is brought back to
    window_grown_at: float
    greet: Flag  # SYN or ACK, for the next frame
    outgoing: deque[memoryview] = field(default_factory=deque)
    received: deque[Buffer] = field(default_factory=deque)
    received_bytes: int = 0
    taken: int = 0  # read since the last grant
    finish_wanted: bool = False
    finish_sent: bool = False
    remote_finished: bool = False
    discarding: bool = False  # our reader is gone
    accepted: bool = False
    scheduled: bool = False  # in the line of streams that can send
    flushed: bool = True  # all that was sent has been written
    abandon_at: float = float("inf")
    failure: P2PNodeError | None = None

    @property
    def can_send(self) -> bool:
        """Whether a frame could go out now."""
        if self.failure is not None:
            return False
        if self.outgoing:
            return self.send_window > 0
        return self.finish_wanted and not self.finish_sent


@dataclass(frozen=True, slots=True)
class Output:
    """What to write next."""

    buffers: list[Buffer]  # in wire order
    drained: list[StreamState]  # all they queued is among the buffers: once written, they may go on
    events: list[StreamEvent]


class YamuxCore:
    """A session; see the module."""

    def __init__(self, *, is_client: bool, settings: NetworkSettings, now: float) -> None:
        self._settings = settings
        self._next_id = 1 if is_client else 2
        self._remote_parity = 0 if is_client else 1
        self.streams: dict[int, StreamState] = {}
        self._discarding: dict[int, StreamState] = {}  # the first is due first
        self._backlog = 0  # inbound streams nobody has accepted
        self._control: deque[bytes] = deque()
        self._turns: deque[StreamState] = deque()
        self._header = bytearray()
        self._body_left = 0
        self._body_of: StreamState | None = None
        self._body_finishes = False  # a FIN takes effect behind the data it came with
        self._window_total = 0  # of grown windows
        self._nuisances = NUISANCE_BURST
        self._nuisances_at = now
        self._heard_at = now
        self._pings: dict[int, float] = {}
        self._next_ping = 0
        self._ping_wanted_at = now  # the first at once: the window's growth needs a round trip time
        self.round_trip: float | None = None
        self.remote_went_away: int | None = None
        self.went_away = False
        self.bytes_sent = 0  # of data
        self.bytes_received = 0
        self.failure: P2PNodeError | None = None

    # --- commands -------------------------------------------------------------------------------

    def open_stream(self, now: float) -> StreamState:
        """Open a stream; its SYN travels with the first frame.

        Raises:
            ConnectionClosedError: the session is ending.
            ResourceLimitError: too many streams are open, or the ids are used up.
        """
        self._check_open()
        if len(self.streams) >= self._settings.max_streams_per_connection:
            raise ResourceLimitError(f"{len(self.streams)} streams are open on the connection")
        if self._next_id > MAX_WINDOW_TOTAL:
            raise ResourceLimitError("the session's stream ids are used up; connect again")
        stream = self._add(self._next_id, inbound=False, greet=Flag.SYN, now=now)
        self._next_id += 2
        return stream

    def accept(self, stream: StreamState) -> None:
        """Take an inbound stream out of the backlog."""
        if not stream.accepted:
            stream.accepted = True
            self._backlog -= 1

    def greet(self, stream: StreamState) -> None:
        """Send the stream's SYN now, for one who waits for data before it sends any."""
        if stream.greet and not stream.outgoing and stream.failure is None:
            self._send_control(FrameType.WINDOW_UPDATE, self._greeting(stream), stream.stream_id, 0)

    def send(self, stream: StreamState, data: Buffer) -> None:
        """Queue `data`, which must not change until it has been given out by `next_frames`."""
        stream.outgoing.append(memoryview(data).cast("B"))
        stream.flushed = False
        self._schedule(stream)

    def finish(self, stream: StreamState) -> None:
        """Close our direction, behind what is queued."""
        if not stream.finish_wanted:
            stream.finish_wanted = True
            self._schedule(stream)

    def discard(self, stream: StreamState, now: float) -> None:
        """Drop what has come and will come; the stream is reset if the peer goes on for long."""
        stream.discarding = True
        stream.received.clear()
        stream.received_bytes = 0
        stream.abandon_at = now + self._settings.stream_close_timeout
        self._discarding[stream.stream_id] = stream

    def take(self, stream: StreamState, max_bytes: int | None, now: float) -> Buffer:
        """Return received bytes, of one piece, and grant the peer as much again.

        Returns:
            An empty buffer when nothing is there.
        """
        if not stream.received:
            return b""
        piece = stream.received[0]
        if max_bytes is not None and len(piece) > max_bytes:
            view = memoryview(piece)
            piece, stream.received[0] = view[:max_bytes], view[max_bytes:]
        else:
            stream.received.popleft()
        stream.received_bytes -= len(piece)
        stream.taken += len(piece)
        if stream.taken * 2 >= stream.receive_target and not stream.remote_finished:
            self._grant(stream, now)
        return piece

    def reset(self, stream: StreamState, error: P2PNodeError) -> list[StreamEvent]:
        """Abort a stream in both directions."""
        if stream.failure is not None or stream.stream_id not in self.streams:
            return []
        if stream.greet != Flag.SYN:  # otherwise the peer has never heard of it
            self._send_control(FrameType.WINDOW_UPDATE, Flag.RST, stream.stream_id, 0)
        return self._fail(stream, error)

    def ping(self, now: float) -> int:
        """Ask for a sign of life; returns the ping's number."""
        number = self._next_ping
        self._next_ping = (number + 1) & 0xFFFFFFFF
        self._pings[number] = now
        self._send_control(FrameType.PING, Flag.SYN, 0, number)
        return number

    def is_waiting_for(self, ping: int) -> bool:
        """Whether a ping has not been answered yet."""
        return ping in self._pings

    def go_away(self, code: GoAwayCode) -> None:
        """Tell the peer that the session ends; no stream can be opened any more."""
        if not self.went_away:
            self.went_away = True
            self._control.append(Header(FrameType.GO_AWAY, Flag.NONE, 0, code).encode())

    def close(self, error: P2PNodeError) -> list[StreamEvent]:
        """End the session: every stream fails with `error`."""
        self.failure = self.failure or error
        events = []
        for stream in list(self.streams.values()):
            events += self._fail(stream, self.failure)
        return events

    # --- inputs ---------------------------------------------------------------------------------

    def receive_data(self, data: Buffer, now: float) -> list[StreamEvent]:
        """Take bytes from the channel.

        Raises:
            ProtocolError: the peer broke a rule; end the session with a go-away.
        """
        self._heard_at = now
        events: list[StreamEvent] = []
        view = memoryview(data)
        while view:
            if self._body_left:
                piece = view[: self._body_left]
                view = view[len(piece) :]
                self._body_left -= len(piece)
                self._receive_body(piece, events)
                continue
            missing = HEADER_BYTES - len(self._header)
            if missing == HEADER_BYTES <= len(view):
                header = Header.decode(view[:HEADER_BYTES])
                view = view[HEADER_BYTES:]
            else:
                self._header += view[:missing]
                view = view[missing:]
                if len(self._header) < HEADER_BYTES:
                    break
                header = Header.decode(self._header)
                self._header.clear()
            self._receive_header(header, now, events)
        return events

    def handle_timeout(self, now: float) -> list[StreamEvent]:
        """Do what is due at `now`.

        Raises:
            ConnectionClosedError: the peer has given no sign of life for too long.
        """
        if now >= self._ping_wanted_at:
            self._ping_wanted_at = now + self._settings.keepalive_interval
            self.ping(now)
        if self._pings:
            oldest = next(iter(self._pings.values()))
            if now >= max(oldest, self._heard_at) + self._settings.keepalive_timeout:
                raise ConnectionClosedError("the peer stopped answering")
        events: list[StreamEvent] = []
        while (stream := self._next_abandoned()) and now >= stream.abandon_at:
            events += self.reset(stream, StreamResetError("the peer did not end the stream"))
        return events

    # --- outputs --------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether `next_frames` would give anything."""
        return bool(self._control or self._turns)

    def next_deadline(self) -> float:
        """When `handle_timeout` is due."""
        deadline = self._ping_wanted_at
        if self._pings:
            oldest = next(iter(self._pings.values()))
            deadline = min(deadline, max(oldest, self._heard_at) + self._settings.keepalive_timeout)
        abandoned = self._next_abandoned()
        return min(deadline, abandoned.abandon_at) if abandoned else deadline

    def next_frames(self, budget: int) -> Output:
        """Give out up to about `budget` bytes of frames."""
        buffers: list[Buffer] = [b"".join(self._control)] if self._control else []
        self._control.clear()
        drained: list[StreamState] = []
        events: list[StreamEvent] = []
        while self._turns and budget > 0:
            stream = self._turns.popleft()
            stream.scheduled = False
            if not stream.can_send:
                continue
            budget -= self._data_frame(stream, buffers)
            if not stream.outgoing:
                drained.append(stream)
            events += self._forget_if_done(stream)
            self._schedule(stream)
        return Output(buffers, drained, events)

    # --- inside ---------------------------------------------------------------------------------

    def _next_abandoned(self) -> StreamState | None:
        return next(iter(self._discarding.values()), None)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.went_away or self.remote_went_away is not None:
            raise ConnectionClosedError("the connection is closing")

    def _add(self, stream_id: int, *, inbound: bool, greet: Flag, now: float) -> StreamState:
        window = self._settings.yamux_initial_window
        stream = StreamState(
            stream_id=stream_id,
            inbound=inbound,
            send_window=window,
            receive_window=window,
            receive_target=window,
            window_grown_at=now,
            greet=greet,
        )
        self.streams[stream_id] = stream
        return stream

    def _schedule(self, stream: StreamState) -> None:
        if not stream.scheduled and stream.can_send:
            stream.scheduled = True
            self._turns.append(stream)

    def _greeting(self, stream: StreamState) -> Flag:
        flag, stream.greet = stream.greet, Flag.NONE
        return flag

    def _send_control(self, kind: FrameType, flags: Flag, stream_id: int, length: int) -> None:
        if len(self._control) >= MAX_CONTROL_FRAMES:
            raise ProtocolError("the peer makes us answer faster than it reads")
        self._control.append(Header(kind, flags, stream_id, length).encode())

    def _data_frame(self, stream: StreamState, buffers: list[Buffer]) -> int:
        room = min(self._settings.yamux_max_frame, stream.send_window)
        pieces: list[Buffer] = []
        size = 0
        while stream.outgoing and size < room:
            piece = stream.outgoing.popleft()
            if len(piece) > room - size:
                stream.outgoing.appendleft(piece[room - size :])
                piece = piece[: room - size]
            pieces.append(piece)
            size += len(piece)
        flags = self._greeting(stream)
        if stream.finish_wanted and not stream.outgoing:
            flags |= Flag.FIN
            stream.finish_sent = True
        # An end without data is an empty window update, as js-libp2p and go-libp2p send it.
        kind = FrameType.DATA if size else FrameType.WINDOW_UPDATE
        buffers.append(Header(kind, flags, stream.stream_id, size).encode())
        buffers += pieces
        stream.send_window -= size
        self.bytes_sent += size
        return HEADER_BYTES + size

    def _grant(self, stream: StreamState, now: float) -> None:
        limit = self._settings.yamux_max_window
        grown = min(stream.receive_target * 2, limit)
        growth = grown - stream.receive_target
        quick = self.round_trip is not None and (
            now - stream.window_grown_at < GROWTH_ROUND_TRIPS * self.round_trip
        )
        if quick and self._window_total + growth <= self._settings.yamux_session_window:
            self._window_total += growth
            stream.receive_target = grown
        stream.window_grown_at = now
        delta = stream.receive_target - stream.receive_window - stream.received_bytes
        stream.taken = 0
        stream.receive_window += delta
        self._send_control(FrameType.WINDOW_UPDATE, self._greeting(stream), stream.stream_id, delta)

    def _receive_header(self, header: Header, now: float, events: list[StreamEvent]) -> None:
        if header.kind is FrameType.PING:
            self._receive_ping(header, now)
        elif header.kind is FrameType.GO_AWAY:
            self.remote_went_away = header.length
        else:
            self._receive_stream_frame(header, now, events)

    def _receive_ping(self, header: Header, now: float) -> None:
        if header.flags & Flag.ACK:
            sent_at = self._pings.pop(header.length, None)
            if sent_at is not None:
                sample = now - sent_at
                smallest = sample if self.round_trip is None else self.round_trip
                self.round_trip = min(sample, smallest * 1.25)  # follows slow changes upward too
            return
        self._note_nuisance(now)
        self._send_control(FrameType.PING, Flag.ACK, 0, header.length)

    def _receive_stream_frame(self, header: Header, now: float, events: list[StreamEvent]) -> None:
        if header.stream_id == 0:
            raise ProtocolError("a stream frame for the session itself")
        if header.flags & Flag.SYN:
            self._receive_syn(header.stream_id, now, events)
        stream = self.streams.get(header.stream_id)
        if header.kind is FrameType.DATA:
            self._receive_data_header(header, stream, now)
        elif stream is not None and header.length:
            stream.send_window += header.length
            if stream.send_window > MAX_WINDOW_TOTAL:
                raise ProtocolError("a stream's window exceeds 32 bits")
            self._schedule(stream)
        if stream is None:
            return
        if header.flags & Flag.RST:
            self._note_nuisance(now)
            events += self._fail(stream, StreamResetError("the peer reset the stream"))
        elif header.flags & Flag.FIN and self._body_left:
            self._body_finishes = True
        elif header.flags & Flag.FIN and not stream.remote_finished:
            self._receive_finish(stream, events)

    def _receive_data_header(self, header: Header, stream: StreamState | None, now: float) -> None:
        self._body_left, self._body_of, self._body_finishes = header.length, stream, False
        if not header.length and not header.flags:
            self._note_nuisance(now)
        if stream is None:  # of a stream that is over: its data is read past
            return
        if header.length > stream.receive_window:
            raise ProtocolError(
                f"{header.length} bytes on a stream with a window of {stream.receive_window}"
            )
        if stream.remote_finished and header.length:
            raise ProtocolError("data behind the end of a stream")
        stream.receive_window -= header.length

    def _receive_finish(self, stream: StreamState, events: list[StreamEvent]) -> None:
        stream.remote_finished = True
        events.append(StreamEvent(EventKind.READABLE, stream.stream_id))
        events += self._forget_if_done(stream)

    def _receive_syn(self, stream_id: int, now: float, events: list[StreamEvent]) -> None:
        if stream_id % 2 != self._remote_parity:
            raise ProtocolError(f"the peer opened stream {stream_id}, an id of ours")
        if stream_id in self.streams:
            raise ProtocolError(f"the peer opened stream {stream_id} twice")
        full = len(self.streams) >= self._settings.max_streams_per_connection
        if full or self.went_away or self._backlog >= self._settings.yamux_accept_backlog:
            self._note_nuisance(now)
            self._send_control(FrameType.WINDOW_UPDATE, Flag.RST, stream_id, 0)
            return
        stream = self._add(stream_id, inbound=True, greet=Flag.ACK, now=now)
        self._backlog += 1
        # Acknowledged at once: go-libp2p stops opening streams at 256 without an answer.
        self.greet(stream)
        events.append(StreamEvent(EventKind.OPENED, stream_id))

    def _receive_body(self, piece: memoryview, events: list[StreamEvent]) -> None:
        stream = self._body_of
        if stream is None or stream.failure is not None:
            return
        self.bytes_received += len(piece)
        if not stream.discarding:
            self._store(stream, piece)
            events.append(StreamEvent(EventKind.READABLE, stream.stream_id))
        if not self._body_left and self._body_finishes:
            self._receive_finish(stream, events)

    @staticmethod
    def _store(stream: StreamState, piece: memoryview) -> None:
        stream.received_bytes += len(piece)
        if len(piece) * 2 >= len(
            memoryview(piece.obj)
        ):  # a view keeps the whole of what it looks at alive
            stream.received.append(piece)
            return
        last = stream.received[-1] if stream.received else None
        if isinstance(last, bytearray) and len(last) < GATHERED_CHUNK:
            last += piece
        else:
            stream.received.append(bytearray(piece))

    def _note_nuisance(self, now: float) -> None:
        earned = (now - self._nuisances_at) * NUISANCE_RATE
        self._nuisances = min(self._nuisances + earned, NUISANCE_BURST) - 1
        self._nuisances_at = now
        if self._nuisances < 0:
            raise ProtocolError("the peer floods us with resets, pings or empty frames")

    def _fail(self, stream: StreamState, error: P2PNodeError) -> list[StreamEvent]:
        stream.failure = stream.failure or error
        stream.outgoing.clear()
        stream.received.clear()
        stream.received_bytes = 0
        self._drop(stream)
        return [
            StreamEvent(EventKind.READABLE, stream.stream_id),
            StreamEvent(EventKind.WRITABLE, stream.stream_id),
            StreamEvent(EventKind.FORGOTTEN, stream.stream_id),
        ]

    def _forget_if_done(self, stream: StreamState) -> list[StreamEvent]:
        if not (stream.finish_sent and stream.remote_finished):
            return []
        if stream.stream_id not in self.streams:
            return []
        self._drop(stream)
        return [StreamEvent(EventKind.FORGOTTEN, stream.stream_id)]

    def _drop(self, stream: StreamState) -> None:
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self._discarding.pop(stream.stream_id, None)
        self._window_total -= stream.receive_target - self._settings.yamux_initial_window
        if stream.inbound and not stream.accepted:
            self._backlog -= 1
            stream.accepted = True
