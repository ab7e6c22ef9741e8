"""Calls of one peer of a swarm: those by which it is judged, and those nobody waits for long."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import torch
import trio

from p2pnode.errors import (
    BehindError,
    HostLostError,
    OverloadedError,
    RemoteError,
    StepLostError,
    StepUnderWayError,
)
from p2pnode.rpc.schema import TensorMeta
from p2pnode.swarm.splitting.client import SplitClient
from p2pnode.swarm.splitting.messages import SplitReply, SplitRequest
from p2pnode.trainer.judged import JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.splitting.work import Work
from p2pnode.wire.peer_id import PeerId

T = TypeVar("T")


class PeerCalls:
    """Makes split calls of single peers.

    Args:
        judged: judges the peers by how their calls end.
        client: makes the calls.
        patience: seconds for an answer that does not matter.
    """

    def __init__(self, judged: JudgedClient, client: SplitClient, patience: float) -> None:
        self._judged = judged
        self._client = client
        self._patience = patience

    async def tell_behind(self, work: Work, peers: Sequence[PeerId]) -> None:
        """Tell peers that their weights are not those of most."""
        await self.tell(peers, SplitRequest(operation="behind", uid=work.uid))

    async def tell(self, peers: Sequence[PeerId], request: SplitRequest) -> None:
        """Tell several peers something; whether they hear it does not matter to us."""

        async def tell(peer_id: PeerId) -> None:
            try:
                await self._client.ask(peer_id, request, timeout=self._patience)
            except RemoteError:
                return

        async with trio.open_nursery() as nursery:
            for peer_id in peers:
                nursery.start_soon(tell, peer_id)

    async def ask(
        self,
        work: Work,
        peer_id: PeerId,
        request: SplitRequest,
        tensors: Sequence[torch.Tensor] = (),
        *,
        expected: tuple[TensorMeta, ...] = (),
    ) -> tuple[SplitReply, list[torch.Tensor]]:
        """Make one call, by whose outcome the peer is judged.

        Raises:
            RemoteError: as `SplitClient.ask`.
        """

        async def call(limit: float) -> tuple[SplitReply, list[torch.Tensor]] | RemoteError:
            try:
                return await self._client.ask(
                    peer_id, request, tensors, timeout=limit, expected=expected
                )
            except (BehindError, StepLostError, StepUnderWayError) as error:
                return error  # the peer itself is well
            except OverloadedError as error:
                if request.operation != "prepare":
                    raise
                return error  # another peer of the group has failed

        answer = await self._judged.judge(
            peer_id, work.uid, work.give_up_at(), Attempt(), call, timed=False
        )
        if isinstance(answer, RemoteError):
            raise answer
        return answer


async def twice(ask: Callable[[], Awaitable[T]]) -> T:
    """Make a call that counts once however often it is made, again if its answer may be lost."""
    try:
        return await ask()
    except HostLostError:
        return await ask()
