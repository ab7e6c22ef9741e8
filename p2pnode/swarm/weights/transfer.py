"""One state being fetched, from several holders at once.

There is a task for each holder, around the `Download` they share, and one more that looks at what
has come. It hands all that is there to the worker at once, which hashes and writes it. Meanwhile
the next chunks are decrypted right into other buffers.
"""

import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import WeightsSettings
from p2pnode.errors import (
    OverloadedError,
    P2PNodeError,
    ProtocolError,
    RemoteError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.rpc.budget import Budget, Charge
from p2pnode.swarm.weights.core import Download
from p2pnode.swarm.weights.messages import ChunkRequest
from p2pnode.swarm.weights.session import WeightsSession
from p2pnode.swarm.weights.store import StateStore, StoredState
from p2pnode.wire.peer_id import PeerId

BUFFERS: Final = 2  # chunks of one holder: one is looked at while the other is received
NO_ROOM: Final = (
    "this node's memory for what comes from that peer is full; raise rpc.max_bytes_in_flight and"
    " rpc.max_bytes_in_flight_per_peer, or try again later"
)
_LISTED: Final = 3  # failures in one sentence


class _Holder:
    """One holder: what it was asked for, and where that goes.

    Args:
        peer_id: the holder.
        chunk_bytes: of a buffer.
        open_charge: begins to charge it, for as long as the transfer goes on.
    """

    def __init__(
        self, peer_id: PeerId, chunk_bytes: int, open_charge: Callable[[], Charge]
    ) -> None:
        self.peer_id = peer_id
        self.scope = trio.CancelScope()  # what is done with it
        self.asked: deque[int] = deque()
        self.wrong = ""  # what it did that ends all that is done with it
        self._chunk_bytes = chunk_bytes
        self._open_charge = open_charge
        self._charge: Charge | None = None
        self._made = 0  # buffers
        self._free, self._buffers = trio.open_memory_channel[memoryview](BUFFERS)

    def make_room(self) -> None:
        """See to it that there is a buffer, before anything is asked for.

        Raises:
            OverloadedError: the holder's or the node's budget has no room for one.
        """
        if not self._made:
            self._make()

    async def buffer(self) -> memoryview:
        """Return a buffer for a chunk, when one is free."""
        if self._made < BUFFERS and not self._buffers.statistics().current_buffer_used:
            with contextlib.suppress(OverloadedError):  # the one there is does, if slower
                self._make()
        return await self._buffers.receive()

    def give_back(self, buffer: memoryview) -> None:
        """Let a buffer be used again."""
        self._free.send_nowait(buffer)

    def _make(self) -> None:
        try:
            if self._charge is None:
                self._charge = self._open_charge()
            self._charge.add(self._chunk_bytes)
        except OverloadedError as error:
            raise OverloadedError(NO_ROOM) from error
        self._made += 1
        self._free.send_nowait(memoryview(bytearray(self._chunk_bytes)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """A chunk that was sent, and that nobody has looked at yet."""

    holder: _Holder
    index: int
    buffer: memoryview
    size: int


class Transfer:
    """One state being fetched.

    Args:
        state: what is there of it; nobody else may write to it.
        store: where it is.
        settings: limits and timeouts.
        rng: draws the order of chunks.
        budget: is charged for the buffers, each to the holder that fills it.
        session: opens a stream to a holder.
        report: is told of holders that broke a rule.
        accuse: is told of holders that gave a wrong chunk, which cannot happen by chance.
        pace: waits until so many bytes may be asked for.
    """

    def __init__(
        self,
        state: StoredState,
        store: StateStore,
        settings: WeightsSettings,
        rng: random.Random,
        *,
        budget: Budget,
        session: Callable[[PeerId], AbstractAsyncContextManager[WeightsSession]],
        report: Callable[[PeerId, str], None],
        accuse: Callable[[PeerId, str], None],
        pace: Callable[[int], Awaitable[None]],
    ) -> None:
        self.bytes = 0  # that have come, of chunks
        self._state = state
        self._store = store
        self._settings = settings
        self._rng = rng
        self._budget = budget
        self._held = contextlib.ExitStack()  # what is charged for buffers
        self._session = session
        self._report = report
        self._tell_wrong = accuse
        self._pace = pace
        self._download: Download[PeerId] = Download(state.manifest.chunks, state.have, rng.random)
        self._changed = trio.Event()
        self._failures: list[str] = []
        self._storage_error: StorageError | None = None

    async def run(self, holders: Sequence[PeerId]) -> None:
        """Fetch until nothing is missing.

        Raises:
            TransferError: no holder is left, and something is.
            StorageError: the disk fails or is full.
        """
        with self._held:
            await self._run(list(dict.fromkeys(holders)))
        if self._storage_error is not None:
            raise self._storage_error
        if not self._download.is_complete:
            raise TransferError(
                f"the state of {self._state.manifest.uid.name} did not come whole:"
                f" {listed(self._failures)}"
            )

    async def _run(self, wanted: Sequence[PeerId]) -> None:
        send, arrivals = trio.open_memory_channel[_Arrival](max(1, BUFFERS * len(wanted)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look, arrivals, nursery.cancel_scope)
            async with send, trio.open_nursery() as using:
                for peer_id in wanted:
                    using.start_soon(self._use, self._holder(peer_id), send)

    def _holder(self, peer_id: PeerId) -> _Holder:
        return _Holder(
            peer_id,
            self._state.manifest.chunk_bytes,
            lambda: self._held.enter_context(self._budget.call(peer_id)),
        )

    # --- what has come --------------------------------------------------------------------------

    async def _look(
        self, arrivals: trio.MemoryReceiveChannel[_Arrival], scope: trio.CancelScope
    ) -> None:
        """Keep what is right, and end what is done with holders of what is not."""
        async for first in arrivals:
            arrived = [first]
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    arrived.append(arrivals.receive_nowait())
            pieces = [
                (each.index, self._download.places(each.index), each.buffer[: each.size])
                for each in arrived
            ]
            try:
                verdicts = await self._store.check_and_write(self._state, pieces)
            except StorageError as error:
                self._storage_error = error
                scope.cancel()
                return
            for each, is_right in zip(arrived, verdicts, strict=True):
                if is_right:
                    self._keep(each)
                else:
                    self._accuse(each)
            if self._download.is_complete:
                scope.cancel()
            self._wake()

    def _keep(self, arrival: _Arrival) -> None:
        peer_id = arrival.holder.peer_id
        self._download.receive_chunk(peer_id, arrival.index, trio.current_time())
        self._state.add(self._download.have)
        arrival.holder.give_back(arrival.buffer)

    def _accuse(self, arrival: _Arrival) -> None:
        holder = arrival.holder
        if not holder.wrong:
            holder.wrong = f"chunk {arrival.index} is not what its hash says"
            self._tell_wrong(holder.peer_id, holder.wrong)
            self._failures.append(f"{holder.peer_id}: {holder.wrong}")
        holder.scope.cancel()

    # --- one holder -----------------------------------------------------------------------------

    async def _use(self, holder: _Holder, send: trio.MemorySendChannel[_Arrival]) -> None:
        """Take what one holder gives until nothing is missing, or it is of no use any more."""
        peer_id = holder.peer_id
        with holder.scope:
            for _ in range(self._settings.busy_tries):
                holder.asked.clear()
                try:
                    await self._pull(holder, send)
                except (OverloadedError, UnknownExpertError) as error:  # it may yet have it
                    failure: P2PNodeError = error
                except RemoteError as error:
                    if isinstance(error, ProtocolError):
                        self._report(peer_id, str(error))
                    self._failures.append(f"{peer_id}: {error}")
                    return
                else:
                    return
                finally:
                    self._download.receive_loss(peer_id)
                    self._wake()
                await trio.sleep(self._settings.busy_pause * self._rng.uniform(0.5, 1.5))
            self._failures.append(f"{peer_id}: {failure}")

    async def _pull(self, holder: _Holder, send: trio.MemorySendChannel[_Arrival]) -> None:
        """Take all that a holder has and others do not bring.

        Raises:
            TransferError: it has had nothing for a while that is missing.
            OverloadedError: it has no room for us, or we have none for what it sends.
        """
        name, pause = self._state.manifest.name, self._settings.busy_pause
        download, peer_id, idle = self._download, holder.peer_id, 0
        holder.make_room()
        async with self._session(peer_id) as session:
            download.receive_have(peer_id, await session.have(name, within=pause))
            while not download.is_complete:
                await self._ask(session, holder)
                if holder.asked:
                    await self._receive(session, holder, send)
                    idle = 0
                    continue
                known = download.chunks_of(peer_id)
                if download.has_all(peer_id):  # others get on, or are late
                    with trio.move_on_after(pause) as scope:
                        await self._changed.wait()
                    idle += scope.cancelled_caught
                else:
                    chunks = await session.have(name, beyond=known.bit_count(), within=pause)
                    download.receive_have(peer_id, chunks)
                    idle = 0 if chunks != known else idle + 1
                if idle >= self._settings.busy_tries:
                    raise TransferError("it has nothing that is missing")

    async def _ask(self, session: WeightsSession, holder: _Holder) -> None:
        """Ask for some more chunks, once half of those asked for have come."""
        ahead = self._settings.requests_ahead
        if len(holder.asked) > ahead // 2:
            return
        requests, size = [], 0
        while len(holder.asked) < ahead:
            index = self._download.next_chunk(holder.peer_id, trio.current_time())
            if index is None:
                break
            holder.asked.append(index)
            requests.append(ChunkRequest(name=self._state.manifest.name, index=index))
            size += self._state.manifest.span(index)[1]
        if requests:
            await self._pace(size)
            await session.ask(*requests)

    async def _receive(
        self, session: WeightsSession, holder: _Holder, send: trio.MemorySendChannel[_Arrival]
    ) -> None:
        buffer = await holder.buffer()
        index = holder.asked.popleft()
        size = self._state.manifest.span(index)[1]
        try:
            news = await session.chunk(buffer[:size])
        except BaseException:
            holder.give_back(buffer)
            raise
        self.bytes += size
        if news is not None:
            self._download.receive_have(holder.peer_id, news)
        send.send_nowait(_Arrival(holder=holder, index=index, buffer=buffer, size=size))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def listed(failures: Sequence[str]) -> str:
    """Say in a few words what failed."""
    return "; ".join(failures[:_LISTED]) or "no holder is known"
