import contextlib

import pytest
import trio

from p2pnode.config import MIB, LimitSettings
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.security.tls import TlsIdentity
from p2pnode.testing.conformance.hosts import HostConformance
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey


class TestNetworkHostInMemory(HostConformance):
    @pytest.fixture
    def clock(self, autojump_clock):
        return autojump_clock

    @contextlib.asynccontextmanager
    async def run_pair(self):
        async with full_hosts() as world:
            yield await world.add_host(), await world.add_host()


class TestNetworkHostAcrossADelay(HostConformance):
    @pytest.fixture
    def clock(self, autojump_clock):
        return autojump_clock

    @contextlib.asynccontextmanager
    async def run_pair(self):
        async with full_hosts(VirtualNetwork(latency=Fixed(0.05))) as world:
            yield await world.add_host(), await world.add_host()


class TestNetworkHostHeldToABandwidth(HostConformance):
    @pytest.fixture
    def clock(self, autojump_clock):
        return autojump_clock

    @contextlib.asynccontextmanager
    async def run_pair(self):
        limits = LimitSettings(max_upload=100 * MIB, max_download=100 * MIB)
        async with full_hosts() as world:
            yield await world.add_host(limits=limits), await world.add_host(limits=limits)


class RealHostConformance(HostConformance):
    address = ""

    @contextlib.asynccontextmanager
    async def run_pair(self):
        async with trio.open_nursery() as nursery:
            hosts = []
            for _ in range(2):
                key = PrivateKey.generate()
                transports = [TcpTransport(), WebSocketTransport(), QuicTransport(TlsIdentity(key))]
                host = NetworkHost(key, transports=transports)
                await nursery.start(host.run)
                await nursery.start(IdentifyService(host).run)
                await host.listen(parse_address(self.address))
                hosts.append(host)
            yield hosts
            nursery.cancel_scope.cancel()


@pytest.mark.real
class TestNetworkHostOverQuic(RealHostConformance):
    address = "/ip4/127.0.0.1/udp/0/quic-v1"


@pytest.mark.real
class TestNetworkHostOverTcp(RealHostConformance):
    address = "/ip4/127.0.0.1/tcp/0"


@pytest.mark.real
class TestNetworkHostOverWebSocket(RealHostConformance):
    address = "/ip4/127.0.0.1/tcp/0/ws"


class TestLightHost(HostConformance):
    @pytest.fixture
    def clock(self, autojump_clock):
        return autojump_clock

    @contextlib.asynccontextmanager
    async def run_pair(self):
        async with light_hosts() as world:
            yield await world.add_host(), await world.add_host()


class TestLightHostAcrossADelay(HostConformance):
    @pytest.fixture
    def clock(self, autojump_clock):
        return autojump_clock

    @contextlib.asynccontextmanager
    async def run_pair(self):
        async with light_hosts(VirtualNetwork(latency=Fixed(0.05))) as world:
            yield await world.add_host(), await world.add_host()
