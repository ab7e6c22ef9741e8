"""Where a peer that is behind gets the swarm's weights: an interface, and what fulfils it."""

from collections.abc import Sequence
from typing import Protocol

from p2pnode.errors import TransferError
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.manifest import Manifest
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid


class SwarmWeights(Protocol):
    """Gives and takes complete states of hosted experts, their optimisers included."""

    async def newest(self, uid: Uid) -> Manifest:
        """Publish an expert's state as it is now.

        Raises:
            P2PNodeError: it cannot be published.
        """
        ...

    async def take(self, uid: Uid, name: bytes, holders: Sequence[PeerId], steps: int) -> None:
        """Fetch a state by its name, and let the expert go on from it.

        Raises:
            P2PNodeError: it cannot be fetched, or does not fit; nothing has changed.
        """
        ...

    async def members(self, uid: Uid) -> list[PeerId]:
        """List the other peers that host an expert."""
        ...


class TransferredWeights:
    """`SwarmWeights` by `/p2pnode/weights/1.0.0`.

    Args:
        local: the node's experts.
    """

    def __init__(self, local: LocalExperts) -> None:
        self._local = local
        self._exchange = WeightsExchange(local)

    async def newest(self, uid: Uid) -> Manifest:
        """See `SwarmWeights`."""
        return await self._local.publisher.newest(uid, complete=True, exact=True)

    async def take(self, uid: Uid, name: bytes, holders: Sequence[PeerId], steps: int) -> None:
        """See `SwarmWeights`."""
        checkpoint = await self._exchange.fetch(uid, name, holders)
        if checkpoint.state.steps != steps or not checkpoint.complete:
            raise TransferError(f"{holders[0]} gave another state of {uid.name} than it had told")
        await self._exchange.adopt(uid, checkpoint, source=holders[0], optimizer="adopt")

    async def members(self, uid: Uid) -> list[PeerId]:
        """See `SwarmWeights`."""
        return await self._local.hosts(uid, anew=True)
