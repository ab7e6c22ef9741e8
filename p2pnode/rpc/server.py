"""The host's side of tensor calls.

Each step refuses as much as it can before the next one costs more: a free slot, the header, the
caller's right, the expert, the schema, the budget; only then is memory allocated and the payload
received. While the work is queued or runs, a caller that resets the stream, or whose connection
ends, cancels it.

A stream carries one call after the other, until the caller ends it, says nothing for a while, or is
refused: what it sends behind a refused request's header was not read, and has no place any more.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import RpcSettings
from p2pnode.errors import (
    BadRequestError,
    ConnectionClosedError,
    DeadlineExceededError,
    ExpertFailedError,
    NonFiniteError,
    P2PNodeError,
    StreamResetError,
    TensorTooLargeError,
)
from p2pnode.events import Event
from p2pnode.host import Host, Stream
from p2pnode.rpc.age import Age
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget, Charge
from p2pnode.rpc.codecs.names import held_bytes, travelling
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import IncomingMessage, send_message
from p2pnode.rpc.messages import (
    PROTOCOL,
    Reply,
    Request,
    decode_request,
    encode_reply,
)
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.tensors import metas_of
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class CallServed(Event):
    """A tensor call ended; `error` names why it failed, if it did."""

    peer_id: PeerId
    operation: str  # empty when the request could not be read
    uid: Uid | None
    rows: int
    seconds: float
    error: str | None
    trace: bytes = b""  # as the caller logs the call, if it gave one


class CallHandler(ABC):
    """What a `TensorServer` serves; uids have the run's id, not its name."""

    @abstractmethod
    def info(self, uid: Uid, span: int = 1) -> ExpertInfo:
        """Describe an expert, or what a span of layers takes at its start and gives at its end.

        Raises:
            UnknownExpertError: it, or a layer of the span, is not hosted here.
            SchemaError: the layers of the span do not fit each other.
        """

    @abstractmethod
    def check(self, uid: Uid, span: int = 1, *, caller: PeerId) -> None:
        """Refuse a call for which there is no room, before its tensors are received.

        Raises:
            OverloadedError: the queues are full, or the caller's share of them.
        """

    @abstractmethod
    async def forward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        deadline: float,
        age: Age | None = None,
    ) -> list[torch.Tensor]:
        """Compute an expert's outputs; cancelling gives the work up.

        Args:
            uid: the expert, or the first layer of the span.
            inputs: tensors that fit its schema.
            span: run through so many consecutive layers, as one piece of work.
            caller: who calls.
            deadline: on trio's clock; work that cannot start before is dropped.
            age: told which weights computed it.

        Raises:
            CallError: the subclasses say why it failed.
        """

    @abstractmethod
    async def backward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        span: int = 1,
        caller: PeerId,
        call_id: bytes,
        deadline: float,
        age: Age | None = None,
        wants_gradients: bool = True,
    ) -> list[torch.Tensor]:
        """Step an expert's optimiser, once per caller and `call_id`; cancelling gives up.

        Args:
            uid: the expert, or the first layer of the span.
            inputs: tensors that fit its schema.
            gradients: of the outputs for these inputs.
            span: run through so many consecutive layers, and step all of them or none.
            caller: who calls.
            call_id: what the caller numbers its calls with; a replay has the same.
            deadline: on trio's clock; work that cannot start before is dropped.
            age: which weights the forward call met, and how many steps may lie between; told
                which weights are stepped.
            wants_gradients: of the inputs; if not, they are neither computed nor returned.

        Returns:
            The gradients of the inputs.

        Raises:
            StaleUpdateError: more steps lie between; none was taken.
            CallError: the subclasses say why it failed.
        """


class TensorServer:
    """Serves `/p2pnode/tensor/1.0.0` on a host, from its construction until `close`.

    Attributes:
        budget: of tensors and calls, for other protocols of the host that carry tensors, too.
        transcoder: likewise.
    """

    def __init__(
        self, host: Host, settings: RpcSettings, handler: CallHandler, authority: Authority
    ) -> None:
        self.budget = Budget(settings)
        self.transcoder = Transcoder(settings)
        self._host = host
        self._settings = settings
        self._handler = handler
        self._authority = authority
        self._is_closed = False
        self._idle: dict[_Call, None] = {}  # wait for another call on their streams
        host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Take no more calls; those under way go on."""
        self._host.remove_handler(PROTOCOL)
        self._is_closed = True
        for call in list(self._idle):
            call.patience.cancel()

    async def _serve(self, stream: Stream) -> None:
        incoming = IncomingMessage(stream)
        call = _Call(stream, incoming, self._settings.header_timeout)
        while await self._serve_call(call):
            patience = 2 * self._settings.keep_stream_for
            call = _Call(stream, incoming, patience, is_first=False)

    async def _serve_call(self, call: "_Call") -> bool:
        """Wait for a call and answer it; returns whether another one may follow."""
        failure: str | None = None
        try:
            return await self._answer_in_time(call)
        except (StreamResetError, ConnectionClosedError) as error:
            failure = type(error).__name__
            raise
        except P2PNodeError as error:
            failure = type(error).__name__
            await send_refusal(call.stream, error, self._settings.header_timeout)
            return False
        except trio.Cancelled:
            failure = "Cancelled"
            raise
        finally:
            if call.has_begun or (failure and call.is_first):
                self._host.events.emit(call.served(failure))

    async def _answer_in_time(self, call: "_Call") -> bool:
        with call.patience:
            call.stream.cancel_when_lost(call.patience)
            if not await self._begins(call):
                return False
            with self.budget.call(call.stream.peer_id) as charge:
                await self._answer(call, charge)
            return call.stream.is_live
        if not call.has_begun and not call.is_first:
            if not self._is_closed:  # else the end is a clean one: a call on its way was not begun
                call.stream.reset()
            return False
        if trio.current_time() < call.patience.deadline:
            raise call.lost()
        if call.request is None:
            raise DeadlineExceededError("the request's header took too long to arrive")
        raise DeadlineExceededError(
            f"the {call.request.operation} call of {call.request.uid.name} missed its deadline at"
            " the host"
        )

    async def _begins(self, call: "_Call") -> bool:
        """Wait for a call's first bytes; false when there are none."""
        if call.is_first:
            await call.incoming.begins()
        else:
            self._idle[call] = None
            try:
                if not await call.incoming.begins():
                    return False
            except (StreamResetError, ConnectionClosedError):
                return False  # the caller may leave as it likes
            finally:
                del self._idle[call]
        call.begin()
        return True

    async def _answer(self, call: "_Call", charge: Charge) -> None:
        header = await call.incoming.header(self._settings.max_header_bytes)
        request = call.request = decode_request(header)
        self._authority.authorise(
            call.stream.peer_id, request.uid.run, request.token, "train", wall_time()
        )
        info = self._handler.info(request.uid, request.span)
        remaining = min(request.milliseconds / 1000, self._settings.max_deadline)
        call.patience.deadline = trio.current_time() + remaining
        if request.operation == "info":
            await self._send(call, Reply(info=info), ())
        else:
            await self._compute(call, request, info, charge)

    async def _compute(
        self, call: "_Call", request: Request, info: ExpertInfo, charge: Charge
    ) -> None:
        count = len(request.tensors) - request.gradients
        metas, gradient_metas = request.tensors[:count], request.tensors[count:]
        if request.operation == "forward":
            call.rows, wanted = info.check_forward(metas)
        else:
            call.rows = info.check_gradients(metas, gradient_metas)
            wanted = list(metas) if request.wants_gradients else []
        answer = [travelling(meta, request.reply) for meta in wanted]
        size = sum(meta.nbytes for meta in request.tensors)
        if size > self._settings.max_call_bytes:
            raise TensorTooLargeError(
                f"{size} bytes of tensors in one call; this host takes at most"
                f" {self._settings.max_call_bytes}, so send fewer rows at once"
            )
        self._handler.check(request.uid, request.span, caller=call.stream.peer_id)
        charge.add(sum(map(held_bytes, (*request.tensors, *answer))))
        tensors = await self.transcoder.decode(
            await call.incoming.tensors(request.tensors, patience=self._settings.payload_patience),
            request.tensors,
        )
        inputs, gradients = tensors[:count], tensors[count:]
        age = Age(since=request.since, bound=request.bound)
        if request.operation == "forward":
            outputs = await self._handler.forward(
                request.uid,
                inputs,
                span=request.span,
                caller=call.stream.peer_id,
                deadline=call.patience.deadline,
                age=age,
            )
        else:
            outputs = await self._handler.backward(
                request.uid,
                inputs,
                gradients,
                span=request.span,
                caller=call.stream.peer_id,
                call_id=request.call_id,
                deadline=call.patience.deadline,
                age=age,
                wants_gradients=request.wants_gradients,
            )
            if not request.wants_gradients:  # a repeated call has the answer that it had before
                outputs = []
        sent = tuple(travelling(meta, request.reply) for meta in metas_of(outputs))
        try:
            buffers = await self.transcoder.encode(outputs, sent)
        except NonFiniteError as error:
            raise ExpertFailedError(
                f"{request.uid.name} answers NaN or infinite values, which {request.reply} cannot"
                " carry"
            ) from error
        await self._send(call, Reply(tensors=sent, steps=age.steps), buffers)

    @staticmethod
    async def _send(call: "_Call", reply: Reply, buffers: Sequence[memoryview]) -> None:
        is_last = not call.stream.is_live  # the caller has ended its side: this is its last call
        await send_message(call.stream, encode_reply(reply), buffers, is_last=is_last)


async def send_refusal(stream: Stream, error: P2PNodeError, timeout: float) -> None:
    """Tell the caller why its request fails, if it takes the answer within `timeout` seconds.

    Raises:
        StreamResetError, ConnectionClosedError: the caller is gone.
    """
    if error.code is None:  # a rule of the stream was broken: the caller's request is to blame
        error = BadRequestError(str(error))
    with trio.move_on_after(timeout):
        await send_message(stream, encode_reply(Reply(error=error)), ())


class _Call:
    """One call on a stream, from the wait for it to its end, and what is known of it."""

    def __init__(
        self,
        stream: Stream,
        incoming: IncomingMessage,
        patience: float,  # seconds that it may take until its header has come
        *,
        is_first: bool = True,
    ) -> None:
        self.stream = stream
        self.incoming = incoming
        self.is_first = is_first  # of its stream
        self.has_begun = False
        self._began = trio.current_time()
        # It ends with the caller's deadline, once that is known, or when the caller is gone.
        self.patience = trio.CancelScope(deadline=self._began + patience)
        self.request: Request | None = None
        self.rows = 0

    def begin(self) -> None:
        """Note that the call has come."""
        self.has_begun = True
        if not self.is_first:
            self._began = trio.current_time()

    def served(self, error: str | None) -> CallServed:
        """Describe the call at its end."""
        return CallServed(
            peer_id=self.stream.peer_id,
            operation=self.request.operation if self.request else "",
            uid=self.request.uid if self.request else None,
            rows=self.rows,
            seconds=trio.current_time() - self._began,
            error=error,
            trace=self.request.trace if self.request else b"",
        )

    def lost(self) -> P2PNodeError:
        """Say why there is nobody to answer any more."""
        if self.stream.connection.is_closed:
            return ConnectionClosedError("the caller is gone")
        return StreamResetError("the caller has given the call up")
