import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.host.node import NetworkHost
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey


class CarriedTransport(MemoryTransport):
    """A transport with a task in the background."""

    state = "new"

    async def run(self, *, task_status):
        self.state = "running"
        try:
            await super().run(task_status=task_status)
        finally:
            self.state = "ended"


async def test_a_host_carries_its_transports_from_its_start_to_its_end():
    transport = CarriedTransport(VirtualNetwork())
    host = NetworkHost(PrivateKey.from_seed(bytes(32)), transports=[transport])
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        assert transport.state == "running"
        await host.listen(tcp_address(transport.ip, 0))
        await wait_all_tasks_blocked()
        assert transport.state == "running"
        nursery.cancel_scope.cancel()
    assert transport.state == "ended"
