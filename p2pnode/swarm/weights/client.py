"""Takes states of experts from other hosts: `/p2pnode/weights/1.0.0`.

A state is fetched by its name from all holders at once. Every chunk is verified before it is kept;
a holder that sends a wrong one is reported and not asked again. What has come stays on the disk
when a fetch fails or is cancelled, and the next one goes on from there.
"""

import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from p2pnode.config import WeightsSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import (
    DeadlineExceededError,
    OverloadedError,
    P2PNodeError,
    ProtocolError,
    ProtocolNotSupportedError,
    RemoteError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.events import Event, EventBus
from p2pnode.host import PeerMisbehaved, Stream
from p2pnode.host.pacing import Pace
from p2pnode.rpc.access import Access
from p2pnode.swarm.weights.core import Download
from p2pnode.swarm.weights.manifest import Manifest, hash_of
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
    WeightsReply,
    WeightsRequest,
    decode_reply,
    encode_hello,
    encode_request,
)
from p2pnode.swarm.weights.store import StateStore, StoredState
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

R = TypeVar("R", bound=WeightsReply)

_LISTED: Final = 3  # failures in one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFetched(Event):
    """A state has come, from `sources` holders; `reused` chunks were here already."""

    uid: Uid
    steps: int
    bytes: int  # of the chunks that travelled, those that came twice included
    reused: int
    sources: int
    seconds: float


class WeightsClient:
    """Asks other hosts for states.

    Args:
        access: the way to other hosts.
        settings: limits and timeouts.
        store: where what is fetched is kept.
        events: where `WeightsFetched` and misbehaviour are told.
        rng: draws the order of chunks.
    """

    def __init__(
        self,
        access: Access,
        settings: WeightsSettings,
        store: StateStore,
        events: EventBus,
        rng: random.Random,
    ) -> None:
        self._access = access
        self._settings = settings
        self._store = store
        self._events = events
        self._rng = rng
        self._pace = Pace(settings.max_download_rate)
        self._turns: dict[bytes, trio.Lock] = {}  # by the name of a state being fetched

    @contextlib.asynccontextmanager
    async def session(self, peer_id: PeerId, run_id: str) -> AsyncIterator["WeightsSession"]:
        """Open a stream to ask a peer for states of one run; see `greeted` for what it raises."""
        async with greeted(self._access, peer_id, run_id, PROTOCOL) as (stream, greeting):
            yield WeightsSession(stream, self._settings, greeting)

    async def head(
        self,
        peer_id: PeerId,
        uid: Uid,
        *,
        complete: bool = True,
        codec: Codec = "none",
        follow: float | None = None,
    ) -> Head:
        """Ask a host for its newest version of an expert.

        Args:
            peer_id: the host.
            uid: the expert.
            complete: with the optimiser's state, or only the weights.
            codec: in which the weights are wanted.
            follow: after how many seconds a replica, which this node is then, asks again.

        Raises:
            UnknownExpertError: it does not host the expert.
            RemoteError: it cannot be asked.
        """
        async with self.session(peer_id, uid.run) as session:
            return await session.head(
                HeadRequest(uid=uid, complete=complete, codec=codec, follow=follow)
            )

    async def fetch(self, uid: Uid, name: bytes, holders: Sequence[PeerId]) -> StoredState:
        """Fetch a state, from all holders at once; what is here of it already does not travel.

        Args:
            uid: whose state it must be.
            name: the state's name.
            holders: who may have it, whole or in part; so many as `max_sources` are asked.

        Raises:
            TransferError: no holder is left, and some of it is missing; what has come is kept.
            StorageError: the disk fails or is full; nothing is left of the state.
        """
        turn = self._turns.setdefault(name, trio.Lock())
        try:
            async with turn:
                state = self._store.find(name)
                if state is None or not state.is_whole:
                    state = await self._fetch(uid, name, holders[: self._settings.max_sources])
                return state
        finally:
            if not turn.statistics().tasks_waiting and not turn.locked():
                self._turns.pop(name, None)

    async def _fetch(self, uid: Uid, name: bytes, holders: Sequence[PeerId]) -> StoredState:
        manifest = await self._manifest(uid, name, holders)
        state = await self._store.begin(manifest)
        try:
            with self._store.using(state):
                await _Transfer(self, state, self._settings, self._rng).run(holders)
        except StorageError:
            await self._store.drop(state)  # room for others
            raise
        return state

    async def _manifest(self, uid: Uid, name: bytes, holders: Sequence[PeerId]) -> Manifest:
        failures: list[str] = []
        for peer_id in holders:
            try:
                async with self.session(peer_id, uid.run) as session:
                    data = await session.manifest(name)
                manifest = Manifest.decode(data)
            except ProtocolError as error:
                self.report(peer_id, str(error))
                failures.append(f"{peer_id}: {error}")
            except RemoteError as error:
                failures.append(f"{peer_id}: {error}")
            else:
                size = max(manifest.size, manifest.layout.decoded_size)
                if manifest.uid != uid or size > self._settings.max_state_bytes:
                    raise TransferError(
                        f"the state offered for {uid.name} is of {manifest.uid.name} and has"
                        f" {size} bytes; weights.max_state_bytes allows"
                        f" {self._settings.max_state_bytes}"
                    )
                return manifest
        raise TransferError(f"nobody tells what the state of {uid.name} is: {_listed(failures)}")

    # --- for one transfer -----------------------------------------------------------------------

    @property
    def store(self) -> StateStore:
        """Where what is fetched is kept."""
        return self._store

    def report(self, peer_id: PeerId, reason: str) -> None:
        """Say that a peer broke a rule."""
        self._events.emit(
            PeerMisbehaved(peer_id=peer_id, address=None, reason=f"{PROTOCOL}: {reason}")
        )

    def emit(self, event: WeightsFetched) -> None:
        """Say that a state has come."""
        self._events.emit(event)

    async def pace(self, size: int) -> None:
        """Wait until so many bytes may be asked for."""
        await trio.sleep_until(self._pace.reserve(size, trio.current_time()))


@contextlib.asynccontextmanager
async def greeted(
    access: Access, peer_id: PeerId, run_id: str, protocol: str
) -> AsyncIterator[tuple[Stream, bytes]]:
    """Open a stream for one run, and give it with the greeting that it has to begin with.

    Raises:
        NotAMemberError: this node is no member of the run.
        DialError: the peer cannot be reached, or only over a relay that carries too little.
        UnknownExpertError: it does not speak the protocol.
        RemoteError: the stream failed.
    """
    membership = access.membership(run_id)
    connection = await access.connect(peer_id)
    stream = await connection.open_stream([protocol])
    done = False
    try:
        hello = Hello(
            run_id=run_id,
            scope="host" if "host" in membership.scopes else "train",
            token=membership.token,
        )
        yield stream, encode_hello(hello)
        done = True
    except ProtocolNotSupportedError as error:
        raise UnknownExpertError(f"{peer_id} hosts no experts") from error
    finally:
        if not done:
            stream.reset()
    await stream.aclose()


class WeightsSession:
    """One stream to one holder; questions are answered in their order.

    All methods raise, besides what each says, `DeadlineExceededError` when the answer takes too
    long, `ProtocolError` when it is none, the holder's own `CallError`, and `StreamResetError` or
    `ConnectionClosedError` when it is lost.
    """

    def __init__(self, stream: Stream, settings: WeightsSettings, greeting: bytes) -> None:
        self._stream = stream
        self._settings = settings
        self._unsent = greeting  # goes with the first question

    async def head(self, request: HeadRequest) -> Head:
        """Ask for the newest version of an expert."""
        await self.ask(request)
        return await self._reply(Head, self._settings.request_timeout)

    async def manifest(self, name: bytes) -> bytes:
        """Ask what a state is made of; the hash of the answer is the name.

        Raises:
            ProtocolError: it is not.
        """
        await self.ask(ManifestRequest(name=name))
        payload = await self._reply(Payload, self._settings.request_timeout)
        with self._within(self._settings.request_timeout):
            data = await self._stream.receive_exactly(payload.size)
        if hash_of(data) != name:
            raise ProtocolError("a manifest is not what its name says")
        return data

    async def have(self, name: bytes) -> int:
        """Ask which chunks of a state the holder has; returns the set of them."""
        await self.ask(HaveRequest(name=name))
        return (await self._reply(Have, self._settings.request_timeout)).chunks

    async def chunk(self, buffer: memoryview) -> None:
        """Receive the chunk that was asked for first into `buffer`, which has its size.

        Raises:
            ProtocolError: it has another size.
        """
        payload = await self._reply(Payload, self._settings.chunk_patience)
        if payload.size != len(buffer):
            raise ProtocolError(f"a chunk has {payload.size} bytes instead of {len(buffer)}")
        with self._within(self._settings.chunk_patience):
            await self._stream.receive_into(buffer)

    async def ask(self, request: WeightsRequest) -> None:
        """Send a question without waiting for its answer."""
        data, self._unsent = self._unsent + encode_request(request), b""
        with self._within(self._settings.request_timeout):
            await self._stream.send_all(data)

    async def _reply(self, kind: type[R], timeout: float) -> R:
        with self._within(timeout):
            data = await self._stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if data is None:
            raise ProtocolError("the holder ended the stream instead of answering")
        reply = decode_reply(data)
        if isinstance(reply, Refusal):
            raise reply.error
        if not isinstance(reply, kind):
            raise ProtocolError("the holder answered another question than the one asked")
        return reply

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        with trio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"the holder did not answer within {seconds:g} s")


class _Transfer:
    """One state being fetched: a task for each holder, around the `Download` they share."""

    def __init__(
        self,
        client: WeightsClient,
        state: StoredState,
        settings: WeightsSettings,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._state = state
        self._settings = settings
        self._rng = rng
        self._reused = state.have.bit_count()
        self._download: Download[PeerId] = Download(state.manifest.chunks, state.have, rng.random)
        self._changed = trio.Event()
        self._failures: list[str] = []
        self._storage_error: StorageError | None = None
        self._bytes = 0

    async def run(self, holders: Sequence[PeerId]) -> None:
        """Fetch until nothing is missing.

        Raises:
            TransferError: no holder is left, and something is.
            StorageError: the disk fails or is full.
        """
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for peer_id in dict.fromkeys(holders):
                nursery.start_soon(self._use, peer_id, nursery.cancel_scope)
        if self._storage_error is not None:
            raise self._storage_error
        uid = self._state.manifest.uid
        if not self._download.is_complete:
            raise TransferError(
                f"the state of {uid.name} did not come whole: {_listed(self._failures)}"
            )
        self._client.emit(
            WeightsFetched(
                uid=uid,
                steps=self._state.manifest.steps,
                bytes=self._bytes,
                reused=self._reused,
                sources=len(set(holders)),
                seconds=trio.current_time() - began,
            )
        )

    async def _use(self, peer_id: PeerId, scope: trio.CancelScope) -> None:
        """Take what one holder gives until nothing is missing, or it is of no use any more."""
        for _ in range(self._settings.busy_tries):
            try:
                await self._pull(peer_id)
                break
            except (OverloadedError, UnknownExpertError) as error:  # it may yet have it
                failure: P2PNodeError = error
            except StorageError as error:
                self._storage_error = error
                scope.cancel()
                return
            except RemoteError as error:
                if isinstance(error, ProtocolError):
                    self._client.report(peer_id, str(error))
                self._failures.append(f"{peer_id}: {error}")
                return
            finally:
                self._download.receive_loss(peer_id)
                self._wake()
            await trio.sleep(self._settings.busy_pause * self._rng.uniform(0.5, 1.5))
        else:
            self._failures.append(f"{peer_id}: {failure}")
        if self._download.is_complete:
            scope.cancel()

    async def _pull(self, peer_id: PeerId) -> None:
        """Take all that a holder has and others do not bring.

        Raises:
            TransferError: it has had nothing for a while that is missing.
        """
        name, idle = self._state.manifest.name, 0
        pause = self._settings.busy_pause
        async with self._client.session(peer_id, self._state.manifest.uid.run) as session:
            self._download.receive_have(peer_id, await session.have(name))
            asked_at = trio.current_time()
            asked: deque[int] = deque()
            buffer = memoryview(bytearray(self._state.manifest.chunk_bytes))
            while not self._download.is_complete:
                await self._ask(session, peer_id, asked)
                if asked:
                    await self._receive(session, peer_id, asked.popleft(), buffer)
                    self._wake()
                    idle = 0
                    continue
                with trio.move_on_at(asked_at + pause):  # others get on, or are late
                    await self._changed.wait()
                if trio.current_time() >= asked_at + pause:
                    idle += 1
                    if idle >= self._settings.busy_tries:
                        raise TransferError("it has nothing that is missing")
                    self._download.receive_have(peer_id, await session.have(name))
                    asked_at = trio.current_time()

    async def _ask(self, session: WeightsSession, peer_id: PeerId, asked: deque[int]) -> None:
        while len(asked) < self._settings.requests_ahead:
            index = self._download.next_chunk(peer_id, trio.current_time())
            if index is None:
                return
            asked.append(index)
            await self._client.pace(self._state.manifest.span(index)[1])
            await session.ask(ChunkRequest(name=self._state.manifest.name, index=index))

    async def _receive(
        self, session: WeightsSession, peer_id: PeerId, index: int, buffer: memoryview
    ) -> None:
        data = buffer[: self._state.manifest.span(index)[1]]
        await session.chunk(data)
        self._bytes += len(data)
        places = self._download.places(index)
        if not await self._client.store.check_and_write(self._state, index, places, data):
            raise ProtocolError(f"chunk {index} is not what its hash says")
        self._download.receive_chunk(peer_id, index, trio.current_time())
        self._state.have = self._download.have

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _listed(failures: Sequence[str]) -> str:
    return "; ".join(failures[:_LISTED]) or "no holder is known"
