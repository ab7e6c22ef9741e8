"""Takes states of experts from other hosts: `/p2pnode/weights/1.0.0`.

A state is fetched by its name from all holders at once. Every chunk is verified before it is kept;
a holder that sends a wrong one is reported and not asked again. What has come stays on the disk
when a fetch fails or is cancelled, and the next one goes on from there.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import WeightsSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import ProtocolError, RemoteError, StorageError, TransferError
from p2pnode.events import Event, EventBus
from p2pnode.host import PeerMisbehaved
from p2pnode.host.pacing import Pace
from p2pnode.rpc.access import Access
from p2pnode.rpc.budget import Budget
from p2pnode.swarm.gossip.reputation import Offence, OffenceSeen
from p2pnode.swarm.weights.manifest import Manifest, hash_of
from p2pnode.swarm.weights.messages import PROTOCOL, Head, HeadRequest
from p2pnode.swarm.weights.session import WeightsSession, greeted
from p2pnode.swarm.weights.store import StateStore, StoredState
from p2pnode.swarm.weights.transfer import Transfer, listed
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_NO_MANIFEST: Final = "a manifest is not what its name says"


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
        budget: of what peers make this node hold; the node's, as `TensorServer` has it.
    """

    def __init__(
        self,
        access: Access,
        settings: WeightsSettings,
        store: StateStore,
        events: EventBus,
        rng: random.Random,
        *,
        budget: Budget,
    ) -> None:
        self._access = access
        self._settings = settings
        self._store = store
        self._budget = budget
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
                await self._transfer(uid, state, holders)
        except StorageError:
            await self._store.drop(state)  # room for others
            raise
        return state

    async def _manifest(self, uid: Uid, name: bytes, holders: Sequence[PeerId]) -> Manifest:
        failures: list[str] = []
        for peer_id in holders:
            try:
                with self._budget.call(peer_id) as charge:
                    async with self.session(peer_id, uid.run) as session:
                        data = await session.manifest(name, charge)
                    if hash_of(data) != name:
                        self._accuse(peer_id, _NO_MANIFEST)
                        failures.append(f"{peer_id}: {_NO_MANIFEST}")
                        continue
                    manifest = Manifest.decode(data)
            except ProtocolError as error:
                self._report(peer_id, str(error))
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
        raise TransferError(f"nobody tells what the state of {uid.name} is: {listed(failures)}")

    async def _transfer(self, uid: Uid, state: StoredState, holders: Sequence[PeerId]) -> None:
        reused, began = state.have.bit_count(), trio.current_time()
        transfer = Transfer(
            state,
            self._store,
            self._settings,
            self._rng,
            budget=self._budget,
            session=lambda peer_id: self.session(peer_id, uid.run),
            report=self._report,
            accuse=self._accuse,
            pace=self._wait_for_pace,
        )
        await transfer.run(holders)
        self._events.emit(
            WeightsFetched(
                uid=uid,
                steps=state.manifest.steps,
                bytes=transfer.bytes,
                reused=reused,
                sources=len(set(holders)),
                seconds=trio.current_time() - began,
            )
        )

    def _report(self, peer_id: PeerId, reason: str) -> None:
        """Say that a peer broke a rule."""
        self._events.emit(
            PeerMisbehaved(peer_id=peer_id, address=None, reason=f"{PROTOCOL}: {reason}")
        )

    def _accuse(self, peer_id: PeerId, reason: str) -> None:
        """Say that a peer gave other bytes than it was asked for."""
        self._events.emit(
            OffenceSeen(
                peer_id=peer_id,
                address=None,
                reason=f"{PROTOCOL}: {reason}",
                offence=Offence.WRONG_CHUNK,
            )
        )

    async def _wait_for_pace(self, size: int) -> None:
        """Wait until so many bytes may be asked for."""
        now = trio.current_time()
        at = self._pace.reserve(size, now)
        if at > now:
            await trio.sleep_until(at)
