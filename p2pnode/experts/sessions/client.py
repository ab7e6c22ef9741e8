"""The caller's side of inference sessions."""

from collections.abc import Sequence

import torch
import trio

from p2pnode.config import RpcSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import (
    DeadlineExceededError,
    HostLostError,
    ProtocolError,
    SchemaError,
    TensorTooLargeError,
)
from p2pnode.experts.sessions.core import (
    PROTOCOL,
    Open,
    SessionState,
    Step,
    check_opening,
    encode_open,
    encode_step,
)
from p2pnode.host import Connection, Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.client import failures_of
from p2pnode.rpc.codecs.names import held_bytes, travelling
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import IncomingMessage, send_and_receive, send_message
from p2pnode.rpc.messages import Reply, decode_reply
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.tensors import meta_of
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class SessionClient:
    """Opens sessions with hosts of consecutive blocks.

    Args:
        access: the way to the hosts; a `TensorClient` has one, which knows what was shown already.
        settings: limits and the default timeout.
    """

    def __init__(self, access: Access, settings: RpcSettings) -> None:
        self._access = access
        self._settings = settings
        self._transcoder = Transcoder(settings)

    async def open(
        self,
        peer_id: PeerId,
        uid: Uid,
        *,
        span: int = 1,
        rows: int = 1,
        length: int,
        codec: Codec = "none",
        timeout: float | None = None,
    ) -> "Session":
        """Open a session.

        Args:
            peer_id: a host of all the blocks.
            uid: the first block.
            span: how many consecutive blocks the session runs through.
            rows: sequences side by side.
            length: positions of the longest they may become; the host keeps room for all of them.
            codec: how tensors travel, there and back.
            timeout: seconds, or None for the configured default.

        Raises:
            DialError: the peer cannot be reached.
            HostLostError: it was lost meanwhile.
            DeadlineExceededError: no answer came within the timeout.
            NotAMemberError: we may not call here.
            UnknownExpertError: the host lacks a block, or has no sessions.
            OverloadedError: it has no room for the session.
            SchemaError: the blocks take no sequences of that length.
        """
        membership = self._access.membership(uid.run)
        timeout = _bounded(timeout, self._settings)
        with trio.move_on_after(timeout):
            connection = await self._access.connect(peer_id)

            async def ask(token: bytes | None) -> Session:
                message = Open(
                    uid=uid.in_run(membership.run_id),
                    span=span,
                    rows=rows,
                    length=length,
                    codec=codec,
                    token=token,
                )
                return await self._begin(connection, peer_id, uid, message)

            return await self._access.show(connection, membership, ask)
        raise DeadlineExceededError(
            f"{peer_id} did not open a session of {uid} within {timeout:g} s"
        )

    async def _begin(
        self, connection: Connection, peer_id: PeerId, uid: Uid, message: Open
    ) -> "Session":
        stream: Stream | None = None
        try:
            with failures_of(peer_id, uid):
                stream = await connection.open_stream([PROTOCOL])
                incoming = IncomingMessage(stream)
                await send_message(stream, encode_open(message), (), is_last=False)
                reply = await _receive_reply(incoming, self._settings)
                if reply.info is None:
                    raise ProtocolError("it did not describe the blocks")
                try:
                    check_opening(reply.info, message.length)
                except SchemaError as error:
                    raise ProtocolError(str(error)) from error
            session = Session(
                stream,
                incoming,
                self._settings,
                self._transcoder,
                peer_id=peer_id,
                uid=uid,
                opened=message,
                info=reply.info,
            )
            stream = None
        finally:
            if stream is not None:
                stream.reset()
        return session


class Session(trio.abc.AsyncResource):
    """The keys and values of some sequences in the blocks of one host, which `step` adds to.

    After an error, a timeout or a cancelled step the session is over, and nothing of it is left at
    the host: open another one there or elsewhere, and send the positions again from the first on.

    Attributes:
        peer_id: the host.
        uid: the first block.
        span: how many blocks.
        rows: sequences side by side.
        length: positions there is room for.
        info: what the blocks take and give.
    """

    def __init__(
        self,
        stream: Stream,
        incoming: IncomingMessage,
        settings: RpcSettings,
        transcoder: Transcoder,
        *,
        peer_id: PeerId,
        uid: Uid,
        opened: Open,
        info: ExpertInfo,
    ) -> None:
        self.peer_id = peer_id
        self.uid = uid
        self.span = opened.span
        self.rows = opened.rows
        self.length = opened.length
        self.info = info
        self._stream = stream
        self._incoming = incoming
        self._settings = settings
        self._transcoder = transcoder
        self._codec = opened.codec
        self._state = SessionState(info, self.rows, self.length, opened.codec)
        self._turn = trio.Lock()
        self._is_over = False

    @property
    def position(self) -> int:
        """How many positions the host keeps: where the next step begins if it does not say."""
        return self._state.position

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or has failed."""
        return self._is_over

    async def step(
        self,
        hidden: torch.Tensor,
        *,
        position: int | None = None,
        order: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> torch.Tensor:
        """Send hidden states of the next positions, and return what the last block gives.

        Args:
            hidden: of shape (rows, positions, hidden_size).
            position: of the first of them, by default where the last step ended. An earlier one
                goes back: what the host kept behind it is forgotten.
            order: for each row the one it goes on from, by default itself; for beam search.
            timeout: seconds, or None for the configured default.

        Raises:
            SchemaError, TensorTooLargeError: the step does not fit; nothing was sent, and the
                session goes on.
            NonFiniteError: likewise: it holds NaN or infinite values, which the session's codec
                cannot carry.
            HostLostError: the host was lost, or the session was over before.
            DeadlineExceededError: no answer came within the timeout.
            NotAMemberError, UnknownExpertError, OverloadedError, ExpertFailedError: as the host
                answered.
        """
        timeout = _bounded(timeout, self._settings)
        with trio.move_on_after(timeout):
            async with self._turn:
                if self._is_over:
                    raise HostLostError(f"the session of {self.uid} with {self.peer_id} is over")
                step = Step(
                    position=self.position if position is None else position,
                    tensors=(travelling(meta_of(hidden), self._codec),),
                    order=None if order is None else tuple(order),
                )
                end = self._state.check(step)
                if held_bytes(step.tensors[0]) > self._settings.max_call_bytes:
                    raise TensorTooLargeError(
                        f"{held_bytes(step.tensors[0])} bytes in one step exceed the limit of"
                        f" {self._settings.max_call_bytes}; send fewer positions at once"
                    )
                buffers = await self._transcoder.encode([hidden], step.tensors)
                return await self._step(step, buffers, end)
        raise DeadlineExceededError(
            f"{self.peer_id} did not answer a step of {self.uid} within {timeout:g} s"
        )

    async def aclose(self) -> None:
        """End the session; the host frees what it holds. A second time does nothing."""
        if not self._is_over:
            self._is_over = True
            await self._stream.aclose()
        else:
            await trio.lowlevel.checkpoint()

    async def _step(self, step: Step, buffers: Sequence[memoryview], end: int) -> torch.Tensor:
        is_done = False

        async def receive() -> torch.Tensor:
            reply = await _receive_reply(self._incoming, self._settings)
            if reply.tensors != step.tensors:
                raise ProtocolError("its tensors are not what was sent")
            received = await self._incoming.tensors(reply.tensors)
            (answer,) = await self._transcoder.decode(received, reply.tensors)
            return answer

        try:
            with failures_of(self.peer_id, self.uid):
                answer = await send_and_receive(
                    self._stream, encode_step(step), buffers, receive, is_last=False
                )
            is_done = True
        finally:
            if not is_done:
                self._is_over = True
                self._stream.reset()
        self._state.position = end
        return answer


async def _receive_reply(incoming: IncomingMessage, settings: RpcSettings) -> Reply:
    reply = decode_reply(await incoming.header(settings.max_header_bytes))
    if reply.error is not None:
        raise reply.error
    return reply


def _bounded(timeout: float | None, settings: RpcSettings) -> float:
    chosen = settings.default_timeout if timeout is None else timeout
    return min(chosen, settings.max_deadline)
