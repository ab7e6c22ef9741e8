"""What the members of a layer's swarm do with weights: publish, fetch and adopt them.

A member publishes its weights, and announces the name that they get. Who wants them fetches them by
that name from all who may have them, and gets a `Checkpoint` whose every byte is what the name
promises. Whether they are any good is up to the caller: nothing is adopted before he says so. Then
the expert goes on from them between two batches.

In which codec weights travel, and what becomes of the optimiser's state, is declared for a run or a
host by `hosting.weights_codec` and `hosting.optimizer_policy`.
"""

from collections.abc import Sequence

from p2pnode.config.experts import OPTIMIZER_POLICIES, Codec, OptimizerPolicy
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.manifest import Manifest
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class WeightsExchange:
    """A node's side of its swarms' weights. Uids have their run's id, not its name.

    Args:
        local: the node's experts.
    """

    def __init__(self, local: LocalExperts) -> None:
        self._local = local

    async def publish(
        self, uid: Uid, codec: Codec | None = None, *, checkpoint: Checkpoint | None = None
    ) -> Manifest:
        """Make a version of a hosted expert that others can fetch; `Manifest.name` is its name.

        Of each expert and codec the last `weights.versions_kept` versions can be fetched. The
        optimiser's state is part of them where the policy is to adopt it.

        Args:
            uid: the expert.
            codec: in which its weights are; by default as declared. Who has scored weights that are
                given away in another codec than `none` has scored others than those that are given.
            checkpoint: the state; by default that which the expert has between two batches.

        Raises:
            UnknownExpertError: it is not hosted here.
            TensorTooLargeError: it is larger than `weights.max_state_bytes`.
            ExpertFailedError: it is not in a state worth keeping.
            NonFiniteError: the checkpoint holds values that the codec has no place for.
            StorageError: the disk fails or is full; nothing is left of the attempt.
        """
        return await self._local.publisher.publish(
            uid,
            complete=self.policy(uid) == "adopt" and (checkpoint is None or checkpoint.complete),
            codec=self._local.codec(uid) if codec is None else codec,
            checkpoint=checkpoint,
        )

    async def fetch(self, uid: Uid, name: bytes, holders: Sequence[PeerId]) -> Checkpoint:
        """Fetch a state by its name, from all holders at once, and read it; nothing is adopted.

        Chunks are verified one by one; who gives a wrong one is reported (`OffenceSeen`) and not
        asked again. What is here already does not travel. While it is fetched, and as long as it is
        kept, this node gives it to others in turn.

        Args:
            uid: whose state it must be.
            name: the state's name.
            holders: who may have it, whole or in part, such as all who announced it or fetch it
                just now; this node, and all beyond `weights.max_sources`, are not asked.

        Raises:
            TransferError: no holder is left, and some of it is missing; what has come is kept, and
                the next `fetch` goes on from there.
            StorageError: the disk fails or is full; nothing is left of the state.
            CheckpointError: what came is not an expert's state.
        """
        local = self._local
        others = [each for each in holders if each != local.host.peer_id]
        state = await local.client.fetch(uid, name, others)
        with local.store.using(state):
            return await local.store.load(state)

    async def adopt(
        self,
        uid: Uid,
        checkpoint: Checkpoint,
        *,
        source: PeerId,
        optimizer: OptimizerPolicy | None = None,
    ) -> None:
        """Let a hosted expert go on from a state that was found good, from the next batch on.

        All of it changes between two batches, or nothing does.

        Args:
            uid: the expert.
            checkpoint: the state.
            source: who announced it, for the event `StateAdopted`.
            optimizer: what becomes of the optimiser's state; by default as declared.

        Raises:
            UnknownExpertError: it is not hosted here.
            CheckpointError: the state does not fit the expert, or is to be adopted with an
                optimiser's state that it does not hold; nothing has changed.
        """
        policy = self.policy(uid) if optimizer is None else optimizer
        await self._local.go_on_from(uid, checkpoint, source, optimizer=policy)

    def policy(self, uid: Uid) -> OptimizerPolicy:
        """Return what is declared to become of an expert's optimiser state.

        Raises:
            UnknownExpertError: it is not hosted here.
        """
        declared = self._local.experts.settings(uid).optimizer_policy
        return next(each for each in OPTIMIZER_POLICIES if each == declared)
