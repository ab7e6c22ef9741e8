"""One QUIC connection (RFC 9000), by aioquic, with what libp2p and a reader's pace ask of it.

aioquic keeps the protocol: packets, keys, acknowledgements, loss, congestion, paths. It differs
from what is needed here in five points, all of which are settled in this module by names that
aioquic does not promise to keep. So its minor version is pinned (pyproject.toml), and the tests of
this module fail where a new one has moved them.

- It asks a client for a certificate in its own tests only: `_initialize`.
- It doubles a window when half of it has *arrived*, which is no bound at all on what it keeps.
  Here windows are what `grant` says: `_write_stream_limits`, `_write_connection_limits`.
- It keeps the pieces of a stream that came out of order in a list, which it walks for each new
  piece, and which a peer makes long by sending every other byte: `_handle_stream_frame`,
  `_handle_crypto_frame`.
- It looks at each stream for each packet, in case it has something to send: `_write_application`
  shows it those that have, a few at a time.
- It does not tell how much of a stream is still to be acknowledged, which certificates came, how
  many streams the peer takes, nor that the peer has closed before the draining time is over.
"""

from typing import Final, NamedTuple

from aioquic._buffer import Buffer  # what `aioquic.buffer` has, told to type checkers, too
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography import x509

MAX_GAPS: Final = 1024  # in a stream; at a tenth of all packets lost, 8 MiB have 700
_AT_ONCE: Final = 16  # streams looked at for each packet
_LITTLE: Final = 64  # bytes, in which hardly a frame finds room
MAX_CRYPTO_GAPS: Final = 32  # in a handshake, which takes a handful of packets


class Closing(NamedTuple):
    """Why a connection ends.

    Attributes:
        code: of the application, or of the transport.
        is_application: which of the two.
        is_remote: whether the peer has said so.
        reason: its words.
    """

    code: int
    is_application: bool
    is_remote: bool
    reason: str


class Engine(QuicConnection):
    """A connection; see the module.

    Args:
        configuration: windows in it are the first ones, of a stream and of the connection.
        max_streams: how many the peer may have open.
        original_destination_connection_id: of a server; what the client called it first.
        retry_source_connection_id: of a server that had the client prove its address.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        max_streams: int,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        for limit, value in (
            (self._local_max_streams_bidi, max_streams),
            (self._local_max_streams_uni, 0),  # libp2p has no use for them
        ):
            limit.value = limit.sent = value

    # --- what it tells --------------------------------------------------------------------------

    @property
    def certificates(self) -> list[x509.Certificate]:
        """What the peer has shown, its own first; empty if it has none."""
        own = self.tls._peer_certificate  # noqa: SLF001  # see the module
        return [] if own is None else [own, *self.tls._peer_certificate_chain]  # noqa: SLF001

    @property
    def closing(self) -> Closing | None:
        """Why it ends, from the moment that either side wants it to."""
        event = self._close_event
        if event is None:
            return None
        return Closing(
            code=event.error_code,
            is_application=event.frame_type is None,
            is_remote=self._state is QuicConnectionState.DRAINING,
            reason=event.reason_phrase,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent or taken, after the last packets have had their time."""
        return self._state is QuicConnectionState.TERMINATED

    @property
    def may_open_stream(self) -> bool:
        """Whether the peer takes another stream now."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    @property
    def early_bytes(self) -> int:
        """What the peer takes on a stream that we open, before it says more."""
        return self._remote_max_stream_data_bidi_remote

    @property
    def in_flight(self) -> int:
        """How many bytes of packets are on their way, neither acknowledged nor lost."""
        return self._loss.bytes_in_flight

    @property
    def round_trip(self) -> float | None:
        """The shortest round trip in seconds, once known."""
        return self._loss._rtt_min if self._loss._rtt_initialized else None  # noqa: SLF001

    @property
    def is_paced(self) -> bool:
        """Whether more could be sent at once, were it not for the pace."""
        return self._pacing_at is not None

    @property
    def silence_allowed(self) -> float:
        """After how many seconds without a sign of life either side gives up."""
        return self._idle_timeout()

    @property
    def credit(self) -> int:
        """How many bytes the peer may still send, on all its streams together."""
        return self._local_max_data.value - self._local_max_data.used

    @property
    def has_begun(self) -> bool:
        """Whether the peer has sent a packet that could be read."""
        return self._remote_initial_source_connection_id is not None

    @property
    def is_reachable(self) -> bool:
        """Whether the peer has proven that it receives where it sends from."""
        return bool(self._network_paths) and self._network_paths[0].is_validated

    def unacknowledged(self, stream_id: int) -> int:
        """Count the bytes of a stream that are kept until the peer has confirmed them."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.is_finished:
            return 0
        return stream.sender._buffer_stop - stream.sender._buffer_start  # noqa: SLF001

    def highest_received(self, stream_id: int) -> int | None:
        """Return up to where a stream has used its window; None when it is forgotten."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.receiver.highest_offset

    # --- what it is told ------------------------------------------------------------------------

    def grant(self, stream_id: int, offset: int) -> None:
        """Let the peer send a stream up to `offset`."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.max_stream_data_local = max(stream.max_stream_data_local, offset)

    def grant_all(self, credit: int) -> None:
        """Let the peer send `credit` bytes more, on all its streams together."""
        limit = self._local_max_data
        limit.value = max(limit.value, limit.used + credit)

    # --- what is settled otherwise --------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = True  # noqa: SLF001  # see the module

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        everything = self._streams_queue
        waiting = [each for each in everything if _has_work(each)]
        done = [each for each in everything if not _has_work(each)]
        self._streams_queue = []
        try:
            while True:  # once at least, for what belongs to no stream
                self._streams_queue, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
                super()._write_application(builder, network_path, now)
                if not waiting or self.is_paced or builder.remaining_flight_space < _LITTLE:
                    return
                done += self._streams_queue
                self._streams_queue = []
        finally:  # those that had no turn go first next time
            self._streams_queue = waiting + self._streams_queue + done

    def _write_stream_limits(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,  # noqa: ARG002  # aioquic's own signature
        stream: QuicStream,
    ) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        buffer = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None  # only the streams of handshakes have none
        buffer.push_uint_var(stream.stream_id)
        buffer.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    def _write_connection_limits(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,  # noqa: ARG002  # aioquic's own signature
    ) -> None:
        streams = self._local_max_streams_bidi
        left, gained = streams.sent - streams.used, streams.value - streams.sent
        due = [self._local_max_data]
        if left < gained:  # several at once, as the library has it
            due.append(streams)
        for limit in due:
            if limit.value != limit.sent:
                buffer = builder.start_frame(
                    limit.frame_type,
                    capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                    handler=self._on_connection_limit_delivery,
                    handler_args=(limit,),
                )
                buffer.push_uint_var(limit.value)
                limit.sent = limit.value

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None:
            _check_gaps(stream, MAX_GAPS, frame_type)

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_crypto_frame(context, frame_type, buf)
        _check_gaps(self._crypto_streams[context.epoch], MAX_CRYPTO_GAPS, frame_type)


def _has_work(stream: QuicStream) -> bool:
    sender = stream.sender
    return (
        not sender.buffer_is_empty
        or sender.reset_pending
        or stream.receiver.stop_pending
        or stream.is_finished
    )


def _check_gaps(stream: QuicStream, limit: int, frame_type: int) -> None:
    if len(stream.receiver._ranges) > limit:  # noqa: SLF001  # see the module
        raise QuicConnectionError(
            error_code=QuicErrorCode.INTERNAL_ERROR,
            frame_type=frame_type,
            reason_phrase="too many gaps in a stream",
        )
