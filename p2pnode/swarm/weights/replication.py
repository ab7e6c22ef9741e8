"""Everything by which the states of a node's experts move, put together."""

import random
from collections.abc import Iterable
from pathlib import Path

import trio

from p2pnode.config import Settings
from p2pnode.experts.runtime import Compute
from p2pnode.experts.service import ExpertHost
from p2pnode.host import Host
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.weights.client import WeightsClient
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.following import Following
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.handover import Handovers
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.server import WeightsServer
from p2pnode.swarm.weights.store import StateStore
from p2pnode.wire.uids import Uid


class Replication:
    """Gives states, follows those of others, and hands experts over, while `run` runs.

    Attributes:
        exchange: what the rounds of a swarm do with weights.
        local: the node's experts, as all parts here see them.

    Args:
        host: the network.
        directory: says who hosts an expert.
        announcer: says what is served here.
        experts: what is hosted here.
        gate: between the experts and their callers.
        authority: says who may ask.
        budget: of what peers make this node hold; the node's, as `TensorServer` has it.
        access: the way to other hosts.
        states: the directory of states that are given or fetched; nobody else's.
        settings: limits and intervals.
        rng: the source of chance.
        disk: the worker that reads and writes states, a thread by default.
    """

    def __init__(
        self,
        host: Host,
        *,
        directory: ExpertDirectory,
        announcer: Announcer,
        experts: ExpertHost,
        gate: Gate,
        authority: Authority,
        budget: Budget,
        access: Access,
        states: Path,
        settings: Settings,
        rng: random.Random,
        disk: Compute | None = None,
    ) -> None:
        self._store = StateStore(states, settings.weights, disk=disk)
        publisher = Publisher(experts, self._store)
        client = WeightsClient(
            access, settings.weights, self._store, host.events, rng, budget=budget
        )
        self.local = LocalExperts(
            host=host,
            directory=directory,
            announcer=announcer,
            experts=experts,
            gate=gate,
            publisher=publisher,
            store=self._store,
            client=client,
        )
        self.exchange = WeightsExchange(self.local)
        self._following = Following(self.local, settings.hosting)
        self._server = WeightsServer(
            host, settings.weights, publisher, self._store, authority, budget=budget
        )
        self._handovers = Handovers(
            self.local,
            self._following,
            self._server.followers,
            authority=authority,
            access=access,
            settings=settings,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the replicas, and serve states, until cancelled.

        Raises:
            StorageError: the directory of states cannot be used.
        """
        await self._store.open()
        try:
            await self._following.run(task_status=task_status)
        finally:
            self._server.close()
            self._handovers.close()
            with trio.CancelScope(shield=True):  # a few files are deleted
                await self._store.close()

    def stands_by(self, uid: Uid) -> bool:
        """Whether an expert is a replica that others do not call."""
        return uid in self._following

    def stand_by(self, uid: Uid, *, has_state: bool) -> None:
        """Keep an expert as a replica; `has_state` says whether it could be served as it is."""
        self._following.add(uid, has_state=has_state)

    async def serve(self, uids: Iterable[Uid]) -> None:
        """Serve experts, after those have been asked who serve them already.

        Those for whose newer state the disk has no room, and that have learnt nothing here, stand
        by until it has: they would begin with fresh weights.
        """
        late = await self._handovers.catch_up(uids := list(uids))
        for uid in late:
            self._following.add(uid, has_state=False, is_late=True)
        ready = [uid for uid in uids if uid not in late]
        self.local.gate.open(ready)
        self.local.announcer.add(ready)

    async def leave(self, uids: Iterable[Uid]) -> list[Uid]:
        """Hand over what is served here, or withdraw what nobody takes; see `Handovers.leave`."""
        return await self._handovers.leave(uids)

    async def forget(self, uids: Iterable[Uid]) -> None:
        """Drop what is known of experts that are not hosted any more."""
        uids = list(uids)
        self._following.remove(uids)
        self.local.gate.open(uids)
        for uid in uids:
            self._server.followers.forget(uid)
            await self.local.publisher.forget(uid)
