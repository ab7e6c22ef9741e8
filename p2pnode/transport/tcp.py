"""TCP: `/ip4`, `/ip6`, `/dns`, `/dns4` and `/dns6`, each with `/tcp/<port>`.

Nagle's algorithm is off (trio does that to every stream): Noise frames leave whole, and waiting
for company would only delay them.
"""

import errno
import socket
from typing import Final, NamedTuple

import trio
from multiaddr import Multiaddr

from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.transport.interfaces import own_addresses
from p2pnode.wire.addresses import tcp_address

_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}
_IPS: Final = frozenset({"ip4", "ip6"})
# The shortages trio.serve_listeners also waits out, and for as long: connections that end give
# back what is short.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_SHORTAGE_PAUSE: Final = 0.1


class _Endpoint(NamedTuple):
    kind: str
    host: str
    port: int


class TcpTransport(Transport):
    """Byte streams over TCP."""

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return _endpoint(address) is not None

    async def resolve(self, address: Multiaddr) -> list[Multiaddr]:
        """See `Transport`."""
        kind, host, port = _checked_endpoint(address)
        if kind in _IPS:
            await trio.lowlevel.checkpoint()
            return [address]
        try:
            answers = await trio.socket.getaddrinfo(
                host, port, family=_FAMILIES[kind], type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise DialError(f"the name {host} cannot be resolved: {_sentence(error)}") from error
        return list(dict.fromkeys(tcp_address(str(answer[4][0]), port) for answer in answers))

    async def dial(self, address: Multiaddr) -> RawConnection:
        """See `Transport`."""
        kind, host, port = _checked_endpoint(address)
        if kind not in _IPS:
            raise ValueError(f"{address} must be resolved before it is dialled")
        try:
            connecting = trio.socket.socket(_FAMILIES[kind], socket.SOCK_STREAM)
            try:
                await connecting.connect((host, port))
                return _raw_connection(trio.SocketStream(connecting))
            except BaseException:
                connecting.close()
                raise
        except OSError as error:
            raise DialError(f"{address} cannot be reached: {_sentence(error)}") from error

    async def listen(self, address: Multiaddr) -> Listener:
        """See `Transport`."""
        endpoint = _endpoint(address)
        if endpoint is None or endpoint.kind not in _IPS:
            raise InvalidAddressError(
                f"cannot listen on {address}; give an IP address and a port, "
                "such as /ip4/0.0.0.0/tcp/4001"
            )
        try:
            (listener,) = await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
        except OSError as error:
            raise _listen_error(error, address) from error
        return TcpListener(listener)


class TcpListener(Listener):
    """A listening TCP socket."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._host, self._port = listener.socket.getsockname()[:2]

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        if self._host == "0.0.0.0":  # noqa: S104  # compared, not bound
            return [tcp_address(str(ip), self._port) for ip in own_addresses(4)]
        if self._host == "::":
            return [tcp_address(str(ip), self._port) for ip in own_addresses(6)]
        return [tcp_address(self._host, self._port)]

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
            try:
                return _raw_connection(stream)
            except OSError:  # the peer left before we could ask for its address
                await trio.aclose_forcefully(stream)

    async def aclose(self) -> None:
        """See `Listener`."""
        await self._listener.aclose()


def _raw_connection(stream: trio.SocketStream) -> RawConnection:
    return RawConnection(
        stream=stream,
        local_address=tcp_address(*stream.socket.getsockname()[:2]),
        remote_address=tcp_address(*stream.socket.getpeername()[:2]),
    )


def _endpoint(address: Multiaddr) -> _Endpoint | None:
    parts = list(address.items())
    if len(parts) != 2 or parts[0][0].name not in _FAMILIES or parts[1][0].name != "tcp":
        return None
    return _Endpoint(parts[0][0].name, parts[0][1], int(parts[1][1]))


def _checked_endpoint(address: Multiaddr) -> _Endpoint:
    endpoint = _endpoint(address)
    if endpoint is None:
        raise DialError(f"{address} is not an address TCP can dial")
    return endpoint


def _listen_error(error: OSError, address: Multiaddr) -> AddressInUseError | InvalidAddressError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{address} is taken by another program; stop it, or listen on another port "
            "(0 lets the system choose)"
        )
    if error.errno == errno.EACCES:
        return InvalidAddressError(
            f"this user may not listen on {address}; choose a port above 1023"
        )
    return InvalidAddressError(f"this machine cannot listen on {address}: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
