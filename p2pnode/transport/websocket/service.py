"""The WebSocket transport: `/ws` and `/wss` behind the addresses of TCP.

```
/ip4/192.0.2.1/tcp/80/ws            over TCP
/ip4/192.0.2.1/tcp/443/tls/ws       over TLS; /wss is its older name
/ip4/…/tcp/443/tls/sni/a.example/ws … to a server that is to be called so
```

A listener takes TCP connections as they come and upgrades many at a time: who is slow, or silent,
or speaks no HTTP, delays nobody else. When too many upgrades are under way, the oldest of whoever
has most of them gives way.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import trio
from multiaddr import Multiaddr
from wsproto import ConnectionType

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConfigError,
    DialError,
    InvalidAddressError,
    P2PNodeError,
    SimultaneousOpenError,
)
from p2pnode.events import Event, EventBus
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.transport.handshakes import Handshakes
from p2pnode.transport.reuse import Endpoint
from p2pnode.transport.tcp import TcpListener, TcpTransport, endpoint_of, listen_error, no_answer
from p2pnode.transport.websocket.stream import WebSocketStream
from p2pnode.transport.websocket.tls import (
    ServerCertificate,
    TlsStream,
    client_context,
    server_certificate,
    tls_failure,
)
from p2pnode.wire.addresses import ip_of

_IP6_HOST_BITS: Final = 64
_PLAIN: Final = Multiaddr("/ws")
_SECURE: Final = Multiaddr("/tls/ws")
_TAILS: Final = {
    ("ws",): False,
    ("wss",): True,
    ("tls", "ws"): True,
    ("tls", "sni", "ws"): True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeFailed(Event):
    """An inbound connection did not become a WebSocket."""

    address: Multiaddr
    reason: str


class _Place(NamedTuple):
    """What a WebSocket address says."""

    tcp: Multiaddr
    secure: bool
    name: str | None  # of the server, for its certificate

    @property
    def tail(self) -> Multiaddr:
        """What stands behind the TCP part of its connections' addresses."""
        return _SECURE if self.secure else _PLAIN


class WebSocketTransport(Transport):
    """Byte streams in WebSocket messages.

    Args:
        settings: limits, timeouts and certificates.
        events: where failed upgrades are told.

    Raises:
        ConfigError: a certificate, key or file of authorities cannot be used.
    """

    def __init__(
        self, settings: NetworkSettings | None = None, *, events: EventBus | None = None
    ) -> None:
        self._settings = settings or NetworkSettings()
        self._events = events or EventBus()
        self._tcp = TcpTransport(self._settings)
        self._certificate = server_certificate(self._settings, self._events)
        # Reading the system's authorities takes a while, and most nodes never need them.
        self._client_tls = (
            client_context(self._settings) if self._settings.tls_authorities else None
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry listeners, upgrades and the readers of all connections, and end them."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        place = _place(address)
        return place is not None and self._tcp.can_dial(place.tcp)

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> RawConnection:
        """See `Transport`; with TLS always from a port of its own."""
        place = _place(address)
        target = None if place is None else endpoint_of(place.tcp)
        if place is None or target is None:
            raise DialError(
                f"{address} is not an address WebSocket can dial; it needs an IP, a port and /ws"
            )
        nursery = self._running()
        try:
            raw = await self._tcp.connect(target, reuse_port=reuse_port and not place.secure)
        except OSError as error:
            raise no_answer(address, error) from error
        stream: trio.abc.Stream = raw.stream
        try:
            with trio.fail_after(self._settings.websocket_upgrade_timeout):
                if place.secure:
                    stream = await self._greet(stream, place.name or str(target.ip))
                stream = web = WebSocketStream(
                    stream,
                    ConnectionType.CLIENT,
                    self._settings,
                    host=_host_header(place.name, target),
                )
                nursery.start_soon(web.carry)
                await web.open()
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, SimultaneousOpenError) or (reason := _reason(error)) is None:
                raise
            raise DialError(f"{address} cannot be reached: {reason}") from error
        return RawConnection(
            stream=web,
            local_address=_join(raw.local_address, place.tail),
            remote_address=address,
        )

    async def _greet(self, stream: trio.abc.Stream, name: str) -> TlsStream:
        if self._client_tls is None:
            self._client_tls = client_context(self._settings)
        secured = TlsStream(
            trio.SSLStream(stream, self._client_tls, server_hostname=name, https_compatible=True)
        )
        await secured.do_handshake()
        return secured

    async def listen(self, address: Multiaddr) -> Listener:
        """See `Transport`.

        Raises:
            AddressInUseError: another program listens there.
            InvalidAddressError: this machine cannot listen there.
            ConfigError: the address asks for TLS, and the settings name no certificate.
        """
        await trio.lowlevel.checkpoint()
        place = _place(address)
        endpoint = None if place is None else endpoint_of(place.tcp)
        if place is None or endpoint is None or place.name is not None:
            raise InvalidAddressError(
                f"cannot listen on {address}; give an IP address and a port, "
                "such as /ip4/0.0.0.0/tcp/4002/ws"
            )
        if place.secure and self._certificate is None:
            raise ConfigError(
                f"cannot listen on {address} without a certificate; set network.tls_certificate "
                "and network.tls_key"
            )
        nursery = self._running()
        try:
            tcp = self._tcp.open_listener(endpoint)
        except OSError as error:
            raise listen_error(address, error) from error
        listener = WebSocketListener(
            tcp,
            certificate=self._certificate if place.secure else None,
            nursery=nursery,
            settings=self._settings,
            events=self._events,
        )
        nursery.start_soon(listener.serve)
        return listener

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("the transport does not run")
        return self._nursery


class WebSocketListener(Listener):
    """Takes TCP connections, and gives those that have become WebSockets."""

    def __init__(
        self,
        tcp: TcpListener,
        *,
        certificate: ServerCertificate | None,
        nursery: trio.Nursery,
        settings: NetworkSettings,
        events: EventBus,
    ) -> None:
        self._tcp = tcp
        self._certificate = certificate
        self._tail = _PLAIN if certificate is None else _SECURE
        self._nursery = nursery
        self._settings = settings
        self._events = events
        self._upgrades = Handshakes(settings.max_websocket_upgrades)
        self._upgraded, self._accepted = trio.open_memory_channel[RawConnection](0)
        self._closed = False

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        return [_join(address, self._tail) for address in self._tcp.addresses]

    async def accept(self) -> RawConnection:
        """See `Listener`; only what has passed its upgrade is seen here."""
        return await self._accepted.receive()

    async def aclose(self) -> None:
        """See `Listener`."""
        self._closed = True
        self._upgrades.end_all()
        self._accepted.close()
        await self._tcp.aclose()

    async def serve(self) -> None:
        """Take connections until the listener is closed."""
        try:
            while True:
                raw = await self._tcp.accept()
                self._nursery.start_soon(self._receive, raw)
        except trio.ClosedResourceError:
            pass
        finally:
            await self._tcp.aclose()

    async def _receive(self, raw: RawConnection) -> None:
        """Upgrade a connection and hand it over, within its time."""
        reason: str | None = "too many upgrades were under way"
        origin = _origin(raw.remote_address)
        with trio.CancelScope() as place, self._upgrades.hold(origin, place.cancel):
            with trio.move_on_after(self._settings.websocket_upgrade_timeout) as time:
                reason = await self._upgrade(raw)
            if time.cancelled_caught:
                reason = f"it took longer than {self._settings.websocket_upgrade_timeout:g} s"
        if reason is not None and not self._closed:
            self._events.emit(UpgradeFailed(address=raw.remote_address, reason=reason))

    async def _upgrade(self, raw: RawConnection) -> str | None:
        """Upgrade a connection and hand it over; returns what went wrong, if anything."""
        stream: trio.abc.Stream = raw.stream
        delivered = False
        try:
            if self._closed:
                return "the listener is closed"
            if self._certificate is not None:
                context = self._certificate.context(trio.current_time())
                stream = secured = TlsStream(
                    trio.SSLStream(stream, context, server_side=True, https_compatible=True)
                )
                await secured.do_handshake()
            stream = web = WebSocketStream(stream, ConnectionType.SERVER, self._settings)
            self._nursery.start_soon(web.carry)
            await web.open()
            await self._upgraded.send(
                RawConnection(
                    stream=web,
                    local_address=_join(raw.local_address, self._tail),
                    remote_address=_join(raw.remote_address, self._tail),
                )
            )
            delivered = True
        except (P2PNodeError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            return _reason(error)
        finally:
            if not delivered:
                await trio.aclose_forcefully(stream)
        return None


def _origin(address: Multiaddr) -> int:
    """Return what the addresses of one household share: an IPv4 address, an IPv6 /64."""
    ip = ip_of(address)
    assert ip is not None  # TCP has no other addresses
    return int(ip) if ip.version == 4 else int(ip) >> _IP6_HOST_BITS


def _place(address: Multiaddr) -> _Place | None:
    parts = address.split()
    tail = tuple(protocol.name for part in parts[2:] for protocol in part.protocols())
    if tail not in _TAILS:
        return None
    name = str(address.value_for_protocol("sni")) if "sni" in tail else None
    return _Place(tcp=Multiaddr.join(*parts[:2]), secure=_TAILS[tail], name=name)


def _join(address: Multiaddr, tail: Multiaddr) -> Multiaddr:
    return Multiaddr(address.to_bytes() + tail.to_bytes())


def _host_header(name: str | None, target: Endpoint) -> str:
    ip = str(target.ip) if target.ip.version == 4 else f"[{target.ip}]"
    return f"{name or ip}:{target.port}"


def _reason(error: BaseException) -> str | None:
    """Say what went wrong on the way to a WebSocket; None when it is no error of the path."""
    match error:
        case P2PNodeError():
            return str(error)
        case trio.TooSlowError():
            return "the upgrade took too long"
        case trio.BrokenResourceError() | trio.ClosedResourceError():
            return tls_failure(error) or "the other end hung up during the upgrade"
        case ValueError():  # a name that TLS cannot ask for
            return f"TLS cannot ask for it: {error}"
    return None
