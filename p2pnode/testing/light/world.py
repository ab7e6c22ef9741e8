"""A world of light hosts on one virtual network."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import LimitSettings, NetworkSettings
from p2pnode.testing.light.connections import CLOSED_BY_PEER, RESET
from p2pnode.testing.light.host import LightHost
from p2pnode.testing.network import Arrival, Endpoint, Machine, VirtualNetwork
from p2pnode.testing.timers import Postman, Timers, VirtualClock
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

if TYPE_CHECKING:
    from p2pnode.wire.peer_id import PeerId

FIRST_PORT: Final = 4001  # of the first host on a machine


class LightWorld:
    """Light hosts by the thousand; made by `light_hosts`.

    Attributes:
        network: the virtual network they are on.
        hosts: those that run, by peer id.
        nursery: its tasks end with the world.
        streams_served: how many streams have reached a handler.
        timers: deliver what is under way.
    """

    def __init__(self, network: VirtualNetwork, nursery: trio.Nursery, timers: Timers) -> None:
        self.network = network
        self.hosts: dict[PeerId, LightHost] = {}
        self.streams_served = 0
        self.timers = timers
        self.nursery = nursery
        self._numbers = itertools.count(1)
        self._settings = NetworkSettings()
        self._limits = LimitSettings()
        self._addresses: dict[Endpoint, Multiaddr] = {}
        self._endpoints: dict[Multiaddr, Endpoint | None] = {}

    async def add_host(
        self,
        key: PrivateKey | None = None,
        *,
        machine: Machine | None = None,
        settings: NetworkSettings | None = None,
        limits: LimitSettings | None = None,
        listen: bool = True,
    ) -> LightHost:
        """Start a host.

        Args:
            key: made from the host's number by default.
            machine: where it runs; on a new one of the network, without NAT, by default.
            settings: times and sizes of its network side.
            limits: its water marks; other budgets are not kept here.
            listen: whether others can dial it.
        """
        number = next(self._numbers)
        machine = machine or self.network.add_machine()
        host = LightHost(
            self,
            key or PrivateKey.from_seed(number.to_bytes(32, "big")),
            machine,
            port=next(
                each for each in itertools.count(FIRST_PORT) if each not in machine.listeners
            ),
            settings=settings or self._settings,
            limits=limits or self._limits,
        )
        self.hosts[host.peer_id] = host
        await self.nursery.start(partial(host.run, listen=listen))
        return host

    def crash(self, host: LightHost) -> None:
        """Cut the power of a host's machine: it falls silent, and nobody is told."""
        self.network.take_down(host.machine)
        for each in [one for one in self.hosts.values() if one.machine is host.machine]:
            self._stop(each, told=None)

    def kill(self, host: LightHost) -> None:
        """End a host's process: its machine lives, and resets the connections."""
        self._stop(host, told=RESET)

    async def leave(self, host: LightHost) -> None:
        """End a host in order: it says goodbye to its peers."""
        self._stop(host, told=CLOSED_BY_PEER)
        await trio.lowlevel.checkpoint()

    def _stop(self, host: LightHost, told: str | None) -> None:
        if self.hosts.get(host.peer_id) is host:
            del self.hosts[host.peer_id]
        host.stop(told)

    def host_at(self, arrival: Arrival) -> LightHost | None:
        """Return who listens where a SYN has come to."""
        found = arrival.machine.listeners.get(arrival.port)
        return found if isinstance(found, LightHost) else None

    def address_of(self, endpoint: Endpoint) -> Multiaddr:
        """Return the address for an endpoint, the same object each time."""
        address = self._addresses.get(endpoint)
        if address is None:
            address = self._addresses[endpoint] = tcp_address(endpoint.ip, endpoint.port)
            self._endpoints[address] = endpoint
        return address

    def endpoint_of(self, address: Multiaddr) -> Endpoint | None:
        """Return the endpoint that an address names, if it is one of this network's kind."""
        if address not in self._endpoints:
            names = [each.name for each in address.protocols()]
            ip, port = None, None
            if names == ["ip4", "tcp"]:
                ip, port = address.value_for_protocol("ip4"), address.value_for_protocol("tcp")
            self._endpoints[address] = Endpoint(str(ip), int(port)) if ip and port else None
        return self._endpoints[address]


@contextlib.asynccontextmanager
async def light_hosts(network: VirtualNetwork | None = None) -> AsyncIterator[LightWorld]:
    """Run a world of light hosts, which end with the block.

    Args:
        network: what lies between them; by default nothing that takes time.
    """
    clock = trio.lowlevel.current_clock()
    timers = clock if isinstance(clock, VirtualClock) else Postman()
    async with trio.open_nursery() as nursery:
        await nursery.start(timers.run)
        yield LightWorld(network or VirtualNetwork(), nursery, timers)
        nursery.cancel_scope.cancel()
