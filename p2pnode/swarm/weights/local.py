"""This node's side of an expert that moves: where it is hosted, served, announced and found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from p2pnode.config.experts import Codec, OptimizerPolicy
from p2pnode.errors import RemoteError, TransferError
from p2pnode.events import Event
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.service import ExpertHost
from p2pnode.host import Host
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.weights.client import WeightsClient
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.store import StateStore
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class StateAdopted(Event):
    """An expert goes on from a state of another host, as replicas do all the time."""

    level = "debug"

    uid: Uid
    source: PeerId
    steps_before: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExperts:
    """The parts of a node that deal with its experts, put together."""

    host: Host
    directory: ExpertDirectory
    announcer: Announcer
    experts: ExpertHost
    gate: Gate
    publisher: Publisher
    store: StateStore
    client: WeightsClient

    async def hosts(self, uid: Uid, *, anew: bool = False) -> list[PeerId]:
        """List the other hosts that an expert is announced by; asks the DHT if `anew`."""
        look_up = self.directory.look_again if anew else self.directory.hosts
        try:
            found = await look_up(uid)
        except RemoteError:
            return []
        return [each.peer_id for each in found if each.peer_id != self.host.peer_id]

    def codec(self, uid: Uid) -> Codec:
        """Return the codec that is declared for an expert's weights.

        Raises:
            UnknownExpertError: it is not hosted here.
        """
        return find_codec(self.experts.settings(uid).weights_codec)

    async def serve(self, uid: Uid) -> None:
        """Let calls of an expert through, and announce it; returns when others can find it."""
        self.gate.open([uid])
        self.announcer.add([uid])
        await self.announcer.announce()

    def stand_aside(self, uids: Iterable[Uid]) -> None:
        """Refuse calls of some experts, and withdraw them; they stay hosted."""
        uids = list(uids)
        self.gate.close(uids)
        self.announcer.remove(uids)

    async def adopt(
        self,
        uid: Uid,
        name: bytes,
        steps: int,
        holders: Sequence[PeerId],
        *,
        anyway: bool = False,
        keep_own: bool = False,
    ) -> bool:
        """Fetch a state, and let the expert go on from it, if that has taken more steps.

        What fails, or is cancelled, leaves the expert as it was.

        Args:
            uid: the expert, which is hosted here.
            name: the state's name.
            steps: that the first holder says it has taken.
            holders: where to fetch it from.
            anyway: even if the expert has taken as many steps here.
            keep_own: see `ExpertHost.adopt`.

        Returns:
            Whether the expert goes on from it.

        Raises:
            TransferError: it cannot be fetched, or is not what was said.
            StorageError: the disk fails or is full.
            CheckpointError: it does not fit the expert.
            UnknownExpertError: the expert is not hosted here.
        """
        if not self._wants(uid, steps, anyway=anyway):
            await trio.lowlevel.checkpoint()
            return False
        state = await self.client.fetch(uid, name, holders)
        if state.manifest.steps != steps or not state.manifest.complete:
            raise TransferError(
                f"{holders[0]} offered a state of {uid.name} with {steps} steps, and gave another"
                f" one with {state.manifest.steps}"
            )
        with self.store.using(state):
            checkpoint = await self.store.load(state)
        if not self._wants(uid, steps, anyway=anyway):  # it has been trained meanwhile
            return False
        await self.go_on_from(uid, checkpoint, holders[0], optimizer="adopt", keep_own=keep_own)
        return True

    async def go_on_from(
        self,
        uid: Uid,
        checkpoint: Checkpoint,
        source: PeerId,
        *,
        optimizer: OptimizerPolicy,
        keep_own: bool = False,
    ) -> None:
        """Let an expert go on from a state of another host, and make no old version any more.

        Raises:
            CheckpointError: it does not fit the expert.
            UnknownExpertError: the expert is not hosted here.
        """
        before = self.experts.steps(uid)
        await self.experts.adopt(uid, checkpoint, optimizer=optimizer, keep_own=keep_own)
        self.publisher.replaced(uid)
        self.host.events.emit(
            StateAdopted(uid=uid, source=source, steps_before=before, steps=checkpoint.state.steps)
        )

    def _wants(self, uid: Uid, steps: int, *, anyway: bool) -> bool:
        own = self.experts.steps(uid)
        return steps > own or (anyway and steps == own)
