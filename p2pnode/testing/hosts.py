"""Full fidelity: real hosts, with Noise and Yamux, on a network in memory.

`full_hosts` is to `NetworkHost` what `p2pnode.testing.light.light_hosts` is to `LightHost`.
"""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import trio

from p2pnode.config import LimitSettings, NetworkSettings, RelaySettings
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.ping.service import PingService
from p2pnode.protocols.relay.client import RelayClient
from p2pnode.protocols.relay.server import RelayServer
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Machine, VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId


class FullWorld:
    """Real hosts on one virtual network; made by `full_hosts`.

    Attributes:
        network: the virtual network they are on.
        hosts: those that run, by peer id.
        relay_clients: of those that may be reached through relays.
        relay_servers: of those that may relay for others.
        nursery: its tasks end with the world.
    """

    def __init__(self, network: VirtualNetwork, nursery: trio.Nursery) -> None:
        self.network = network
        self.hosts: dict[PeerId, NetworkHost] = {}
        self.relay_clients: dict[PeerId, RelayClient] = {}
        self.relay_servers: dict[PeerId, RelayServer] = {}
        self.nursery = nursery
        self._numbers = itertools.count(1)
        self._homes: dict[PeerId, _Home] = {}

    async def add_host(
        self,
        key: PrivateKey | None = None,
        *,
        machine: Machine | None = None,
        settings: NetworkSettings | None = None,
        limits: LimitSettings | None = None,
        listen: bool = True,
        identify: bool = True,
        relay: RelaySettings | None = None,
    ) -> NetworkHost:
        """Start a host.

        Args:
            key: made from the host's number by default.
            machine: where it runs; on a new one of the network, without NAT, by default.
            settings: times and sizes of its network side.
            limits: its budgets.
            listen: whether others can dial it.
            identify: whether it serves and uses identify and ping.
            relay: how it uses relays and is one; by default it knows of none.
        """
        number = next(self._numbers)
        transport = MemoryTransport(self.network, machine)
        host = NetworkHost(
            key or PrivateKey.from_seed(number.to_bytes(32, "big")),
            transports=[transport],
            settings=settings,
            limits=limits,
            rng=random.Random(number),
        )
        services: list[RelayClient | RelayServer] = []
        if relay is not None:
            services = self._add_relaying(host, relay, limits, number)
        home = _Home(transport)
        await self.nursery.start(partial(home.run, host, identify=identify))
        self.hosts[host.peer_id] = host
        self._homes[host.peer_id] = home
        if listen:
            await host.listen(tcp_address(transport.ip, 0))
        for service in services:
            await home.start(service.run)
        return host

    def _add_relaying(
        self, host: NetworkHost, settings: RelaySettings, limits: LimitSettings | None, seed: int
    ) -> list[RelayClient | RelayServer]:
        transport = RelayTransport(host, settings)
        host.add_transport(transport)
        services: list[RelayClient | RelayServer] = []
        if settings.server != "never":
            server = self.relay_servers[host.peer_id] = RelayServer(host, settings, limits)
            services.append(server)
        if settings.client != "never":
            client = RelayClient(host, transport, settings, random.Random(seed))
            self.relay_clients[host.peer_id] = client
            services.append(client)
        return services

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

    def crash(self, host: NetworkHost) -> None:
        """Cut the power of a host's machine: it falls silent, and nobody is told."""
        machine = self._homes[host.peer_id].transport.machine
        self.network.take_down(machine)
        homes = self._homes.items()
        for peer_id in [each for each, home in homes if home.transport.machine is machine]:
            self._forget(peer_id).scope.cancel()

    def kill(self, host: NetworkHost) -> None:
        """End a host's process: its machine lives, and resets the connections."""
        home = self._forget(host.peer_id)
        home.transport.abort()
        home.scope.cancel()

    async def leave(self, host: NetworkHost) -> None:
        """End a host in order: it says goodbye to its peers."""
        home = self._forget(host.peer_id)
        home.scope.cancel()
        await home.ended.wait()

    def _forget(self, peer_id: PeerId) -> "_Home":
        del self.hosts[peer_id]
        return self._homes.pop(peer_id)


class _Home:
    """Where one host runs, and what ends it."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def start(self, task: Callable[..., Awaitable[object]]) -> None:
        """Run one more task with the host."""
        assert self._nursery is not None  # it runs
        await self._nursery.start(task)

    async def run(
        self,
        host: NetworkHost,
        *,
        identify: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await nursery.start(host.run)
                    if identify:
                        await nursery.start(IdentifyService(host, host.settings).run)
                        await nursery.start(PingService(host, host.settings).run)
                    task_status.started()
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def full_hosts(network: VirtualNetwork | None = None) -> AsyncIterator[FullWorld]:
    """Run a world of real hosts, which end with the block.

    Args:
        network: what lies between them; by default nothing that takes time.
    """
    async with trio.open_nursery() as nursery:
        yield FullWorld(network or VirtualNetwork(), nursery)
        nursery.cancel_scope.cancel()
