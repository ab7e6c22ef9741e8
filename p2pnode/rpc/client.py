"""The caller's side of tensor calls: one round trip each, on a stream that no other call uses then.

Cancelling a call, or letting it time out, resets its stream, and the host drops the work. A host
that ends a stream without a byte of an answer has not begun the call: it is sent again on another.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import trio

from p2pnode.config import RpcSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import (
    ConnectionClosedError,
    DeadlineExceededError,
    ExpertFailedError,
    HostLostError,
    P2PNodeError,
    ProtocolError,
    ProtocolNotSupportedError,
    StreamResetError,
    TensorTooLargeError,
    UnknownExpertError,
)
from p2pnode.events import Event
from p2pnode.host import Connection, Host, Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.age import Age
from p2pnode.rpc.codecs.names import held_bytes, travelling
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import IncomingMessage, send_and_receive
from p2pnode.rpc.kept_streams import KeptStreams
from p2pnode.rpc.messages import (
    PROTOCOL,
    Operation,
    Reply,
    Request,
    decode_reply,
    encode_request,
)
from p2pnode.rpc.schema import ExpertInfo, TensorMeta
from p2pnode.rpc.tensors import metas_of
from p2pnode.security.tokens import Membership
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMade(Event):
    """A tensor call ended, for its caller; `error` names why it failed, if it did."""

    peer_id: PeerId
    operation: Operation
    uid: Uid
    span: int
    seconds: float
    error: str | None
    trace: bytes  # the host's `CallServed` has the same, if there is one


class TensorClient:
    """Calls experts on other peers.

    Args:
        host: the network; it must know the peers' addresses.
        settings: limits and the default timeout.
        memberships: this node's own, by run name; read at each call, so they may change.

    A uid's run is the run's name, as `memberships` has it, or the run's id.

    All calls raise, besides what each says:

    - `DialError`: the peer cannot be reached.
    - `HostLostError`: it was lost during the call; whether it did the work is not known.
    - `DeadlineExceededError`: no answer came within the timeout.
    - `NotAMemberError` and its subclasses: the call is not allowed.
    - `UnknownExpertError`, `OverloadedError`, `ExpertFailedError`, and the other `CallError`s:
      as the host answered.
    """

    def __init__(
        self, host: Host, settings: RpcSettings, memberships: Mapping[str, Membership]
    ) -> None:
        self.access = Access(host, memberships)
        self._events = host.events
        self._settings = settings
        self._transcoder = Transcoder(settings)
        self._kept = KeptStreams(settings)

    async def info(
        self, peer_id: PeerId, uid: Uid, *, span: int = 1, timeout: float | None = None
    ) -> ExpertInfo:
        """Ask what the expert takes and gives; of a span, what its first takes and last gives."""
        request = Request(operation="info", uid=uid, span=span)
        reply, _ = await self._call(peer_id, request, (), timeout=timeout, answer=())
        if reply.info is None:
            raise ExpertFailedError(f"{peer_id} did not describe {uid}")
        return reply.info

    async def forward(
        self,
        peer_id: PeerId,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        *,
        span: int = 1,
        timeout: float | None = None,
        info: ExpertInfo | None = None,
        codec: Codec = "none",
        trace: bytes = b"",
        age: Age | None = None,
    ) -> list[torch.Tensor]:
        """Compute the expert's outputs.

        Args:
            peer_id: a host of the expert.
            uid: the expert.
            inputs: its tensors, positional ones first, then the keywords' in the schema's order.
            span: run through so many consecutive layers, of which `uid` is the first.
            timeout: seconds, or None for the configured default.
            info: the schema, to check both what is sent and what comes back.
            codec: how tensors travel, there and back.
            trace: 8 bytes for the host's log, or nothing.
            age: told which weights computed them.

        Raises:
            SchemaError, TensorTooLargeError: the inputs do not fit; nothing was sent when `info`
                is given.
            NonFiniteError: the inputs hold NaN or infinite values, which the codec cannot carry;
                nothing was sent.
        """
        metas = metas_of(inputs)
        answer = None
        if info is not None:
            answer = tuple(info.check_forward(metas)[1])
        request = Request(
            operation="forward",
            uid=uid,
            span=span,
            tensors=tuple(travelling(meta, codec) for meta in metas),
            trace=trace,
            reply=codec,
        )
        reply, outputs = await self._call(peer_id, request, inputs, timeout=timeout, answer=answer)
        if age is not None:
            age.receive(reply.steps)
        return outputs

    async def backward(
        self,
        peer_id: PeerId,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        call_id: bytes,
        span: int = 1,
        timeout: float | None = None,
        info: ExpertInfo | None = None,
        codec: Codec = "none",
        trace: bytes = b"",
        age: Age | None = None,
        wants_gradients: bool = True,
    ) -> list[torch.Tensor]:
        """Step the expert's optimiser, and return the gradients of the inputs.

        Args:
            peer_id: a host of the expert.
            uid: the expert.
            inputs: the tensors of the forward call.
            gradients: of its outputs, in their order.
            call_id: 16 bytes that no other backward call of this peer has; a call repeated with
                the same id, after a lost reply, does not step the optimiser again.
            span: run through so many consecutive layers, of which `uid` is the first; all of
                them are stepped, or none.
            timeout: seconds, or None for the configured default.
            info: the schema, to check what is sent.
            codec: how tensors travel, there and back.
            trace: 8 bytes for the host's log, or nothing.
            age: which weights the forward call met, and how many steps may lie between; told
                which weights were stepped.
            wants_gradients: of the inputs; if not, none travel, and none are returned.

        Raises:
            StaleUpdateError: more steps lie between; none was taken.
            SchemaError, TensorTooLargeError: the tensors do not fit; nothing was sent when `info`
                is given.
            AlreadyAppliedError: the call was applied earlier, and its answer is lost for good.
        """
        metas, gradient_metas = metas_of(inputs), metas_of(gradients)
        if info is not None:
            info.check_gradients(metas, gradient_metas)
        request = Request(
            operation="backward",
            uid=uid,
            span=span,
            tensors=tuple(travelling(meta, codec) for meta in (*metas, *gradient_metas)),
            gradients=len(gradient_metas),
            call_id=call_id,
            trace=trace,
            reply=codec,
            since=age.since if age else (),
            bound=age.bound if age else None,
            wants_gradients=wants_gradients,
        )
        reply, input_gradients = await self._call(
            peer_id,
            request,
            (*inputs, *gradients),
            timeout=timeout,
            answer=metas if wants_gradients else (),
        )
        if age is not None:
            age.receive(reply.steps)
        return input_gradients

    async def _call(
        self,
        peer_id: PeerId,
        request: Request,
        tensors: Sequence[torch.Tensor],
        *,
        timeout: float | None,
        answer: tuple[TensorMeta, ...] | None,
    ) -> tuple[Reply, list[torch.Tensor]]:
        size = sum(meta.nbytes for meta in request.tensors)
        if size > self._settings.max_call_bytes:
            raise TensorTooLargeError(
                f"{size} bytes of tensors in one call exceed the limit of"
                f" {self._settings.max_call_bytes}; send fewer rows at once"
            )
        uid = request.uid
        membership = self.access.membership(uid.run)
        timeout = self._settings.default_timeout if timeout is None else timeout
        timeout = min(timeout, self._settings.max_deadline)  # hosts cut longer ones too
        if answer is not None:
            answer = tuple(travelling(meta, request.reply) for meta in answer)
        request.uid = uid.in_run(membership.run_id)
        began = trio.current_time()
        failure: str | None = None
        try:
            with trio.move_on_after(timeout):
                buffers = await self._transcoder.encode(tensors, request.tensors)
                connection = await self.access.connect(peer_id)
                exchange = _Exchange(
                    self._settings,
                    self._transcoder,
                    self._kept,
                    peer_id=peer_id,
                    uid=uid,
                    expected=answer,
                )

                async def ask(token: bytes | None) -> tuple[Reply, list[torch.Tensor]]:
                    remaining = trio.current_effective_deadline() - trio.current_time()
                    request.milliseconds = int(max(0.0, remaining) * 1000)
                    request.token = token
                    return await exchange.run(connection, encode_request(request), buffers)

                return await self.access.show(connection, membership, ask)
            raise DeadlineExceededError(
                f"{peer_id} did not answer the {request.operation} call of {uid} within"
                f" {timeout:g} s"
            )
        except (P2PNodeError, trio.Cancelled) as error:
            failure = type(error).__name__
            raise
        finally:
            self._events.emit(
                CallMade(
                    peer_id=peer_id,
                    operation=request.operation,
                    uid=uid,
                    span=request.span,
                    seconds=trio.current_time() - began,
                    error=failure,
                    trace=request.trace,
                )
            )


class _Exchange:
    """One request and its reply."""

    def __init__(
        self,
        settings: RpcSettings,
        transcoder: Transcoder,
        kept: KeptStreams,
        *,
        peer_id: PeerId,
        uid: Uid,
        expected: tuple[TensorMeta, ...] | None,
    ) -> None:
        self._settings = settings
        self._transcoder = transcoder
        self._kept = kept
        self._peer_id = peer_id
        self._uid = uid
        self._expected = expected

    async def run(
        self, connection: Connection, header: bytes, buffers: Sequence[memoryview]
    ) -> tuple[Reply, list[torch.Tensor]]:
        """Send the request and return the reply.

        Raises:
            RemoteError: as the reply says, or because there is none.
        """
        answer = None
        with failures_of(self._peer_id, self._uid):
            while answer is None and (stream := await self._kept.take(connection)) is not None:
                answer = await self._ask(stream, header, buffers)
            if answer is None:
                stream = await connection.open_stream([PROTOCOL])
                answer = await self._ask(stream, header, buffers)
            if answer is None:
                raise ProtocolError("the stream ended without an answer")
        reply, tensors = answer
        if reply.error is not None:
            raise reply.error
        return reply, tensors

    async def _ask(
        self, stream: Stream, header: bytes, buffers: Sequence[memoryview]
    ) -> tuple[Reply, list[torch.Tensor]] | None:
        """Exchange messages on a stream; None if the host has ended it without an answer."""
        size = sum(map(len, buffers))
        is_last = size > self._settings.kept_stream_bytes
        receive = partial(self._receive, stream)
        is_whole = False
        try:
            answer = await send_and_receive(stream, header, buffers, receive, is_last=is_last)
            is_whole = True
        finally:
            if not is_whole:
                stream.reset()
        if answer is not None and answer[0].error is None:
            size += sum(map(held_bytes, answer[0].tensors))
            if size <= self._settings.kept_stream_bytes:
                await self._kept.keep(stream)
                return answer
        await stream.aclose()
        return answer

    async def _receive(self, stream: Stream) -> tuple[Reply, list[torch.Tensor]] | None:
        incoming = IncomingMessage(stream)
        if not await incoming.begins():
            return None
        reply = decode_reply(await incoming.header(self._settings.max_header_bytes))
        if reply.error is None and self._expected not in {None, reply.tensors}:
            raise ProtocolError("its tensors are not what the schema promises")
        if sum(map(held_bytes, reply.tensors)) > self._settings.max_call_bytes:
            raise ProtocolError("its tensors exceed the limit of one call")
        received = await incoming.tensors(reply.tensors)
        return reply, await self._transcoder.decode(received, reply.tensors)


@contextlib.contextmanager
def failures_of(peer_id: PeerId, uid: Uid) -> Iterator[None]:
    """Tell what the end of a stream, or a broken rule, means for a call.

    Raises:
        UnknownExpertError: the peer does not speak the protocol.
        HostLostError: it was lost.
        ExpertFailedError: it answered against the rules.
    """
    try:
        yield
    except ProtocolNotSupportedError as error:
        raise UnknownExpertError(f"{peer_id} hosts no experts of that kind") from error
    except (StreamResetError, ConnectionClosedError) as error:
        raise HostLostError(f"{peer_id} was lost during a call of {uid}: {error}") from error
    except ProtocolError as error:
        raise ExpertFailedError(f"{peer_id} answered a call of {uid} badly: {error}") from error
