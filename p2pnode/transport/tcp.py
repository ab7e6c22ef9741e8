"""TCP: `/ip4`, `/ip6`, `/dns`, `/dns4` and `/dns6`, each with `/tcp/<port>`.

Nagle's algorithm is off (trio does that to every stream): Noise frames leave whole, and waiting
for company would only delay them.
"""

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError, NoRouteError
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.transport.interfaces import own_addresses
from p2pnode.transport.reuse import CAN_REUSE, Endpoint, choose_source
from p2pnode.wire.addresses import tcp_address

_HOSTS: Final = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})
_IPS: Final = frozenset({"ip4", "ip6"})
# Somebody else has this pair of endpoints, or had it a moment ago.
_TAKEN: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
# The shortages trio.serve_listeners also waits out, and for as long: connections that end give
# back what is short.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_SHORTAGE_PAUSE: Final = 0.1
_LINGER: Final = "hh" if sys.platform == "win32" else "ii"  # whether, and for how many seconds
_RESET_AT_ONCE: Final = struct.pack(_LINGER, 1, 0)
_CLOSE_IN_ORDER: Final = struct.pack(_LINGER, 0, 0)
# What keeps a dial from ever leaving this machine.
_NO_ROUTE: Final = _SHORTAGES | {errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}


class TcpTransport(Transport):
    """Byte streams over TCP."""

    def __init__(self, settings: NetworkSettings | None = None) -> None:
        self._settings = settings or NetworkSettings()
        self._listening: list[Endpoint] = []
        self._may_reuse = self._settings.reuse_port and CAN_REUSE

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        protocols = [protocol.name for protocol in address.protocols()]
        return len(protocols) == 2 and protocols[0] in _HOSTS and protocols[1] == "tcp"

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> RawConnection:
        """See `Transport`; from the listening port, where the settings say so, and it can be."""
        target = endpoint_of(address)
        if target is None:
            raise DialError(f"{address} is not an address TCP can dial; it needs an IP and a port")
        try:
            return await self.connect(target, reuse_port=reuse_port)
        except OSError as error:
            raise no_answer(address, error) from error

    async def connect(self, target: Endpoint, *, reuse_port: bool = True) -> RawConnection:
        """Connect, for `dial` and for transports on top of TCP; raises `OSError`."""
        if target.ip.is_unspecified:  # the system would take it for this machine
            raise OSError(errno.EINVAL, "it is no place, but all of a machine's own")
        if reuse_port and self._may_reuse:
            source = choose_source(target, self._listening)
            bound = await _bound_to(source) if source is not None else None
            if bound is not None:
                try:
                    return _raw_connection(await _connect(bound, target))
                except OSError as error:
                    if error.errno not in _TAKEN:
                        raise
        fresh = trio.socket.socket(target.family, socket.SOCK_STREAM)
        return _raw_connection(await _connect(fresh, target))

    def can_punch(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return endpoint_of(address) is not None

    async def punch(self, address: Multiaddr, *, is_client: bool) -> RawConnection:  # noqa: ARG002  # both sides dial
        """See `Transport`; by a simultaneous open, as RFC 9293 has it in section 3.5."""
        target = endpoint_of(address)
        if target is None or target.ip.is_unspecified:
            raise DialError(f"no hole can be punched to {address}; it needs an IP and a port")
        source = choose_source(target, self._listening) if self._may_reuse else None
        opened = await _bound_to(source) if source is not None else None
        if opened is None:  # some routers let us in from any port
            opened = trio.socket.socket(target.family, socket.SOCK_STREAM)
        with _closed_on_error(opened):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        try:
            stream = await _connect(opened, target)
        except OSError as error:
            raise no_answer(address, error) from error

        def settle() -> None:
            with suppress(OSError):  # it has been closed already
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_IN_ORDER)

        return _raw_connection(stream, settle)

    async def listen(self, address: Multiaddr) -> "TcpListener":
        """See `Transport`."""
        await trio.lowlevel.checkpoint()
        endpoint = endpoint_of(address)
        if endpoint is None:
            raise InvalidAddressError(
                f"cannot listen on {address}; give an IP address and a port, "
                "such as /ip4/0.0.0.0/tcp/4001"
            )
        try:
            return self.open_listener(endpoint)
        except OSError as error:
            raise listen_error(address, error) from error

    def open_listener(self, endpoint: Endpoint) -> "TcpListener":
        """Listen, for `listen` and for transports on top of TCP; raises `OSError`."""
        listening = _listen(endpoint, self._settings)
        listener = TcpListener(trio.SocketListener(listening), self._listening)
        self._listening.append(listener.endpoint)
        return listener


class TcpListener(Listener):
    """A listening TCP socket.

    Args:
        listener: the socket.
        listening: where the transport notes it, as long as it listens.
    """

    def __init__(self, listener: trio.SocketListener, listening: list[Endpoint]) -> None:
        self._listener = listener
        self._listening = listening
        host, port = listener.socket.getsockname()[:2]
        self.endpoint = Endpoint(ipaddress.ip_address(host), port)

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        ip, port = self.endpoint
        if not ip.is_unspecified:
            return [tcp_address(str(ip), port)]
        return [tcp_address(str(own), port) for own in own_addresses(ip.version)]

    async def accept(self) -> RawConnection:
        """See `Listener`."""
        while True:
            try:
                stream = await self._listener.accept()
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                await trio.sleep(_SHORTAGE_PAUSE)
                continue
            with suppress(OSError):  # the peer left before we could ask for its address
                return _raw_connection(stream)

    async def aclose(self) -> None:
        """See `Listener`."""
        if self.endpoint in self._listening:
            self._listening.remove(self.endpoint)
        await self._listener.aclose()


def endpoint_of(address: Multiaddr) -> Endpoint | None:
    """Return where `/ip4/<ip>/tcp/<port>`, or its IPv6 form, leads; None for any other address."""
    parts = list(address.items())
    if len(parts) != 2 or parts[0][0].name not in _IPS or parts[1][0].name != "tcp":
        return None
    return Endpoint(ipaddress.ip_address(parts[0][1]), int(parts[1][1]))


@contextmanager
def _closed_on_error(opened: trio.socket.SocketType | socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise


async def _bound_to(source: Endpoint) -> trio.socket.SocketType | None:
    """Return a socket that shares a listener's port, or None if the system does not let it.

    It may not know SO_REUSEPORT, or the port may be one that only root binds, and root is gone.
    """
    opened = trio.socket.socket(source.family, socket.SOCK_STREAM)
    with _closed_on_error(opened):
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if source.family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await opened.bind(source.pair)
        except OSError:
            opened.close()
            return None
        return opened


async def _connect(connecting: trio.socket.SocketType, target: Endpoint) -> trio.SocketStream:
    with _closed_on_error(connecting):
        await connecting.connect(target.pair)
        if connecting.getsockname() == connecting.getpeername():
            # Nobody listens there, and the system happened to dial from that very port.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return trio.SocketStream(connecting)


def _listen(endpoint: Endpoint, settings: NetworkSettings) -> trio.socket.SocketType:
    opened = socket.socket(endpoint.family, socket.SOCK_STREAM)
    with _closed_on_error(opened):
        if sys.platform == "win32":  # where SO_REUSEADDR would let two programs have one port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # a restarted node gets its port back although old connections linger in the kernel
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(endpoint.pair)
        opened.listen(settings.listen_backlog)
        if settings.reuse_port and CAN_REUSE:
            with suppress(OSError):  # then dials cannot share the port, and have others
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return trio.socket.from_stdlib_socket(opened)


def _raw_connection(
    stream: trio.SocketStream, settle: Callable[[], object] | None = None
) -> RawConnection:
    with _closed_on_error(stream.socket):  # the peer may have left: then it has no name any more
        return RawConnection(
            stream=stream,
            local_address=tcp_address(*stream.socket.getsockname()[:2]),
            remote_address=tcp_address(*stream.socket.getpeername()[:2]),
            settle=settle,
        )


def no_answer(address: Multiaddr, error: OSError) -> DialError:
    """Say why `address` could not be connected to, and whether that is this machine's own fault."""
    kind = NoRouteError if error.errno in _NO_ROUTE else DialError
    return kind(f"{address} cannot be reached: {_sentence(error)}")


def listen_error(address: Multiaddr, error: OSError) -> AddressInUseError | InvalidAddressError:
    """Say why this node cannot listen on `address`, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{address} is taken; stop the program that listens there, or listen on another port "
            "(0 lets the system choose)"
        )
    if error.errno == errno.EACCES:
        return InvalidAddressError(
            f"this user may not listen on {address}; choose a port above 1023"
        )
    return InvalidAddressError(f"this machine cannot listen on {address}: {_sentence(error)}")


def _sentence(error: OSError) -> str:
    said = error.strerror or str(error) or type(error).__name__
    bare = os.strerror(error.errno) if error.errno else said
    # trio puts the address in front, which our caller has said already
    return (bare if said.endswith(bare) else said).lower()
