import pytest

from p2pnode.testing.conformance.transports import TransportConformance
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import parse_address


class WebSocketConformance(TransportConformance):
    half_close = False
    resumable = False
    foreign = (
        *TransportConformance.foreign,
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/1/ws/ws",
        "/ip4/127.0.0.1/tcp/1/sni/a.example/ws",
        "/ip4/127.0.0.1/ws",
        "/ws",
    )

    @pytest.fixture
    def made(self):
        transport = WebSocketTransport()
        return transport, transport


@pytest.mark.real
class TestWebSocketOverIp4(WebSocketConformance):
    wildcard = "/ip4/0.0.0.0/tcp/0/ws"
    named = "/dns4/node.example/tcp/7/ws"

    def listen_address(self, transport):
        return parse_address("/ip4/127.0.0.1/tcp/0/ws")


@pytest.mark.real
@pytest.mark.usefixtures("_ip6")
class TestWebSocketOverIp6(WebSocketConformance):
    wildcard = "/ip6/::/tcp/0/ws"
    named = "/dns6/node.example/tcp/7/ws"

    def listen_address(self, transport):
        return parse_address("/ip6/::1/tcp/0/ws")


@pytest.mark.real
class TestSecureWebSocket(WebSocketConformance):
    named = "/dns/node.example/tcp/7/wss"

    @pytest.fixture
    def made(self, tls_settings):
        transport = WebSocketTransport(tls_settings)
        return transport, transport

    def listen_address(self, transport):
        return parse_address("/ip4/127.0.0.1/tcp/0/tls/ws")
