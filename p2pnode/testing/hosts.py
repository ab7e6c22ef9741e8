"""Full fidelity: real hosts, with Noise and Yamux, on a network in memory.

`host_network` is to `NetworkHost` what `p2pnode.testing.light.light_network` is to `LightHost`.
"""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import trio

from p2pnode.config import LimitSettings, NetworkSettings
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.ping.service import PingService
from p2pnode.transport.memory import Delay, MemoryNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey


class HostNetwork:
    """Hosts that reach each other over a `MemoryNetwork`."""

    def __init__(self, nursery: trio.Nursery, *, delay: Delay | None = None) -> None:
        self.nursery = nursery
        self.memory = MemoryNetwork(delay=delay)
        self._numbers = itertools.count(1)

    async def add_host(
        self,
        key: PrivateKey | None = None,
        *,
        settings: NetworkSettings | None = None,
        limits: LimitSettings | None = None,
        listen: bool = True,
        identify: bool = True,
    ) -> NetworkHost:
        """Start a host on a machine of its own.

        Args:
            key: made from the host's number by default.
            settings: times and sizes of its network side.
            limits: its budgets.
            listen: whether others can dial it.
            identify: whether it serves and uses identify and ping.
        """
        number = next(self._numbers)
        machine = self.memory.add_machine()
        host = NetworkHost(
            key or PrivateKey.from_seed(number.to_bytes(32, "big")),
            transports=[machine],
            settings=settings,
            limits=limits,
            rng=random.Random(number),
        )
        await self.nursery.start(host.run)
        if identify:
            await self.nursery.start(IdentifyService(host, host.settings).run)
            await self.nursery.start(PingService(host, host.settings).run)
        if listen:
            await host.listen(tcp_address(machine.ip, 0))
        return host

    async def add_hosts(self, count: int) -> list[NetworkHost]:
        """Start `count` hosts, each connected to all others."""
        hosts = [await self.add_host() for _ in range(count)]
        await self.connect_all(hosts)
        return hosts

    async def connect_all(self, hosts: Sequence[NetworkHost]) -> None:
        """Connect each host to all others."""
        async with trio.open_nursery() as nursery:
            for one, other in itertools.combinations(hosts, 2):
                nursery.start_soon(one.connect, other.peer_id, other.addresses)


@contextlib.asynccontextmanager
async def host_network(*, delay: Delay | None = None) -> AsyncIterator[HostNetwork]:
    """Run a `HostNetwork` whose hosts end with the block."""
    async with trio.open_nursery() as nursery:
        yield HostNetwork(nursery, delay=delay)
        nursery.cancel_scope.cancel()
