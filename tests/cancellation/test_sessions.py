import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import HostingSettings, RpcSettings, SessionSettings
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.client import SessionClient
from p2pnode.experts.sessions.service import SessionServer
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.uids import Uid

EPOCH = 1_700_000_000.0
UID = Uid("open:lm", "blocks.0")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("rows", [1, 3], ids=["small", "large"])
async def test_a_cancelled_session_leaves_nothing(rows, moment, leftovers, autojump_clock):
    bind_wall_time_to_trio(EPOCH)
    async with full_hosts(VirtualNetwork(latency=Drawn(lambda *_: 0.01))) as world:
        near, far = await world.add_hosts(2)
        memberships, rpc = {"lm": Membership.open("lm")}, RpcSettings()
        hosting = HostingSettings(model="tiny", optimizer="sgd")
        experts = ExpertHost(hosting, None, far.events, compute=compute_inline)
        tensors = Budget(rpc)
        server = SessionServer(
            far,
            SessionSettings(),
            rpc=rpc,
            handler=experts,
            experts=experts,
            authority=Authority(memberships, 8),
            tensors=tensors,
            transcoder=Transcoder(rpc),
        )
        client = SessionClient(Access(near, memberships), rpc)
        hidden = torch.ones(rows, 400, 64)  # 100 KB a row; three exceed what is sent at once

        async def scenario():
            async with await client.open(far.peer_id, UID, rows=rows, length=401) as session:
                await session.step(hidden, timeout=20.0)
                await session.step(hidden[:, :1], timeout=20.0)

        async with trio.open_nursery() as nursery:
            await experts.add([UID])
            await nursery.start(experts.run)
            left = await leftovers(near, far)

            async def nothing_left():
                found = await left()
                held = {
                    "sessions": server.budget.sessions,
                    "cache bytes": server.budget.cache_bytes,
                    "tensor bytes": tensors.bytes_in_flight,
                    "queued": experts.queued,
                }
                return found | {name: held[name] for name in held if held[name]}

            assert await walk(scenario, nothing_left, moment) > 5
            nursery.cancel_scope.cancel()
        server.close()
