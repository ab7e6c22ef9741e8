"""WebSocket: the way in for browsers, and through proxies that let nothing else pass."""

from p2pnode.transport.websocket.service import UpgradeFailed, WebSocketTransport

__all__ = ["UpgradeFailed", "WebSocketTransport"]
