"""A QUIC session as a state machine: one connection's streams, windows, identity and end. Pure.

Inputs are datagrams, the time and what this side wants; outputs are datagrams, the next deadline,
and events. What QUIC itself asks is `p2pnode.transport.quic.engine`'s.

*Identity.* Both sides must show a certificate; nothing of a peer is believed, and no stream of it
seen, before that has been checked.

*Windows.* A stream's window is charged to an account when the stream begins. It follows the reader:
when half of it has been taken, it is topped up, and may grow (`transport.windows`). The
connection's window is the sum of its streams' and a base that lets new streams begin, so that
streams nobody reads never hold up others.

*Ends.* A stream is forgotten when both directions are over. One that we have closed is discarded
as it comes until the peer finishes, for a while. A reset ends both directions, as it does in
Yamux; a peer that only stops reading (STOP_SENDING) may still be read.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from cryptography import x509

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    HandshakeError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.transport.quic.endings import OTHER_PROTOCOL, why_ended
from p2pnode.transport.quic.engine import Engine
from p2pnode.transport.quic.state import EventKind, StreamEvent, StreamState
from p2pnode.transport.session import Account, Buffer, Unmetered
from p2pnode.transport.windows import WindowGrowth
from p2pnode.wire.error_codes import StreamCode, stream_code, stream_reason
from p2pnode.wire.keys import PublicKey

INITIAL_WINDOW: Final = 256 * 1024  # of a stream, as in Yamux; what budgets count with
_BAD_CERTIFICATE: Final = QuicErrorCode.CRYPTO_ERROR + 42  # RFC 8446, section 6
COMPANY_WAIT: Final = 0.001  # seconds; as long as an acknowledgement waits
ALPN: Final = "libp2p"
_PING: Final = 0  # its number; only one is ever under way

Verify = Callable[[Sequence[x509.Certificate]], PublicKey]
Address = tuple[str, int] | tuple[str, int, int, int]  # of a socket, IPv4 and IPv6


class QuicCore:
    """A session; see the module.

    Args:
        engine: the connection.
        verify: tells whose certificates these are, or raises `HandshakeError`.
        settings: windows and times.
        now: the time.

    Attributes:
        identity: the peer's, once it has proven it.
        failure: why the session has ended, once it has.
        streams: that are open, by number.
        account: what streams are charged to.
        bytes_sent: of stream data.
        bytes_received: of stream data.
    """

    def __init__(
        self, engine: Engine, *, verify: Verify, settings: NetworkSettings, now: float
    ) -> None:
        self.engine = engine
        self.identity: PublicKey | None = None
        self.failure: P2PNodeError | None = None
        self.streams: dict[int, StreamState] = {}
        self.account: Account = Unmetered()
        self.bytes_sent = 0
        self.bytes_received = 0
        self._verify = verify
        self._settings = settings
        self._is_client = engine.configuration.is_client
        self._events: list[StreamEvent] = []
        self._issued: list[bytes] = [engine.host_cid]
        self._retired: list[bytes] = []
        self._next_inbound = 1 if self._is_client else 0
        self._skipped: set[int] = set()  # numbers of the peer that others have overtaken
        self._discarding: dict[int, StreamState] = {}  # wait for the peer's end, oldest first
        self._senders: dict[int, StreamState] = {}  # that wait for room
        self._is_admitted = False
        self._credit = settings.quic_base_window  # of the connection, when last granted
        self._windows = WindowGrowth(
            initial=INITIAL_WINDOW,
            most=settings.quic_max_window,
            most_growth=settings.quic_session_window,
        )
        self._is_abandoned = False
        self._goodbye: list[tuple[bytes, Address]] = []
        self._heard_since = 0  # how many datagrams, since we said it
        self._repeats = False  # it with the next ones
        self._began_at = self._heard_at = now
        self._flush_at = math.inf  # when what waits for company leaves without
        self._ping_sent = False

    # --- time and datagrams ---------------------------------------------------------------------

    def receive_datagram(self, data: bytes, address: Address, now: float) -> list[StreamEvent]:
        """Take one datagram of this connection."""
        if self._is_abandoned:
            return []
        self._heard_at = now
        if self.failure is not None:  # it may have missed our goodbye (RFC 9000, 10.2.1)
            self._heard_since += 1
            self._repeats = self._heard_since.bit_count() == 1  # the 1st, 2nd, 4th, …
        try:
            self.engine.receive_datagram(data, address, now)
        except Exception as error:  # noqa: BLE001  # a bug of the library ends one connection only
            self._is_abandoned = True
            self._end(ProtocolError(f"the peer sent what QUIC cannot read ({error!r})"))
            return self._take_events()
        return self._collect(now)

    def handle_timeout(self, now: float) -> list[StreamEvent]:
        """Do what is due."""
        timer = None if self.is_over else self.engine.get_timer()
        if timer is not None and timer <= now:
            self.engine.handle_timer(now)
        if self.failure is None and self.identity is None and now >= self._handshake_deadline:
            limit = self._settings.handshake_timeout
            self._close(HandshakeError(f"the handshake took longer than {limit:g} s"), 0)
        elif self.failure is None and now >= self._ping_at and not self._ping_sent:
            self._ping_sent = True
            self.engine.send_ping(_PING)
        for stream in tuple(self._discarding.values()):
            if now < stream.due_at:
                break
            self._abort(stream, StreamResetError("the peer did not finish"), StreamCode.NONE)
        return self._collect(now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what is to be sent now, and where to."""
        if self.is_over:
            return []
        self._flush_at = math.inf
        datagrams: list[tuple[bytes, Address]] = self.engine.datagrams_to_send(now)
        if self.failure is not None and datagrams:
            self._goodbye = datagrams
        elif self._repeats:
            datagrams = self._goodbye
        self._repeats = False
        return datagrams

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is due; infinity once all is over."""
        timer = None if self.is_over else self.engine.get_timer()
        if timer is None:
            return math.inf
        if self.failure is not None:
            return timer
        due = next(iter(self._discarding.values())).due_at if self._discarding else math.inf
        quiet = math.inf if self._ping_sent else self._ping_at
        handshake = self._handshake_deadline if self.identity is None else math.inf
        return min(timer, due, quiet, handshake, self._flush_at)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent or taken."""
        return self._is_abandoned or self.engine.is_over

    @property
    def _handshake_deadline(self) -> float:
        return self._began_at + self._settings.handshake_timeout

    @property
    def _ping_at(self) -> float:
        """When a peer that is silent has to be asked for a sign of life."""
        if self.identity is None:
            return math.inf
        return self._heard_at + self.engine.silence_allowed / 2

    def connection_ids(self) -> tuple[list[bytes], list[bytes]]:
        """Return by which names this connection can be called from now on, and by which not."""
        issued, self._issued = self._issued, []
        retired, self._retired = self._retired, []
        return issued, retired

    # --- commands -------------------------------------------------------------------------------

    def charge_to(self, account: Account, now: float) -> list[StreamEvent]:
        """Charge all streams to `account`; those it has no room for are reset.

        Until then the peer may send no more than the connection's first window.
        """
        self.account = account
        self._is_admitted = True
        for stream in tuple(self.streams.values()):
            try:
                stream.account = account.open_stream(inbound=True, window=stream.window, now=now)
            except ResourceLimitError as error:
                self._abort(stream, StreamResetError(str(error)), stream_code(error))
        self._grant_all()
        return self._take_events()

    @property
    def may_open_stream(self) -> bool:
        """Whether the peer takes another stream now."""
        return self.engine.may_open_stream

    def open_stream(self, now: float) -> StreamState:
        """Open a stream; nothing is sent before its first data.

        Raises:
            ConnectionClosedError: the session has ended.
            ResourceLimitError: the account has no room for it, or the peer takes no more now.
        """
        if self.failure is not None:
            raise ConnectionClosedError(str(self.failure))
        if not self.may_open_stream:
            raise ResourceLimitError("the peer lets this node open no more streams")
        number = self.engine.get_next_available_stream_id()
        stream = self._add(number, inbound=False, now=now)
        self.engine.send_stream_data(number, b"")  # nothing goes out, but the number is taken
        return stream

    def send(self, stream: StreamState, data: Buffer) -> None:
        """Queue data, behind what was sent before; it is copied."""
        self.engine.send_stream_data(stream.stream_id, bytes(data))
        self.bytes_sent += len(data)

    def send_later(self, stream: StreamState, data: Buffer, now: float) -> None:
        """Queue a few bytes to go with the next datagram, or within a moment."""
        self.send(stream, data)
        self._flush_at = min(self._flush_at, now + COMPANY_WAIT)

    def unconfirmed(self, stream: StreamState) -> int:
        """Count the bytes of a stream that were sent, or wait to be, and are kept until it is sure.

        What has failed keeps nothing.
        """
        return 0 if stream.failure else self.engine.unacknowledged(stream.stream_id)

    def await_room(self, stream: StreamState) -> None:
        """Have it told once when the peer may have confirmed some of what was sent."""
        self._senders[stream.stream_id] = stream

    def finish(self, stream: StreamState) -> list[StreamEvent]:
        """End our direction, behind all that was sent."""
        self._finish(stream)
        return self._take_events()

    def take(self, stream: StreamState, max_bytes: int | None, now: float) -> bytes:
        """Hand received bytes to the reader, and let the peer send as much again."""
        data = stream.unstore(max_bytes)
        if stream.forgotten:
            stream.account.end(stream.received_bytes)
        else:
            self._grant(stream, now)
        return data

    def unread(self, stream: StreamState, data: bytes) -> None:
        """Put back the end of what was taken."""
        stream.restore(data)

    def discard(self, stream: StreamState, now: float) -> list[StreamEvent]:
        """Finish our direction, and drop what has come and what still comes."""
        stream.discarding = True
        if stream.received_bytes:
            self.take(stream, None, now)
        if self.failure is None:
            self._finish(stream)
            if not stream.forgotten and stream.receive_failure is None:
                stream.due_at = now + self._settings.stream_close_timeout
                self._discarding[stream.stream_id] = stream
        return self._take_events()

    def reset(self, stream: StreamState, error: P2PNodeError, code: int) -> list[StreamEvent]:
        """Abort both directions; users of the stream get `error`."""
        self._abort(stream, error, code)
        return self._take_events()

    def close(self, error: P2PNodeError, code: int = 0) -> list[StreamEvent]:
        """End the session; the peer is told `code`, and users of streams get `error`."""
        self._close(error, code)
        return self._take_events()

    def _finish(self, stream: StreamState) -> None:
        if not stream.finish_wanted and stream.failure is None:
            stream.finish_wanted = True
            self.engine.send_stream_data(stream.stream_id, b"", end_stream=True)
            self._forget_if_over(stream)

    def _abort(self, stream: StreamState, error: P2PNodeError, code: int) -> None:
        if not stream.forgotten:
            self.engine.reset_stream(stream.stream_id, code)
            if not (stream.remote_finished or stream.receive_failure):
                self.engine.stop_stream(stream.stream_id, code)
            self._fail(stream, error)
        elif stream.failure is None and self.failure is None:
            # Both directions have ended; what nobody has confirmed or read yet is given up.
            self.engine.reset_stream(stream.stream_id, code)
            self._fail(stream, error)

    def _close(self, error: P2PNodeError, code: int) -> None:
        if self.failure is None:
            if self.engine.is_reachable:
                self.engine.close(code)
            else:  # what we would send it, somebody else might get
                self._is_abandoned = True
            self._end(error)

    # --- what the engine tells ------------------------------------------------------------------

    def _collect(self, now: float) -> list[StreamEvent]:
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self._issued.append(event.connection_id)
            elif isinstance(event, events.ConnectionIdRetired):
                self._retired.append(event.connection_id)
            elif self.failure is None:
                self._handle(event, now)
        closing = self.engine.closing
        if closing is not None and self.failure is None:
            self._end(why_ended(closing, is_proven=self.identity is not None))
        self._wake_senders()
        self._grant_all()
        return self._take_events()

    def _handle(self, event: events.QuicEvent, now: float) -> None:
        if isinstance(event, events.HandshakeCompleted):
            self._receive_identity(event.alpn_protocol)
        elif isinstance(event, events.StreamDataReceived):
            self._receive(event, now)
        elif isinstance(event, events.StreamReset):
            if (stream := self._find(event.stream_id, now)) is not None:
                self._receive_reset(stream, event.error_code)
        elif isinstance(event, events.StopSendingReceived):
            if (stream := self._find(event.stream_id, now)) is not None:
                reason = f"the peer stopped reading ({stream_reason(event.error_code)})"
                stream.failure = stream.failure or StreamResetError(reason)
                stream.unwanted = True
                self._tell(EventKind.WRITABLE, stream)
                self._forget_if_over(stream)
        elif isinstance(event, events.PingAcknowledged):
            self._ping_sent = False

    def _receive_identity(self, protocol: str | None) -> None:
        try:
            self.identity = self._check_identity(protocol)
        except HandshakeError as error:
            self.engine.close(_BAD_CERTIFICATE, QuicFrameType.CRYPTO, str(error))
            self._end(error)

    def _check_identity(self, protocol: str | None) -> PublicKey:
        if protocol != ALPN:
            raise HandshakeError(OTHER_PROTOCOL)
        return self._verify(self.engine.certificates)

    def _receive(self, event: events.StreamDataReceived, now: float) -> None:
        stream = self._find(event.stream_id, now)
        self.bytes_received += len(event.data)
        if stream is not None and stream.receive_failure is None:
            stream.store(event.data)
            stream.remote_finished = event.end_stream
            if stream.discarding:
                self.take(stream, None, now)
            else:
                self._tell(EventKind.READABLE, stream)
            self._forget_if_over(stream)

    def _receive_reset(self, stream: StreamState, code: int) -> None:
        self.engine.reset_stream(stream.stream_id, StreamCode.NONE)
        self._fail(stream, StreamResetError(f"the peer reset the stream ({stream_reason(code)})"))

    def _find(self, number: int, now: float) -> StreamState | None:
        """Return a stream, which the peer may have opened this moment; None if it is over."""
        if (stream := self.streams.get(number)) is not None:
            return stream
        if number % 2 == (0 if self._is_client else 1):  # ours, and over
            return None
        if number >= self._next_inbound:
            self._skipped.update(range(self._next_inbound, number, 4))
            self._next_inbound = number + 4
        elif number in self._skipped:
            self._skipped.remove(number)
        else:
            return None
        try:
            stream = self._add(number, inbound=True, now=now)
        except ResourceLimitError as error:
            code = stream_code(error)
            self.engine.reset_stream(number, code)
            self.engine.stop_stream(number, code)
            return None
        self._tell(EventKind.OPENED, stream)
        return stream

    # --- streams --------------------------------------------------------------------------------

    def _add(self, number: int, *, inbound: bool, now: float) -> StreamState:
        stream = StreamState(
            stream_id=number,
            account=self.account.open_stream(inbound=inbound, window=INITIAL_WINDOW, now=now),
            window=INITIAL_WINDOW,
            granted=INITIAL_WINDOW,
            granted_at=now,
        )
        self.streams[number] = stream
        return stream

    def _grant(self, stream: StreamState, now: float) -> None:
        """Let the peer send more, when its window is half used up."""
        if self._is_admitted and stream.granted - stream.taken <= stream.window // 2:
            took = now - stream.granted_at
            stream.window += self._windows.grow(
                stream.window, stream.account, took, self.engine.round_trip
            )
            stream.granted_at = now
            stream.granted = stream.taken + stream.window
            self.engine.grant(stream.stream_id, stream.granted)

    def _grant_all(self) -> None:
        """Let the peer send what its streams may take, and a base for new ones."""
        if self._is_admitted and self.engine.credit < self._credit // 2:
            left = (each.granted - self._highest(each) for each in self.streams.values())
            self._credit = self._settings.quic_base_window + sum(left)
            self.engine.grant_all(self._credit)

    def _highest(self, stream: StreamState) -> int:
        highest = self.engine.highest_received(stream.stream_id)
        return stream.granted if highest is None else highest

    def _fail(self, stream: StreamState, error: P2PNodeError) -> None:
        """Let nothing more be sent or received; what has come but was not read is lost."""
        stream.failure = stream.failure or error
        stream.unstore(None)
        if stream.forgotten:
            stream.account.end(0)
        stream.receive_failure = stream.receive_failure or error
        self._tell(EventKind.READABLE, stream)
        self._tell(EventKind.WRITABLE, stream)
        self._forget_if_over(stream)

    def _forget_if_over(self, stream: StreamState) -> None:
        is_sent = stream.finish_wanted or stream.failure is not None
        is_received = stream.remote_finished or stream.receive_failure is not None
        if not is_sent or not is_received or stream.forgotten:
            return
        stream.forgotten = True
        del self.streams[stream.stream_id]
        self._discarding.pop(stream.stream_id, None)
        self._windows.give_back(stream.window)
        stream.account.end(stream.received_bytes)
        self._tell(EventKind.FORGOTTEN, stream)

    def _end(self, error: P2PNodeError) -> None:
        """Fail every stream; what they have received can still be read."""
        self.failure = error
        for stream in tuple(self.streams.values()):
            failure = ConnectionClosedError(str(error))
            stream.failure = stream.failure or failure
            if not stream.remote_finished:
                stream.receive_failure = stream.receive_failure or failure
            self._tell(EventKind.READABLE, stream)
            self._tell(EventKind.WRITABLE, stream)
            self._forget_if_over(stream)

    def _wake_senders(self) -> None:
        senders, self._senders = self._senders, {}
        for stream in senders.values():
            self._tell(EventKind.WRITABLE, stream)

    def _tell(self, kind: EventKind, stream: StreamState) -> None:
        self._events.append(StreamEvent(kind, stream))

    def _take_events(self) -> list[StreamEvent]:
        found, self._events = self._events, []
        return found

    @property
    def is_flushed(self) -> bool:
        """Whether the peer has confirmed all that could be sent."""
        return not self.engine.in_flight

    @property
    def holdings(self) -> dict[str, int]:
        """What the session holds, by what it is."""
        return {
            "streams": len(self.streams),
            "unread bytes": sum(each.received_bytes for each in self.streams.values()),
            "grown window": self._windows.grown,
        }
