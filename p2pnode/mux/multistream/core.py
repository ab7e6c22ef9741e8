"""multistream-select 1.0: agreeing on a protocol, as pure state machines.

A message is a uvarint length, that many bytes of UTF-8 text, and among them a final newline. Both
sides start with `/multistream/1.0.0`, in any order. Then the dialer proposes, and the listener
echoes the proposal or answers `na`, after which another may be proposed.

What follows the negotiation belongs to the protocol. Over a stream that cannot take bytes back,
read no more than `needed` says; over one that can, read all there is and give back the `rest`.

Source: multiformats/multistream-select; libp2p/specs, connections.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final

from p2pnode.errors import NegotiationError, ProtocolError, ProtocolNotSupportedError
from p2pnode.wire import varint

HEADER: Final = "/multistream/1.0.0"
NOT_AVAILABLE: Final = "na"
MAX_LINE: Final = 1024  # as go-libp2p and js-libp2p
MAX_PROPOSALS: Final = 64  # of one dialer; honest ones try two or three


@functools.lru_cache(maxsize=256)  # a node speaks a few dozen protocols, over and over
def encode_line(text: str) -> bytes:
    """Return `text` as a message.

    Raises:
        NegotiationError: the text cannot be one.
    """
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE or "\n" in text or not text:
        raise NegotiationError(f"{text[:80]!r} cannot name a protocol")
    return varint.prefixed(line)


class LineReader:
    """Collects the bytes of one message after another."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_between(self) -> bool:
        """Whether no message has begun to arrive."""
        return not self._buffer

    @property
    def needed(self) -> int:
        """How many bytes may be read without taking more than the current message."""
        size = varint.decode(self._buffer)
        if size is None:
            return 1
        return size[1] + size[0] - len(self._buffer)

    def take_rest(self) -> bytes:
        """Take what was received behind the last message."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def receive_data(self, data: bytes) -> str | None:
        """Take bytes, or none to see what is left; returns the next message if it is whole.

        Raises:
            NegotiationError: it is too long or not a line of text.
        """
        self._buffer += data
        try:
            size = varint.decode(self._buffer)
        except ProtocolError as error:
            raise NegotiationError(f"a negotiation message is malformed: {error}") from error
        if size is None:
            return None
        length, start = size
        if not 0 < length <= MAX_LINE:
            raise NegotiationError(f"a negotiation message of {length} bytes is not accepted")
        if len(self._buffer) < start + length:
            return None
        line = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        if not line.endswith(b"\n"):
            raise NegotiationError("a negotiation message does not end in a newline")
        try:
            return line[:-1].decode()
        except UnicodeDecodeError as error:
            raise NegotiationError("a negotiation message is not text") from error


class Dialer:
    """The side that proposes protocols, the most wanted first.

    Send `first_message`, then feed what comes back; `protocol` is set when one is agreed.

    Args:
        protocols: to propose.
        greeted: whether both headers have been exchanged already.
    """

    def __init__(self, protocols: Sequence[str], *, greeted: bool = False) -> None:
        if not protocols:
            raise NegotiationError("no protocol to propose")
        self._wanted = list(protocols)
        self._next = 0
        self._greeted = greeted
        self._reader = LineReader()
        self.protocol: str | None = None
        self.rest = b""  # what was received behind the negotiation

    @property
    def needed(self) -> int:
        """How many bytes may be read next."""
        return self._reader.needed

    def first_message(self) -> bytes:
        """Return the header, if it is due, and the first proposal."""
        return (b"" if self._greeted else encode_line(HEADER)) + self._proposal()

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the answer; returns what to send next, which may be nothing.

        Raises:
            ProtocolNotSupportedError: the listener takes none of the protocols.
            NegotiationError: the answer is not one.
        """
        reply = b""
        line = self._reader.receive_data(data)
        while line is not None:
            reply += self._receive_line(line)
            if self.protocol is not None:
                self.rest = self._reader.take_rest()
                break
            line = self._reader.receive_data(b"")
        return reply

    def _receive_line(self, line: str) -> bytes:
        if not self._greeted:
            if line != HEADER:
                raise NegotiationError(f"the peer does not speak multistream: {line[:80]!r}")
            self._greeted = True
            return b""
        proposed = self._wanted[self._next - 1]
        if line == proposed:
            self.protocol = proposed
            return b""
        if line != NOT_AVAILABLE:
            raise NegotiationError(f"the peer answered {line[:80]!r} to {proposed}")
        if self._next == len(self._wanted):
            raise ProtocolNotSupportedError(f"the peer does not speak {', '.join(self._wanted)}")
        return self._proposal()

    def _proposal(self) -> bytes:
        self._next += 1
        return encode_line(self._wanted[self._next - 1])


class Listener:
    """The side that picks; `protocol` is set once a proposal is accepted.

    Args:
        supported: tells which proposals are.
        header_sent: whether the header has gone out already, unasked.
    """

    def __init__(self, supported: Callable[[str], bool], *, header_sent: bool = False) -> None:
        self._supported = supported
        self._header_sent = header_sent
        self._greeted = False
        self._proposals = 0
        self._reader = LineReader()
        self.protocol: str | None = None
        self.rest = b""  # what was received behind the negotiation

    @property
    def needed(self) -> int:
        """How many bytes may be read next."""
        return self._reader.needed

    @property
    def waits_for_proposal(self) -> bool:
        """Whether the peer has sent its header, and not a byte of a proposal behind it."""
        return self._greeted and self._reader.is_between

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of a proposal; returns the answer to one message, or nothing yet.

        Call it again, without bytes, until it returns nothing. The header is answered at once:
        py-libp2p waits for it before it proposes anything.

        Raises:
            NegotiationError: the peer breaks the rules, or proposes without end.
        """
        line = self._reader.receive_data(data)
        if line is None:
            return b""
        if not self._greeted:
            if line != HEADER:
                raise NegotiationError(f"the peer does not speak multistream: {line[:80]!r}")
            self._greeted = True
            return b"" if self._header_sent else encode_line(HEADER)
        self._proposals += 1
        if self._proposals > MAX_PROPOSALS:
            raise NegotiationError(f"the peer made more than {MAX_PROPOSALS} proposals")
        if not self._supported(line):
            return encode_line(NOT_AVAILABLE)
        self.protocol = line
        self.rest = self._reader.take_rest()
        return encode_line(line)
