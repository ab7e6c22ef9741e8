"""A muxed stream with its protocol: negotiated before, or optimistically with the first data.

An optimistic stream sends its proposal and its first data together and looks for the answer when
it is first read. What may be sent before the answer is known fits the peer's initial window, so
that a refusal can always be read, and never waits behind data nobody will take.
"""

import contextlib
import math
from collections.abc import Callable, Sequence

import trio

from p2pnode.errors import NegotiationError, P2PNodeError, StreamResetError
from p2pnode.host.interfaces import Connection, Stream
from p2pnode.mux.multistream import Dialer, Listener
from p2pnode.transport.session import MuxedStream

Buffer = bytes | bytearray | memoryview


async def accept_protocol(
    muxed: MuxedStream, supported: Callable[[str], bool], *, timeout: float
) -> str:
    """Answer the proposals on a stream that a peer opened until one is `supported`.

    The answer leaves with the first data of the protocol, within a moment if there is none.

    Raises:
        NegotiationError: the peer breaks the rules, or hung up without a match.
        StreamResetError: it did not propose one within `timeout` seconds.
    """
    listener = Listener(supported)
    # Most proposals come in one piece with the stream's opening, and need no clock.
    protocol = _propose(muxed, listener, muxed.receive_nowait())
    if protocol is None:
        with trio.move_on_after(timeout):
            while protocol is None:
                data = await muxed.receive_some()
                if not data:
                    raise NegotiationError("the peer hung up before a protocol was agreed on")
                protocol = _propose(muxed, listener, data)
    if protocol is None:
        raise StreamResetError(f"the negotiation took longer than {timeout:g} s")
    return protocol


def _propose(muxed: MuxedStream, listener: Listener, data: bytes) -> str | None:
    while answer := listener.receive_data(data):
        muxed.send_later(answer)
        if listener.protocol is not None:
            muxed.unread(listener.rest)
            return listener.protocol
        data = b""
    return None


class NetworkStream(Stream):
    """One stream of a `NetworkConnection`."""

    def __init__(
        self,
        muxed: MuxedStream,
        connection: Connection,
        protocol: str,
        *,
        unsettled: Dialer | None = None,
        optimistic_bytes: int = 0,
    ) -> None:
        """Wrap `muxed`.

        Args:
            muxed: the stream beneath.
            connection: the connection it belongs to.
            protocol: agreed on, or proposed by `unsettled`.
            unsettled: a negotiation that has not begun yet, with one proposal.
            optimistic_bytes: how much may be sent before its answer, the proposal included.
        """
        self.connection = connection
        self.protocol = protocol
        self._muxed = muxed
        self._unsettled = unsettled
        self._proposal = unsettled.first_message() if unsettled else b""
        self._allowance = optimistic_bytes
        self._failure: P2PNodeError | None = None
        self._answered: trio.Event | None = None  # while somebody reads the answer, for others

    @property
    def is_live(self) -> bool:
        """See `Stream`."""
        return self._failure is None and self._muxed.is_live

    @property
    def send_window(self) -> int:
        """See `Stream`."""
        return self._muxed.send_window

    async def send_all(self, data: Buffer) -> None:
        """See `Stream`."""
        if self._unsettled is None and self._failure is None:
            await self._muxed.send_all(data)
            return
        view = memoryview(data).cast("B")
        self._check()
        early = view[: max(0, self._allowance - len(self._proposal))]
        await self._send_early(early)
        if len(early) < len(view):
            try:
                await self._settle()
            except trio.Cancelled:
                self.reset()  # the first part is on its way
                raise
            await self._muxed.send_all(view[len(early) :])

    async def send_pieces(self, pieces: Sequence[bytes]) -> None:
        """See `Stream`."""
        if self._unsettled is not None or self._failure is not None:
            await super().send_pieces(pieces)
            return
        await trio.lowlevel.checkpoint_if_cancelled()  # or the first pieces would go alone
        *others, last = pieces
        for piece in others:
            self._muxed.send_later(piece)
        await self._muxed.send_all(last)

    async def send_last(self, data: Buffer) -> None:
        """See `Stream`."""
        if self._unsettled is None and self._failure is None:
            await self._muxed.send_last(data)
            return
        view = memoryview(data).cast("B")
        if len(view) + len(self._proposal) > self._allowance:
            await super().send_last(view)
            return
        self._check()
        await trio.lowlevel.checkpoint_if_cancelled()  # or the proposal would be lost
        proposal, self._proposal, self._allowance = self._proposal, b"", 0
        await self._muxed.send_last(b"".join((proposal, view)))

    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """See `Stream`."""
        self._muxed.cancel_when_lost(scope)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        self._check()
        await self._muxed.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `Stream`."""
        if self._unsettled is not None or self._failure is not None:
            await self._settle()
        return await self._muxed.receive_some(max_bytes)

    async def receive_pieces(self, most: int) -> list[bytes]:
        """See `Stream`."""
        first = await self.receive_some(most)
        if not first:
            return []
        return [first, *self._muxed.receive_pieces_nowait(most - len(first))]

    async def _fill(self, buffer: memoryview, until: float) -> int:
        filled = 0
        if self._unsettled is not None or self._failure is not None:
            if until == math.inf:
                await self._settle()
            else:
                with trio.move_on_at(until) as scope:
                    await self._settle()
                if scope.cancelled_caught:
                    return 0
            filled = self._muxed.receive_into_nowait(buffer)  # often it came with the answer
        if filled < len(buffer):
            filled += await self._muxed.receive_into(buffer[filled:], until)
        return filled

    async def send_eof(self) -> None:
        """See `Stream`; on an optimistic stream it waits for the answer first.

        An end that arrives before js-libp2p 3 has called its handler is lost on readers that
        iterate over the stream. A refusal is left for the next read to raise.
        """
        with contextlib.suppress(NegotiationError):
            await self._settle()
        if self._failure is None:
            await self._muxed.send_eof()

    async def aclose(self) -> None:
        """See `Stream`."""
        await self._muxed.aclose()

    def reset(self, code: int = 0) -> None:
        """See `Stream`."""
        self._muxed.reset(code)

    async def _send_early(self, data: Buffer) -> None:
        """Send `data` before the answer is known, behind the proposal if that is due."""
        await trio.lowlevel.checkpoint_if_cancelled()  # or the proposal would be lost
        proposal, self._proposal = self._proposal, b""
        self._allowance -= len(proposal) + len(data)
        # The muxer sends in the order of calls, so nothing overtakes the proposal.
        await self._muxed.send_all(b"".join((proposal, data)) if proposal else data)

    async def _settle(self) -> None:
        """Wait for the answer to the proposal, if it is due; the first comer reads it for all."""
        if self._proposal:
            await self._send_early(b"")
        while (dialer := self._unsettled) is not None:
            if self._answered is not None:
                await self._answered.wait()
                continue
            self._answered = trio.Event()
            try:
                await self._read_answer(dialer)
            finally:  # if this was cancelled, another one reads on
                self._answered.set()
                self._answered = None
        self._check()

    async def _read_answer(self, dialer: Dialer) -> None:
        try:
            while dialer.protocol is None:
                data = await self._muxed.receive_some()
                if not data:
                    raise NegotiationError("the peer hung up instead of taking the protocol")
                dialer.receive_data(data)
            self._muxed.unread(dialer.rest)
        except P2PNodeError as error:
            self._failure = error
            self._muxed.reset()
        self._unsettled = None

    def _check(self) -> None:
        if (failure := self._failure) is not None:
            raise type(failure)(*failure.args)  # a copy: several tasks may raise it, repeatedly
