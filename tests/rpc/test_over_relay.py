"""Tensor calls between two nodes that nobody can dial: through a relay, where it allows them."""

import pytest
import torch
import trio

from p2pnode.config import RelaySettings, RpcSettings
from p2pnode.errors import DialError, HostLostError
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.rpc.server import CallHandler, TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, Nat, VirtualNetwork
from p2pnode.wire.addresses import with_p2p
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "wide.0")
SPEC = TensorSpec("float32", (None, 65536))
LIMIT = 16 * 2**20
MEMBERSHIPS = {"test": Membership.open("test")}


class Negate(CallHandler):
    def info(self, uid, span=1):
        return ExpertInfo(
            layer="negate", inputs=(SPEC,), outputs=(SPEC,), max_rows=4096, max_bytes=LIMIT
        )

    def check(self, uid, span=1, *, caller):
        pass

    async def forward(self, uid, inputs, **_):
        await trio.lowlevel.checkpoint()
        return [-each for each in inputs]

    async def backward(self, uid, inputs, gradients, **_):
        return await self.forward(uid, gradients)


@pytest.fixture
def reach(autojump_clock):
    """Run a call from a client to a host, both behind symmetric NATs, beside a relay."""

    async def run(story, **settings):
        async with full_hosts(VirtualNetwork(latency=Fixed(0.01))) as world:
            relay = await world.add_host(
                relay=RelaySettings(server="always", client="never", **settings)
            )
            ours, theirs = [await hidden(world, relay, client) for client in ("never", "auto")]
            TensorServer(
                theirs, RpcSettings(max_call_bytes=LIMIT), Negate(), Authority(MEMBERSHIPS, 8)
            )
            if not theirs.relayed:
                with theirs.events.subscribe(RelayReserved) as reserved:
                    await reserved.get()
            ours.add_addresses(theirs.peer_id, theirs.addresses, 600.0)
            client = TensorClient(ours, RpcSettings(), MEMBERSHIPS)

            async def forward(x):
                return (await client.forward(theirs.peer_id, UID, [x]))[0]

            await story(world, relay, ours, theirs, forward)

    return run


async def hidden(world, relay, client):
    address = str(with_p2p(relay.addresses[0], relay.peer_id))
    return await world.add_host(
        machine=world.network.add_machine(nat=Nat.SYMMETRIC),
        relay=RelaySettings(server="never", client=client, relays=(address,)),
    )


async def test_tensors_go_through_a_relay_without_limits(reach, autojump_clock):
    async def story(_world, _relay, ours, theirs, forward):
        x = torch.randn(32, 65536)  # 8 MiB each way
        torch.testing.assert_close(await forward(x), -x)
        assert ours.connection_to(theirs.peer_id).is_relayed

    await reach(story, circuit_bytes=0, circuit_seconds=0)


async def test_tensors_do_not_go_through_a_relay_with_limits(reach, autojump_clock):
    async def story(_world, _relay, ours, theirs, forward):
        with pytest.raises(DialError, match="it leads through a relay"):
            await forward(torch.zeros(1, 65536))
        assert ours.connection_to(theirs.peer_id).is_limited

    await reach(story)


async def test_a_relay_that_dies_in_a_call_is_a_lost_host_soon(reach, autojump_clock):
    async def story(world, relay, _ours, _theirs, forward):
        x = torch.randn(32, 65536)
        await forward(x)
        began = trio.current_time()

        async def call():
            with pytest.raises(HostLostError):
                await forward(x)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.02)
            world.kill(relay)
        assert trio.current_time() - began < 5

    await reach(story, circuit_bytes=0, circuit_seconds=0)
