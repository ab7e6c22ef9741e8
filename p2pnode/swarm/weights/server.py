"""Gives states of experts to members of their runs: `/p2pnode/weights/1.0.0`.

A stream's requests are answered one after the other, so what a stream holds of this node's memory
is one chunk, which is charged to its peer's budget and the node's. A stream that wants chunks takes
one of a few places, too, of the node's and of its peer's; where there is none it hears so at once,
and may come again.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import WeightsSettings
from p2pnode.errors import (
    CallError,
    ExpertFailedError,
    OverloadedError,
    PermissionDeniedError,
    StorageError,
    StreamResetError,
    UnknownExpertError,
)
from p2pnode.events import Event
from p2pnode.host import Host, Stream
from p2pnode.host.pacing import Pace
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget, Charge
from p2pnode.swarm.weights.followers import Followers
from p2pnode.swarm.weights.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    ChunkRequest,
    Have,
    HaveRequest,
    Head,
    HeadRequest,
    Hello,
    ManifestRequest,
    Payload,
    Refusal,
    WeightsRequest,
    decode_hello,
    decode_request,
    encode_reply,
)
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.store import StateStore, StoredState
from p2pnode.wire.peer_id import PeerId

_NOT_COMPLETE: Final = (
    "states with the optimiser's are for those who may host; ask for the weights alone"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsGiven(Event):
    """A peer was given chunks of states on one stream."""

    peer_id: PeerId
    run_id: str
    chunks: int
    bytes: int
    seconds: float


class WeightsServer:
    """Serves states on a host, from its construction until `close`.

    Args:
        host: the network.
        settings: limits.
        publisher: makes the newest versions.
        store: has all versions that are given, and states that are being fetched.
        authority: says who may.
        budget: of what peers make this node hold; the node's, as `TensorServer` has it.
    """

    def __init__(
        self,
        host: Host,
        settings: WeightsSettings,
        publisher: Publisher,
        store: StateStore,
        authority: Authority,
        *,
        budget: Budget,
    ) -> None:
        self.followers = Followers()
        self._host = host
        self._settings = settings
        self._publisher = publisher
        self._store = store
        self._authority = authority
        self._budget = budget
        self._uploads: Counter[PeerId] = Counter()
        self._pace = Pace(settings.max_upload_rate)
        host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Take no more streams; those open go on."""
        self._host.remove_handler(PROTOCOL)

    async def _serve(self, stream: Stream) -> None:
        with contextlib.ExitStack() as held:
            await _Serving(self, stream, self._settings, held).run()

    # --- for one stream -------------------------------------------------------------------------

    def authorise(self, peer_id: PeerId, hello: Hello) -> None:
        """Return if a peer may ask for what its greeting says.

        Raises:
            NotAMemberError: it may not.
        """
        self._authority.authorise(peer_id, hello.run_id, hello.token, hello.scope, wall_time())

    async def head(self, peer_id: PeerId, request: HeadRequest) -> Head:
        """Return the newest version of an expert; see `Publisher.newest` for what is raised."""
        manifest = await self._publisher.newest(
            request.uid, complete=request.complete, codec=request.codec
        )
        now = trio.current_time()
        if request.follow is not None:
            self.followers.receive(request.uid, peer_id, request.follow, now)
        return Head(
            name=manifest.name,
            steps=manifest.steps,
            size=manifest.size,
            followers=tuple(self.followers.of(request.uid, now)),
        )

    def find(self, name: bytes, hello: Hello) -> StoredState:
        """Return a state of the run.

        Raises:
            UnknownExpertError: it is not here.
            PermissionDeniedError: it is for hosts.
        """
        state = self._store.find(name)
        if state is None or state.manifest.uid.run != hello.run_id:
            raise UnknownExpertError("this host has no such state now; ask for the newest version")
        if state.manifest.complete and hello.scope != "host":
            raise PermissionDeniedError(_NOT_COMPLETE)
        return state

    def keeping(self, state: StoredState) -> contextlib.AbstractContextManager[None]:
        """Keep a state while the block runs, whatever newer versions come."""
        return self._store.using(state)

    def report(self, event: WeightsGiven) -> None:
        """Say what a stream was for."""
        self._host.events.emit(event)

    def charge(self, peer_id: PeerId) -> Charge:
        """Begin to charge what a stream of a peer holds; see `Budget.call` for what is raised."""
        return self._budget.call(peer_id)

    @contextlib.contextmanager
    def place(self, peer_id: PeerId) -> Iterator[None]:
        """Have one more stream that chunks are sent on, while the block runs.

        Raises:
            OverloadedError: there are enough.
        """
        if self._uploads[peer_id] >= self._settings.max_uploads_per_peer:
            raise OverloadedError("enough states are being sent to you; wait for one of them")
        if self._uploads.total() >= self._settings.max_uploads:
            raise OverloadedError("this host sends enough states now; try again or elsewhere")
        self._uploads[peer_id] += 1
        try:
            yield
        finally:
            self._uploads[peer_id] -= 1
            if not self._uploads[peer_id]:
                del self._uploads[peer_id]  # a peer without streams leaves no trace

    async def wait_for_more(self, request: HaveRequest) -> None:
        """Wait until there are more chunks of a state than the asker knows of, if it wants that."""
        if request.within:
            with trio.move_on_after(request.within):
                await self._store.wait_for_more(request.name, request.beyond)

    async def read_into(self, state: StoredState, index: int, buffer: memoryview) -> None:
        """Read a chunk of a state into a buffer of its size, when it may go.

        Raises:
            ExpertFailedError: the disk fails.
        """
        at, now = self._pace.reserve(len(buffer), trio.current_time()), trio.current_time()
        if at > now:
            await trio.sleep_until(at)
        try:
            await self._store.read_into(state, index, buffer)
        except StorageError as error:
            raise ExpertFailedError(str(error)) from error


class _Serving:
    """One stream; what it holds is given back when `held` is closed."""

    def __init__(
        self,
        server: WeightsServer,
        stream: Stream,
        settings: WeightsSettings,
        held: contextlib.ExitStack,
    ) -> None:
        self._server = server
        self._stream = stream
        self._settings = settings
        self._held = held
        self._reading: StoredState | None = None  # the state that chunks were last asked of
        self._buffer = memoryview(b"")  # a chunk of it behind its header
        self._told = 0  # what of it the peer was told is here
        self._chunks = self._bytes = 0
        self._began = trio.current_time()

    async def run(self) -> None:
        """Answer until the peer ends the stream, or is silent for too long."""
        data = await self._receive()
        if data is None:
            return
        hello = decode_hello(data)
        try:
            while (data := await self._receive()) is not None:
                try:
                    await self._answer(decode_request(data, hello.run_id), hello)
                except CallError as error:
                    await self._send(encode_reply(Refusal(error=error)))
        finally:
            if self._chunks:
                self._server.report(
                    WeightsGiven(
                        peer_id=self._stream.peer_id,
                        run_id=hello.run_id,
                        chunks=self._chunks,
                        bytes=self._bytes,
                        seconds=trio.current_time() - self._began,
                    )
                )

    async def _answer(self, request: WeightsRequest, hello: Hello) -> None:
        self._server.authorise(self._stream.peer_id, hello)
        match request:
            case HeadRequest():
                wants_more = request.complete or request.follow is not None
                if wants_more and hello.scope != "host":
                    raise PermissionDeniedError(_NOT_COMPLETE)
                head = await self._server.head(self._stream.peer_id, request)
                await self._send(encode_reply(head))
            case ManifestRequest():
                with self._server.charge(self._stream.peer_id) as charge:
                    manifest = self._server.find(request.name, hello).manifest.encode()
                    charge.add(len(manifest))
                    await self._send(encode_reply(Payload(size=len(manifest))), manifest)
            case HaveRequest():
                await self._server.wait_for_more(request)
                state = self._server.find(request.name, hello)
                self._told = state.have
                await self._send(encode_reply(Have(chunks=state.have)))
            case ChunkRequest():
                await self._give(self._server.find(request.name, hello), request.index)

    async def _give(self, state: StoredState, index: int) -> None:
        if state is not self._reading:
            self._begin(state)
        if not state.have >> index & 1:
            raise UnknownExpertError("this host does not have that chunk; ask what it has")
        _, size = state.manifest.span(index)
        await self._server.read_into(state, index, self._buffer[MAX_MESSAGE_BYTES:][:size])
        news = None if state.have == self._told else state.have
        header = encode_reply(Payload(size=size, have=news))
        self._told = state.have
        start = MAX_MESSAGE_BYTES - len(header)
        self._buffer[start:MAX_MESSAGE_BYTES] = header
        await self._send(self._buffer[start : MAX_MESSAGE_BYTES + size])
        self._chunks += 1
        self._bytes += size

    def _begin(self, state: StoredState) -> None:
        """Let go of the state that chunks were asked of before, and hold what this one takes."""
        self._reading, self._buffer = None, memoryview(b"")
        self._held.close()
        peer_id, size = self._stream.peer_id, MAX_MESSAGE_BYTES + state.manifest.chunk_bytes
        with contextlib.ExitStack() as holding:
            holding.enter_context(self._server.place(peer_id))
            holding.enter_context(self._server.charge(peer_id)).add(size)
            holding.enter_context(self._server.keeping(state))
            self._held.push(holding.pop_all())
        self._buffer = memoryview(bytearray(size))
        self._reading = state

    async def _receive(self) -> bytes | None:
        with trio.move_on_after(self._settings.idle_timeout):
            return await self._stream.receive_prefixed(MAX_MESSAGE_BYTES)
        raise StreamResetError(f"the peer asked for nothing for {self._settings.idle_timeout:g} s")

    async def _send(self, header: bytes | memoryview, payload: bytes = b"") -> None:
        with trio.move_on_after(self._settings.chunk_patience) as scope:
            await self._stream.send_all(header)
            if payload:
                await self._stream.send_all(payload)
        if scope.cancelled_caught:
            raise StreamResetError(
                f"the peer took less than an answer in {self._settings.chunk_patience:g} s"
            )
