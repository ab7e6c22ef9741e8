"""The host's side of inference sessions.

Steps wait for the device among the other calls, and the order is fair between callers (see
`p2pnode.experts.pool`): who generates text waits for the batch that is being computed, and not for
all that a trainer has queued. Steps of several sessions that run through the same blocks wait a
moment for each other and are computed as one (see `company` and `compute`). What a session holds is
freed when its stream ends, whoever ends it.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import RpcSettings, SessionSettings
from p2pnode.errors import (
    ConnectionClosedError,
    DeadlineExceededError,
    P2PNodeError,
    StreamResetError,
    TensorTooLargeError,
)
from p2pnode.events import Event
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.company import Company
from p2pnode.experts.sessions.compute import CachedStep, Caches, bytes_of_caches
from p2pnode.experts.sessions.core import (
    PROTOCOL,
    Open,
    SessionBudget,
    SessionState,
    Step,
    check_opening,
    decode_open,
    decode_step,
)
from p2pnode.host import Host, Stream
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.names import held_bytes
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import IncomingMessage, send_message
from p2pnode.rpc.messages import Reply, encode_reply
from p2pnode.rpc.server import CallHandler, send_refusal
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """An inference session has begun."""

    peer_id: PeerId
    uid: Uid  # of its first block
    span: int
    rows: int
    length: int
    cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """An inference session is over, or was refused; `error` names why, if it failed."""

    peer_id: PeerId
    uid: Uid | None  # None when it was never understood
    cache_bytes: int  # that are free now; 0 when it was refused
    steps: int
    positions: int  # computed, of all rows, those after going back included
    seconds: float
    error: str | None


class SessionServer:
    """Serves `/p2pnode/session/1.0.0` on a host, from its construction until `close`.

    Args:
        host: the network.
        settings: budgets and waits.
        rpc: limits of messages.
        handler: knows which experts others may call now.
        experts: the blocks.
        authority: decides who may call.
        tensors: what the tensors of steps are charged to, together with those of calls.
        transcoder: encodes and decodes them, together with those of calls.
    """

    def __init__(
        self,
        host: Host,
        settings: SessionSettings,
        *,
        rpc: RpcSettings,
        handler: CallHandler,
        experts: ExpertHost,
        authority: Authority,
        tensors: Budget,
        transcoder: Transcoder,
    ) -> None:
        self.budget = SessionBudget(settings)
        self._host = host
        self._settings = settings
        self._rpc = rpc
        self._handler = handler
        self._experts = experts
        self._authority = authority
        self._tensors = tensors
        self._transcoder = transcoder
        self._tables: dict[tuple[Uid, int], _Table] = {}  # by the blocks they run through
        self._open: dict[_Session, trio.CancelScope] = {}
        host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Open no more sessions; those that are open go on until the experts are drained."""
        self._host.remove_handler(PROTOCOL)

    def end_all(self) -> None:
        """End all sessions now: what they hold is wanted for something else."""
        for scope in self._open.values():
            scope.cancel()

    def end(self, uids: Iterable[Uid]) -> None:
        """End the sessions that run through any of these blocks: they have gone elsewhere.

        Their callers open others there, and send again what the blocks had seen.
        """
        gone = set(uids)
        for session, scope in self._open.items():
            if session.request is not None and gone.intersection(
                session.request.uid.span(session.request.span)
            ):
                scope.cancel()

    async def _serve(self, stream: Stream) -> None:
        session = _Session(stream)
        failure: str | None = None
        try:
            await self._run(session)
        except (StreamResetError, ConnectionClosedError) as error:
            failure = type(error).__name__
            raise
        except P2PNodeError as error:
            failure = type(error).__name__
            await send_refusal(stream, error, self._rpc.header_timeout)
        except trio.Cancelled:
            failure = "Cancelled"
            raise
        finally:
            self._host.events.emit(session.ended(failure))

    async def _run(self, session: "_Session") -> None:
        with trio.CancelScope() as scope:
            self._open[session] = scope
            try:
                await self._hold(session)
            finally:
                del self._open[session]
        if scope.cancelled_caught:
            raise StreamResetError("the host has ended the session")

    async def _hold(self, session: "_Session") -> None:
        request = session.request = await self._receive_open(session)
        peer_id = session.stream.peer_id
        rows, length = request.rows, request.length
        self._authorise(peer_id, request)
        info = self._handler.info(request.uid, request.span)
        check_opening(info, length, self._settings.max_length)
        size = await self._experts.compute(
            request.uid, request.span, lambda chain: bytes_of_caches(chain, rows, length)
        )
        with self.budget.session(peer_id, size):
            caches = await self._experts.compute(
                request.uid, request.span, lambda chain: Caches(chain, rows, length)
            )
            state = SessionState(info, rows, length, request.codec)
            session.cache_bytes = size
            self._host.events.emit(
                SessionOpened(
                    peer_id=peer_id,
                    uid=request.uid,
                    span=request.span,
                    rows=rows,
                    length=length,
                    cache_bytes=size,
                )
            )
            header = encode_reply(Reply(info=info))
            await send_message(session.stream, header, (), is_last=False)
            with self._seated(session, request):
                while (step := await self._receive_step(session)) is not None:
                    self._authorise(peer_id, request)  # the token may have expired meanwhile,
                    self._handler.info(request.uid, request.span)  # or the blocks have moved
                    await self._answer(session, request, step, state, caches)

    def _authorise(self, peer_id: PeerId, request: Open) -> None:
        self._authority.authorise(peer_id, request.uid.run, request.token, "train", wall_time())

    async def _receive_open(self, session: "_Session") -> Open:
        with trio.move_on_after(self._rpc.header_timeout):
            return decode_open(await session.incoming.header(self._rpc.max_header_bytes))
        raise DeadlineExceededError("the session's header took too long to arrive")

    async def _receive_step(self, session: "_Session") -> Step | None:
        with trio.move_on_after(self._settings.idle_timeout):
            if not await session.incoming.begins():
                return None
            return decode_step(await session.incoming.header(self._rpc.max_header_bytes))
        raise DeadlineExceededError(
            f"no step came for {self._settings.idle_timeout:g} s; open the session again when it"
            " is needed"
        )

    @contextlib.contextmanager
    def _seated(self, session: "_Session", request: Open) -> Iterator[None]:
        """Let a session step in company while the block runs."""
        key = (request.uid, request.span)
        table = session.table = self._tables.setdefault(key, _Table(self._settings.join_window))
        table.seats += 1
        try:
            yield
        finally:
            table.seats -= 1
            table.company.forget(session)
            table.tell()
            if not table.seats:
                del self._tables[key]

    async def _answer(
        self, session: "_Session", request: Open, step: Step, state: SessionState, caches: Caches
    ) -> None:
        end = state.check(step)
        size = sum(map(held_bytes, step.tensors))
        if size > self._rpc.max_call_bytes:
            raise TensorTooLargeError(
                f"{size} bytes in one step; this host takes at most {self._rpc.max_call_bytes}, so"
                " send fewer positions at once"
            )
        stream = session.stream
        with self._tensors.call(stream.peer_id) as charge:
            charge.add(2 * size)  # what comes out is as large
            received = await session.incoming.tensors(
                step.tensors, patience=self._rpc.payload_patience
            )
            (hidden,) = await self._transcoder.decode(received, step.tensors)
            work = CachedStep(
                caches=caches, hidden=hidden, position=step.position, order=step.order
            )
            (answer,) = await self._compute(session, request, work)
            state.position = end
            session.steps += 1
            session.positions += request.rows * (end - step.position)
            header = encode_reply(Reply(tensors=step.tensors))  # it looks as what has come
            buffers = await self._transcoder.encode([answer], step.tensors)
            with trio.move_on_after(self._settings.idle_timeout) as scope:
                await send_message(stream, header, buffers, is_last=False)
            if scope.cancelled_caught:
                raise StreamResetError("the caller takes no answer")
            session.table.company.receive_answer(session, trio.current_time())

    async def _compute(
        self, session: "_Session", request: Open, work: CachedStep
    ) -> list[torch.Tensor]:
        stream = session.stream
        with trio.CancelScope() as scope:
            stream.cancel_when_lost(scope)
            try:
                await session.table.gather(session)
                return await self._experts.step(
                    request.uid,
                    work,
                    span=request.span,
                    caller=stream.peer_id,
                    deadline=trio.current_time() + self._rpc.max_deadline,
                )
            finally:
                stream.cancel_when_lost(None)
        raise StreamResetError("the caller has given the session up")


class _Table:
    """The sessions of the same blocks, whose steps are computed together."""

    def __init__(self, window: float) -> None:
        self.company = Company(window)
        self.seats = 0
        self._changed = trio.Event()

    async def gather(self, session: "_Session") -> None:
        """Wait for the company that a step is computed in."""
        self.company.receive_step(session, trio.current_time())
        self.tell()
        try:
            while (until := self.company.wait_until(now := trio.current_time())) > now:
                with trio.move_on_at(until):
                    await self._changed.wait()
        finally:
            self.company.receive_start()

    def tell(self) -> None:
        """Let those who gather see who has come or gone."""
        self._changed.set()
        self._changed = trio.Event()


class _Session:
    """One stream being served, and what is known of it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.incoming = IncomingMessage(stream)
        self.request: Open | None = None
        self.table = _Table(0.0)  # a seat alone, until its blocks are known
        self.cache_bytes = 0
        self.steps = 0
        self.positions = 0
        self._began = trio.current_time()

    def ended(self, error: str | None) -> SessionEnded:
        """Describe the session at its end."""
        return SessionEnded(
            peer_id=self.stream.peer_id,
            uid=self.request.uid if self.request else None,
            cache_bytes=self.cache_bytes,
            steps=self.steps,
            positions=self.positions,
            seconds=trio.current_time() - self._began,
            error=error,
        )
