"""What a trainer runs: a DHT client, and the calls on top of it.

A trainer hosts nothing and listens nowhere, so that any machine with an outgoing connection can
train: it is a client of the DHT, never in anybody's routing table and never dialled.
"""

import dataclasses
import random
from collections.abc import Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.config import Settings
from p2pnode.errors import NoPeersError
from p2pnode.host import Host
from p2pnode.protocols.kad.service import KadDht
from p2pnode.rpc.client import TensorClient
from p2pnode.security.tokens import Membership, verify_token
from p2pnode.swarm.index import NAMESPACE, IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.wire.peer_id import PeerId


def _verify_host(token: bytes, run_id: str, peer_id: PeerId, now: float) -> float:
    return verify_token(token, run_id, peer_id, "host", now)


async def run_session(
    host: Host,
    bootstrap: Sequence[tuple[PeerId, Multiaddr]],
    membership: Membership,
    settings: Settings,
    *,
    rng: random.Random,
    task_status: trio.TaskStatus[ExpertCaller] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Join the DHT and report an `ExpertCaller`; run until cancelled.

    Args:
        host: the network, already running.
        bootstrap: peers to join through.
        membership: of the run to train in.
        settings: limits and intervals.
        rng: the source of chance.
        task_status: is told the caller once the DHT is joined.

    Raises:
        NoPeersError: none of the bootstrap peers answers in time.
    """
    index = IndexValidator(_verify_host)
    dht_settings = dataclasses.replace(settings.dht, server=False)
    dht = KadDht(host, dht_settings, rng, {NAMESPACE: index})
    async with trio.open_nursery() as nursery:
        await nursery.start(dht.run)
        await _join(dht, bootstrap, settings.node.bootstrap_timeout)
        caller = ExpertCaller(
            host,
            ExpertDirectory(host, dht, index, settings.swarm),
            TensorClient(host, settings.rpc, {membership.name: membership}),
            membership.run_id,
            settings=settings,
            rng=rng,
        )
        task_status.started(caller)


async def _join(dht: KadDht, bootstrap: Sequence[tuple[PeerId, Multiaddr]], timeout: float) -> None:
    with trio.move_on_after(timeout) as scope:
        await dht.bootstrap(bootstrap)
    if scope.cancelled_caught:
        tried = ", ".join(f"{address}/p2p/{peer_id}" for peer_id, address in bootstrap)
        raise NoPeersError(f"no bootstrap peer answered within {timeout:g} s: {tried}")
