"""Fetching an expert's state, cancelled at each await point in turn."""

import random
from collections import Counter

import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import RpcSettings, WeightsSettings
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.states import ExpertState
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.security.tokens import Membership
from p2pnode.swarm.weights.client import WeightsClient
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.server import WeightsServer
from p2pnode.swarm.weights.store import StateStore
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
UID = Uid(RUN.run_id, "ffn.0")
SETTINGS = WeightsSettings(chunk_bytes=4096)


class Experts:
    def __init__(self):
        self.weights = torch.arange(8192, dtype=torch.float32)

    def steps(self, _uid):
        return 1

    async def snapshot(self, _uid, *, complete=True):
        await trio.lowlevel.checkpoint()
        state = ExpertState(
            tensors={"module.weight": self.weights}, steps=1, rows=1, layer="x", optimizer="sgd"
        )
        return Checkpoint(state=state, applied=[])


def holder(host, directory):
    store = StateStore(directory, SETTINGS, disk=compute_inline)
    publisher = Publisher(Experts(), store)
    budget = Budget(RpcSettings())
    server = WeightsServer(
        host, SETTINGS, publisher, store, Authority({"test": RUN}, 8), budget=budget
    )
    access = Access(host, {"test": RUN})
    client = WeightsClient(access, SETTINGS, store, host.events, random.Random(0), budget=budget)
    return store, server, client, budget


async def test_a_cancelled_fetch_leaves_nothing(moment, leftovers, autojump_clock, tmp_path):
    bind_wall_time_to_trio(1.7e9)
    async with full_hosts(VirtualNetwork(latency=Drawn(lambda *_: 0.01))) as world:
        hosts = await world.add_hosts(3)
        _, one, two = hosts
        parts = [holder(host, tmp_path / str(number)) for number, host in enumerate(hosts)]
        store, _, client, _ = parts[0]

        async def scenario():
            head = await client.head(one.peer_id, UID)
            await client.head(two.peer_id, UID)
            state = await client.fetch(UID, head.name, [one.peer_id, two.peer_id])
            loaded = await store.load(state)
            assert torch.equal(loaded.state.tensors["module.weight"], Experts().weights)
            await store.drop(state)

        left = await leftovers(*hosts)

        async def nothing_left():
            found = Counter(await left())
            for part, server, client, budget in parts:
                found["uploads"] += server._uploads.total()
                found["bytes"] += budget.bytes_in_flight
                found["charges"] += budget.calls_in_flight
                found["fetches"] += len(client._turns)
                found["users"] += sum(each.users for each in part._states.values())
            await store.forget(UID)
            found["files"] += len(list((tmp_path / "0").glob("*")))
            return {name: count for name, count in found.items() if count}

        assert await walk(scenario, nothing_left, moment) > 10
