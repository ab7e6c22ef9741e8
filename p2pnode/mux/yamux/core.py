"""One side of a Yamux session, as a pure state machine.

Methods that begin with `receive_` or `handle_` are inputs and return events; plain verbs are
commands; `outbox.next_frames` and `next_deadline` are outputs. Rules:

- Each stream starts with a window of 256 KiB in each direction. Only data counts against it. A
  receiver grants more as its reader takes data, and lets the window grow (`transport.windows`).
- What goes out, and in which order, is the `outbox`'s affair; whether the peer still answers is
  that of `liveness`, and how much it may pester us, that of `nuisances`.
- A go-away frame, of either side, ends the session: go-yamux and js-libp2p drop every stream too.
- A stream's window is charged to the session's account, which says how much there may be of it.
- Whatever a peer makes us keep or answer is bounded; breaking a rule is a `ProtocolError` and ends
  the session with a go-away frame.

The file is long because it is one machine: every rule above reads and changes the same few counts.

Source: hashicorp/yamux, spec.md; libp2p/specs, yamux.
"""

import math
from typing import Final

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.mux.yamux.frames import (
    HEADER_BYTES,
    INITIAL_WINDOW,
    MAX_U32,
    Flag,
    FrameType,
    GoAwayCode,
    Header,
)
from p2pnode.mux.yamux.liveness import Liveness
from p2pnode.mux.yamux.nuisances import Nuisances
from p2pnode.mux.yamux.outbox import Outbox, Output
from p2pnode.mux.yamux.state import Buffer, EventKind, StreamEvent, StreamState
from p2pnode.transport.session import Account, Unmetered
from p2pnode.transport.windows import WindowGrowth
from p2pnode.wire.error_codes import StreamCode, connection_reason, stream_code, stream_reason

MAX_CONTROL_FRAMES: Final = 4096  # waiting to be sent; a peer that never reads costs 48 KiB
SYN_WORK: Final = 64  # a stream's negotiation and handler cost as much as so many frames
DEAD_PIECE: Final = 256  # bytes: smaller frames for streams that are over are a nuisance
_GO_AWAY_REASONS: Final[dict[int, str]] = {
    GoAwayCode.PROTOCOL_ERROR: "because, it says, this side broke the rules of Yamux",
    GoAwayCode.INTERNAL_ERROR: "because, it says, it failed itself",
}


class YamuxCore:
    """A session; see the module."""

    def __init__(self, *, is_client: bool, settings: NetworkSettings, now: float) -> None:
        self._settings = settings
        self._next_id = 1 if is_client else 2
        self._remote_parity = 0 if is_client else 1
        self.account: Account = Unmetered()
        self.streams: dict[int, StreamState] = {}
        self.failure: P2PNodeError | None = None
        self.remote_closed = False  # by a normal go-away: nothing more will come
        self.liveness = Liveness(settings, now)
        self.left_over = memoryview(b"")  # given to `receive_data`, but too much work for one turn
        self.work = 0  # of the last turn
        self.bytes_received = 0  # of data
        self.outbox = Outbox(settings)
        self._discarding: dict[int, StreamState] = {}  # wait for the peer's end, oldest first
        self._went_away = False
        self._events: list[StreamEvent] = []
        self._header = bytearray()
        self._body_left = 0
        self._body_of: StreamState | None = None
        self._body_finishes = False  # a FIN takes effect behind the data it came with
        self._backlog = 0  # inbound streams nobody has accepted
        self._windows = WindowGrowth(
            initial=INITIAL_WINDOW,
            most=settings.yamux_max_window,
            most_growth=settings.yamux_session_window,
        )
        self._nuisances = Nuisances(now)

    @property
    def holdings(self) -> dict[str, int]:
        """What the session holds, by what it is."""
        states = self.streams.values()
        return {
            "streams": len(states),
            "unread bytes": sum(each.received_bytes for each in states),
            "unwritten bytes": sum(each.unwritten for each in states),
            "unaccepted streams": self._backlog,
            "grown window": self._windows.grown,
        }

    # --- commands -------------------------------------------------------------------------------

    def open_stream(self, now: float) -> StreamState:
        """Open a stream; its SYN travels with the first frame.

        Raises:
            ConnectionClosedError: the session has ended or is ending.
            ResourceLimitError: the account has no room for it, or the ids are used up.
        """
        if self.failure is not None:
            raise ConnectionClosedError(str(self.failure))
        if self._went_away:
            raise ConnectionClosedError("this side is closing the connection")
        if self._next_id > MAX_U32:
            raise ResourceLimitError("the session's stream ids are used up; connect again")
        stream = self._add(self._next_id, inbound=False, greet=Flag.SYN, now=now)
        self._next_id += 2
        return stream

    def accept(self, stream: StreamState, now: float) -> None:
        """Take an inbound stream out of the backlog, and acknowledge it soon."""
        if stream.accepted or not self._is_live(stream):
            return
        stream.accepted = True
        self._backlog -= 1
        self.outbox.greet_soon(stream, now)

    def greet(self, stream: StreamState) -> None:
        """Send the stream's SYN or ACK now, rather than with its first frame.

        What `send_later` left goes with it.
        """
        self.outbox.greet(stream)

    def send(self, stream: StreamState, data: memoryview) -> None:
        """Queue `data`, which must not change until it has been written."""
        self.outbox.queue(stream, data)
        self.outbox.schedule(stream)

    def send_later(self, stream: StreamState, data: memoryview) -> None:
        """Queue `data` to go with what is sent next on `stream`, or with its acknowledgement."""
        self.outbox.queue(stream, data)

    def wrote(self, output: Output) -> list[StreamEvent]:
        """Note that the buffers of `output`, from the outbox, have been taken and may change."""
        for stream, size in output.served:
            stream.unwritten -= size
            # Half of it, so that a sender that is woken adds several pieces before it waits again.
            if stream.unwritten * 2 <= self._settings.yamux_send_buffer:
                self._events.append(StreamEvent(EventKind.WRITABLE, stream))
            self._forget_if_done(stream)
        return self._take_events()

    def finish(self, stream: StreamState) -> None:
        """Close our direction, behind what is queued."""
        if not stream.finish_wanted:
            stream.finish_wanted = True
            self.outbox.schedule(stream)

    def discard(self, stream: StreamState, now: float) -> list[StreamEvent]:
        """Finish our direction and drop all that has come and will come.

        The peer may go on sending for a while, so that it gets to read what we sent last; then the
        stream is reset.
        """
        stream.drop_received()
        if not self._is_live(stream):
            stream.account.end(0)
            return []
        if stream.greet == Flag.SYN and not stream.outgoing and not stream.finish_wanted:
            self._fail(stream, StreamResetError("the stream was closed unused"))
            return self._take_events()
        self.finish(stream)
        stream.discarding = True
        stream.due_at = now + self._settings.stream_close_timeout
        self.outbox.no_greeting(stream)
        self._discarding[stream.stream_id] = stream
        if stream.taken * 2 >= stream.receive_target:  # the peer may be waiting for it
            self._grant(stream, now)
        return []

    def expect(self, stream: StreamState, buffer: memoryview) -> None:
        """Put what comes next on `stream` into `buffer`, until it is full; nothing waits there.

        The stream becomes readable when that is done, or when nothing more will come.
        """
        assert not stream.received
        stream.destination = buffer

    def stop_expecting(self, stream: StreamState) -> int:
        """Take back the buffer; returns how many of its bytes have not been filled."""
        destination, stream.destination = stream.destination, None
        return 0 if destination is None else len(destination)

    def take(self, stream: StreamState, max_bytes: int | None, now: float) -> Buffer:
        """Return received bytes, of one piece, and grant the peer as much again.

        There must be some.
        """
        piece = stream.unstore(max_bytes)
        if not stream.received and not self._is_live(stream):
            stream.account.end(0)
        if stream.taken * 2 >= stream.receive_target:
            self._grant(stream, now)
        return piece

    def unread(self, stream: StreamState, data: bytes) -> None:
        """Take back what was taken last, or its end."""
        if not data:
            return
        stream.received.appendleft(data)
        stream.received_bytes += len(data)
        stream.taken -= len(data)

    def reset(self, stream: StreamState, error: P2PNodeError, code: int = 0) -> list[StreamEvent]:
        """Abort a stream in both directions; `code` tells the peer why."""
        if self._is_live(stream) and stream.greet != Flag.SYN:  # the peer knows of it
            self.outbox.control(FrameType.WINDOW_UPDATE, Flag.RST, stream.stream_id, code)
        self._fail(stream, error)
        return self._take_events()

    def ping(self, now: float) -> int:
        """Ask for a sign of life; returns the ping's number, by which `liveness` knows it."""
        number = self.liveness.note_ping(now)
        self._send_ping(number)
        return number

    def _send_ping(self, number: int) -> None:
        self.outbox.control(FrameType.PING, Flag.SYN, 0, number)

    def go_away(self, code: int) -> None:
        """Tell the peer, behind all that streams have queued, that the session ends."""
        self._went_away = True
        self.outbox.say_goodbye(code)

    def close(self, error: P2PNodeError) -> list[StreamEvent]:
        """End the session: nothing can be sent any more; what has come can still be read."""
        if self.failure is None:
            self.failure = error
            for stream in list(self.streams.values()):
                stream.failure = error
                if not stream.remote_finished:
                    stream.receive_failure = error
                self.outbox.drop_data(stream)
                self._drop(stream)
        return self._take_events()

    # --- inputs ---------------------------------------------------------------------------------

    def destination(self, size: int) -> memoryview | None:
        """Return where the next `size` bytes from the channel may be put, sparing a copy.

        They must all be data of one stream, and wanted by its waiting reader; otherwise it is
        None, and they are for `receive_data`. When they are there, tell `receive_placed`.
        """
        stream = self._body_of
        if stream is None or not 0 < size <= self._body_left:
            return None
        wanted = stream.destination
        if wanted is None or len(wanted) < size or stream.discarding or stream.failure is not None:
            return None
        return wanted[:size]

    def receive_placed(self, size: int, now: float) -> list[StreamEvent]:
        """Note that `size` bytes from the channel lie where `destination` said."""
        stream = self._body_of
        assert stream is not None
        self.liveness.heard_at = now
        self._body_left -= size
        self.bytes_received += size
        stream.note_filled(size)
        self._note_body(stream, now)
        return self._take_events()

    def receive_data(
        self, data: Buffer, now: float, most_work: float = math.inf
    ) -> list[StreamEvent]:
        """Take bytes from the channel; those that are too much work are `left_over`.

        Args:
            data: goes on where the bytes taken before have ended.
            now: the time.
            most_work: how much may be done at once, where a frame counts as 1.

        Raises:
            ProtocolError: the peer broke a rule; end the session with a go-away.
            ConnectionClosedError: the peer ended the session because of an error.
        """
        self.liveness.heard_at = now
        view = memoryview(data)
        if not view:
            self._nuisances.note(now)
        self.work = 0
        while view and not self.remote_closed and self.work < most_work:
            if self._body_left:
                piece = view[: self._body_left]
                view = view[len(piece) :]
                self._body_left -= len(piece)
                self._receive_body(piece, now)
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
            opens = header.flags & Flag.SYN and header.kind <= FrameType.WINDOW_UPDATE
            self.work += SYN_WORK if opens else 1
            self._receive_header(header, now)
        self.left_over = view
        return self._take_events()

    def handle_timeout(self, now: float) -> list[StreamEvent]:
        """Do what is due at `now`.

        Raises:
            ConnectionClosedError: the peer has given no sign of life for too long.
        """
        if (ping := self.liveness.take_due_ping(now)) is not None:
            self._send_ping(ping)
        if now >= self.liveness.silence_ends_at():
            raise ConnectionClosedError("the peer stopped answering")
        self.outbox.handle_timeout(now)
        events = self._take_events()
        while (stream := self._next_discarded()) is not None and now >= stream.due_at:
            events += self.reset(stream, StreamResetError("the peer did not end the stream"))
        return events

    # --- outputs --------------------------------------------------------------------------------

    @property
    def is_pestered(self) -> bool:
        """Whether the peer sends more nuisances than honest ones do, if not yet too many."""
        return self._nuisances.is_pestered

    def next_deadline(self) -> float:
        """When `handle_timeout` is due."""
        stream = self._next_discarded()
        return min(
            self.liveness.next_deadline(),
            self.outbox.next_deadline(),
            float("inf") if stream is None else stream.due_at,
        )

    # --- inside: sending ------------------------------------------------------------------------

    def _grant(self, stream: StreamState, now: float) -> None:
        """Give the peer back the window that the reader has taken, and more if it was quick."""
        delta, stream.taken = stream.taken, 0
        if stream.remote_finished or not self._is_live(stream):
            return
        if not stream.discarding:
            took = now - stream.granted_at
            growth = self._windows.grow(
                stream.receive_target, stream.account, took, self.liveness.round_trip
            )
            stream.receive_target += growth
            delta += growth
        stream.granted_at = now
        stream.receive_window += delta
        flags = self.outbox.greeting(stream)
        self.outbox.control(FrameType.WINDOW_UPDATE, flags, stream.stream_id, delta)

    # --- inside: receiving ----------------------------------------------------------------------

    def _receive_header(self, header: Header, now: float) -> None:
        if self.outbox.control_frames > MAX_CONTROL_FRAMES:
            raise ProtocolError("the peer makes us answer faster than it reads")
        if header.kind == FrameType.PING:
            self._receive_ping(header, now)
        elif header.kind == FrameType.GO_AWAY:
            self._receive_go_away(header.length)
        elif header.stream_id == 0:
            raise ProtocolError("a stream's frame bears the session's own id")
        else:
            self._receive_stream_frame(header, now)

    def _receive_ping(self, header: Header, now: float) -> None:
        if header.flags & Flag.ACK:
            if not self.liveness.receive_answer(header.length, now):
                self._nuisances.note(now)
            return
        self._nuisances.note(now)
        self.outbox.control(FrameType.PING, Flag.ACK, 0, header.length)

    def _receive_go_away(self, code: int) -> None:
        if code == GoAwayCode.NORMAL:
            self.remote_closed = True
            return
        reason = _GO_AWAY_REASONS.get(code, f"with {connection_reason(code)}")
        raise ConnectionClosedError(f"the peer ended the connection {reason}")

    def _receive_stream_frame(self, header: Header, now: float) -> None:
        kind, flags, stream_id, length = header
        if flags & Flag.SYN:
            self._receive_syn(stream_id, now)
        stream = self._known_stream(stream_id)
        if (not length and not flags) or (stream is None and flags & Flag.RST):
            self._nuisances.note(now)
        if kind == FrameType.DATA:
            self._receive_data_header(length, stream, now)
        elif stream is not None and length and not flags & Flag.RST:
            stream.send_window += length
            if stream.send_window > MAX_U32:
                raise ProtocolError("a stream's window exceeds 32 bits")
            self.outbox.schedule(stream)
        if stream is not None and flags & (Flag.RST | Flag.FIN):
            self._receive_end(header, stream, now)

    def _known_stream(self, stream_id: int) -> StreamState | None:
        """Find the stream of a received frame, which acknowledges it."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.greet == Flag.SYN:  # one the peer cannot know of yet
            return None
        if stream.awaits_ack:
            self.outbox.note_ack(stream)
        return stream

    def _receive_syn(self, stream_id: int, now: float) -> None:
        if stream_id % 2 != self._remote_parity:
            raise ProtocolError(f"the peer opened stream {stream_id}, an id of ours")
        if stream_id in self.streams:
            raise ProtocolError(f"the peer opened stream {stream_id} twice")
        if self._went_away or self._backlog >= self._settings.yamux_accept_backlog:
            self._refuse(stream_id, StreamCode.RESOURCE_LIMIT_EXCEEDED, now)
            return
        try:
            stream = self._add(stream_id, inbound=True, greet=Flag.ACK, now=now)
        except ResourceLimitError as error:
            self._refuse(stream_id, stream_code(error), now)
            return
        self._backlog += 1
        self._events.append(StreamEvent(EventKind.OPENED, stream))

    def _refuse(self, stream_id: int, code: StreamCode, now: float) -> None:
        self._nuisances.note(now)
        self.outbox.control(FrameType.WINDOW_UPDATE, Flag.RST, stream_id, code)

    def _receive_data_header(self, length: int, stream: StreamState | None, now: float) -> None:
        self._body_left, self._body_of, self._body_finishes = length, stream, False
        if stream is None:  # of a stream that is over: its data is read past
            if 0 < length < DEAD_PIECE:
                self._nuisances.note(now)
            return
        if length > stream.receive_window:
            raise ProtocolError(
                f"{length} bytes on a stream with a window of {stream.receive_window}"
            )
        if length and stream.remote_finished:
            raise ProtocolError("data behind the end of a stream")
        stream.receive_window -= length

    def _receive_end(self, header: Header, stream: StreamState, now: float) -> None:
        if header.flags & Flag.RST:
            self._nuisances.note(now)
            code = header.length if header.kind == FrameType.WINDOW_UPDATE else 0
            self._fail(
                stream, StreamResetError(f"the peer reset the stream ({stream_reason(code)})")
            )
        elif self._body_left:
            self._body_finishes = True
        else:
            self._receive_finish(stream)

    def _receive_body(self, piece: memoryview, now: float) -> None:
        stream = self._body_of
        if stream is None or stream.failure is not None:
            return
        self.bytes_received += len(piece)
        if stream.discarding:
            stream.taken += len(piece)
        else:
            rest = piece if stream.destination is None else stream.fill(piece)
            if rest:
                stream.store(rest)
        self._note_body(stream, now)

    def _note_body(self, stream: StreamState, now: float) -> None:
        """Act on data that has come, wherever it went."""
        if stream.taken * 2 >= stream.receive_target:
            self._grant(stream, now)
        if not stream.destination and not stream.discarding:
            self._events.append(StreamEvent(EventKind.READABLE, stream))
        if not self._body_left and self._body_finishes:
            self._receive_finish(stream)

    def _receive_finish(self, stream: StreamState) -> None:
        stream.remote_finished = True
        self._events.append(StreamEvent(EventKind.READABLE, stream))
        self._forget_if_done(stream)

    # --- inside: the streams' lives -------------------------------------------------------------

    def _add(self, stream_id: int, *, inbound: bool, greet: int, now: float) -> StreamState:
        window = INITIAL_WINDOW
        account = self.account.open_stream(inbound=inbound, window=window, now=now)
        stream = StreamState(
            stream_id=stream_id,
            inbound=inbound,
            greet=greet,
            account=account,
            send_window=window,
            receive_window=window,
            receive_target=window,
            granted_at=now,
        )
        self.streams[stream_id] = stream
        return stream

    def _fail(self, stream: StreamState, error: P2PNodeError) -> None:
        """End a stream that was reset: both directions are lost, and what nobody has read."""
        stream.failure = stream.failure or error
        stream.receive_failure = stream.receive_failure or error
        self.outbox.drop_data(stream)
        stream.drop_received()
        self._drop(stream)

    def _forget_if_done(self, stream: StreamState) -> None:
        if stream.finish_sent and stream.remote_finished and not stream.unwritten:
            self._drop(stream)

    def _drop(self, stream: StreamState) -> None:
        if not self._is_live(stream):
            return
        del self.streams[stream.stream_id]
        self._discarding.pop(stream.stream_id, None)
        self.outbox.no_greeting(stream)
        self._windows.give_back(stream.receive_target)
        stream.account.end(stream.received_bytes)
        if stream.inbound and not stream.accepted:
            self._backlog -= 1
        if stream.awaits_ack:
            self.outbox.note_ack(stream)
        for kind in (EventKind.READABLE, EventKind.WRITABLE, EventKind.FORGOTTEN):
            self._events.append(StreamEvent(kind, stream))

    def _next_discarded(self) -> StreamState | None:
        return next(iter(self._discarding.values()), None)

    def _is_live(self, stream: StreamState) -> bool:
        """Whether the session still has the stream; a peer may use an id again after its end."""
        return self.streams.get(stream.stream_id) is stream

    def _take_events(self) -> list[StreamEvent]:
        events, self._events = self._events, []
        return events
