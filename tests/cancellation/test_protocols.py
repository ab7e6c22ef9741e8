"""Calls of the protocols, cancelled at each await point in turn."""

import contextlib
import random

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import DhtSettings, RpcSettings
from p2pnode.errors import ConnectionClosedError, ProtocolError
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.kad.validators import Validator
from p2pnode.protocols.ping.service import PingService
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.rpc.server import CallHandler, TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.testing.cancellation import walk
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.wire.uids import Uid

EPOCH = 1_700_000_000.0
UID = Uid("open:test", "negate.0")
SPEC = TensorSpec("float32", (None, 65_536))
LARGE = torch.ones(8, 65_536)  # 2 MiB: several windows


def link(_source, _target):
    return 0.01


class Anything(Validator):
    def validate(self, key, value, now):
        if not value:
            raise ProtocolError("empty")

    def merge(self, key, values, now):
        return max(values)

    def expires(self, key, value):
        return None


class Negate(CallHandler):
    def info(self, uid, span=1):
        return ExpertInfo(
            layer="negate", inputs=(SPEC,), outputs=(SPEC,), max_rows=64, max_bytes=2**24
        )

    def check(self, uid, span=1, *, caller):
        pass

    async def forward(self, uid, inputs, **_):
        await trio.sleep(0.01)
        return [-each for each in inputs]

    async def backward(self, uid, inputs, gradients, **_):
        return await self.forward(uid, gradients)


@contextlib.asynccontextmanager
async def dht_nodes(count):
    bind_wall_time_to_trio(EPOCH)
    async with (
        full_hosts(VirtualNetwork(latency=Drawn(link))) as world,
        trio.open_nursery() as nursery,
    ):
        hosts = await world.add_hosts(count)
        settings = DhtSettings(bucket_size=4, lookup_reuse=0.0)
        dhts = []
        for number, host in enumerate(hosts):
            dhts.append(KadDht(host, settings, random.Random(number), {"any": Anything()}))
            await nursery.start(dhts[-1].run)
        for dht in dhts[1:]:
            await dht.bootstrap([(hosts[0].peer_id, hosts[0].addresses[0])])
        await trio.sleep(5)
        yield hosts, dhts
        nursery.cancel_scope.cancel()


async def test_a_cancelled_ping_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_host(), await world.add_host()
        near.add_addresses(far.peer_id, far.addresses, 1e6)
        ping = PingService(near, near.settings)
        await near.connect(far.peer_id)

        async def scenario():
            assert await ping.ping(far.peer_id) == pytest.approx(0.02)

        assert await walk(scenario, await leftovers(near, far), moment) > 3
        assert ping._outbound == {}


async def test_a_cancelled_identify_leaves_nothing(moment, leftovers, autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_host(identify=False), await world.add_host()

        async def scenario():
            async with trio.open_nursery() as nursery:
                service = IdentifyService(near, near.settings)
                await nursery.start(service.run)
                await near.connect(far.peer_id, far.addresses)
                await trio.sleep(1)
                near.set_handler("/test/news", None)  # told by a push
                await trio.sleep(1)
                near.remove_handler("/test/news")
                await trio.sleep(1)
                nursery.cancel_scope.cancel()

        assert await walk(scenario, await leftovers(near, far), moment) > 20
        assert near.protocols == []


async def test_cancelled_calls_of_the_dht_leave_nothing(moment, leftovers, autojump_clock):
    async with dht_nodes(4) as (hosts, dhts):
        near = dhts[1]
        numbers = iter(range(10_000))

        async def scenario():
            key = b"/any/%d" % next(numbers)  # one that nobody remembers anything of
            await near.put_value(key, b"value")
            assert await near.get_value(key) == b"value"
            await near.provide(key)
            assert hosts[1].peer_id in await near.find_providers(key)
            await near.closest_peers(key)

        assert await walk(scenario, await leftovers(*hosts), moment) > 5
        assert len(near._searches) == 0


async def test_a_cancelled_dht_leaves_nothing(moment, leftovers, autojump_clock):
    bind_wall_time_to_trio(EPOCH)
    async with dht_nodes(3) as (hosts, _dhts):
        near = hosts[0]
        near.remove_handler(DhtSettings().protocol)

        async def scenario():
            async with trio.open_nursery() as nursery:
                dht = KadDht(near, DhtSettings(), random.Random(0), {"any": Anything()})
                await nursery.start(dht.run)
                with contextlib.suppress(ConnectionClosedError):  # the DHT may be gone before us
                    await dht.bootstrap([(hosts[1].peer_id, hosts[1].addresses[0])])
                    stored.append(await dht.put_value(b"/any/x", b"value"))
                nursery.cancel_scope.cancel()

        stored = []
        assert await walk(scenario, await leftovers(*hosts), moment) > 20
        assert stored[-1] == 3


@pytest.mark.parametrize("rows", [1, 8], ids=["small", "large"])
async def test_a_cancelled_tensor_call_leaves_nothing(rows, moment, leftovers, autojump_clock):
    bind_wall_time_to_trio(EPOCH)
    async with full_hosts(VirtualNetwork(latency=Drawn(link))) as world:
        near, far = await world.add_hosts(2)
        memberships = {"test": Membership.open("test")}
        settings = RpcSettings()
        server = TensorServer(far, settings, Negate(), Authority(memberships, 8))
        client = TensorClient(near, settings, memberships)
        inputs = LARGE[:rows]

        async def scenario():
            (answer,) = await client.forward(far.peer_id, UID, [inputs], timeout=20.0)
            assert torch.equal(answer, -inputs)

        left = await leftovers(near, far)

        async def nothing_left():
            found = await left()
            budget = server.budget
            if budget.bytes_in_flight or budget.calls_in_flight:
                found["rpc budget"] = budget.bytes_in_flight + budget.calls_in_flight
            return found

        assert await walk(scenario, nothing_left, moment) > 5
        server.close()
