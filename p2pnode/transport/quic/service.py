"""QUIC on UDP sockets: `/ip4/<ip>/udp/<port>/quic-v1`, and its forms with IPv6 and names.

One socket serves a listen address: all connections that come in there, and those dialled from
there, so that every NAT on the way shows a peer the endpoint at which this node can be reached.
Dials that have no such socket share one of their own for each kind of IP. A socket is closed when
nobody listens on it and its last connection has ended.
"""

import ipaddress
import os
from collections.abc import Sequence
from typing import Final, Protocol

import trio
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError, InvalidAddressError, NoRouteError
from p2pnode.transport.base import Listener, SecuredConnection, Transport
from p2pnode.transport.interfaces import own_addresses
from p2pnode.transport.quic.carrier import Carrier, address_of, ip_of, open_socket
from p2pnode.transport.quic.core import ALPN, INITIAL_WINDOW
from p2pnode.transport.quic.endpoint import ID_BYTES, VERSIONS, QuicEndpoint
from p2pnode.transport.quic.session import QuicSession
from p2pnode.transport.reuse import Endpoint, choose_source, route_source
from p2pnode.transport.tcp import listen_error
from p2pnode.wire.addresses import quic_address
from p2pnode.wire.keys import PublicKey

_IPS: Final = frozenset({"ip4", "ip6"})
_HOSTS: Final = _IPS | {"dns", "dns4", "dns6"}
_NOISE_BYTES: Final = 64
_NOISE_INTERVAL: Final = 0.1  # seconds; the specification has 10 to 200 ms


class Identity(Protocol):
    """Who this node is, and how it finds out who others are: `p2pnode.security.tls`."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def verify(self, chain: Sequence[x509.Certificate]) -> PublicKey:
        """Return whose certificates these are.

        Raises:
            HandshakeError: they prove nothing.
        """


class QuicTransport(Transport):
    """Connections over QUIC.

    Args:
        identity: this node's certificate, and the check of others'.
        settings: limits and timeouts.
    """

    def __init__(self, identity: Identity, settings: NetworkSettings | None = None) -> None:
        self._settings = settings or NetworkSettings()
        self._identity = identity
        self._configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            certificate=identity.certificate,
            private_key=identity.private_key,
            connection_id_length=ID_BYTES,
            congestion_control_algorithm="cubic",
            idle_timeout=self._settings.quic_idle_timeout,
            max_data=self._settings.quic_base_window,
            max_datagram_size=self._settings.quic_max_datagram,
            max_stream_data=INITIAL_WINDOW,
            supported_versions=list(VERSIONS),
            verify_mode=0,  # no authorities: `identity` checks
        )
        self._nursery: trio.Nursery | None = None
        self._carriers: list[Carrier] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry all sockets, and close them in the end."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        names = [protocol.name for protocol in address.protocols()]
        return len(names) == 3 and names[0] in _HOSTS and names[1:] == ["udp", "quic-v1"]

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> SecuredConnection:
        """See `Transport`; the peer has proven who it is, which may be anybody.

        Raises:
            HandshakeError: somebody answers, but no peer that proves who it is.
        """
        target = endpoint_of(address)
        if target is None or target.ip.is_unspecified or not target.port:
            raise DialError(f"{address} is not an address QUIC can dial; it needs an IP and a port")
        source = route_source(target)
        if source is None:
            raise NoRouteError(f"{address} cannot be reached: this machine has no route there")
        carrier = await self._carrier_for(target, reuse_port=reuse_port)
        session = carrier.connect(target)
        try:
            await session.established.wait()
        except BaseException:
            await trio.aclose_forcefully(session)
            raise
        core = session.core
        if core.identity is None:
            assert core.failure is not None
            if core.engine.has_begun:
                raise core.failure
            raise DialError(f"{address} cannot be reached: {core.failure}")
        return SecuredConnection(
            session=session,
            public_key=core.identity,
            local_address=quic_address(str(source), carrier.endpoint.port),
            remote_address=quic_address(str(target.ip), target.port),
        )

    async def listen(self, address: Multiaddr) -> "QuicListener":
        """See `Transport`."""
        await trio.lowlevel.checkpoint()
        endpoint = endpoint_of(address)
        if endpoint is None:
            raise InvalidAddressError(
                f"cannot listen on {address}; give an IP address and a port, "
                "such as /ip4/0.0.0.0/udp/4001/quic-v1"
            )
        for carrier in self._carriers:  # its listener was closed, and its connections live on
            if carrier.endpoint == endpoint and not carrier.core.is_listening:
                return QuicListener(carrier)
        try:
            carrier = await self._open(endpoint)
        except OSError as error:
            raise listen_error(address, error) from error
        return QuicListener(carrier)

    def can_punch(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return endpoint_of(address) is not None

    async def punch(self, address: Multiaddr, *, is_client: bool) -> SecuredConnection:
        """See `Transport`; the client dials, the other side sends datagrams of noise.

        They make its NAT expect the client's. (libp2p/specs, DCUtR.)
        """
        if is_client:
            return await self.dial(address)
        target = endpoint_of(address)
        carrier = None if target is None else self._listening_carrier(target)
        if carrier is None or target is None:
            raise DialError(
                f"no hole can be punched to {address}: this node does not listen on UDP"
            )
        while True:
            carrier.send([(os.urandom(_NOISE_BYTES), address_of(target))])
            await trio.sleep(_NOISE_INTERVAL)

    def _listening_carrier(self, target: Endpoint) -> "Carrier | None":
        listening = {each.endpoint: each for each in self._carriers if each.core.is_listening}
        source = choose_source(target, listening)
        return None if source is None else listening[source]

    async def _carrier_for(self, target: Endpoint, *, reuse_port: bool) -> "Carrier":
        if reuse_port and self._settings.reuse_port:
            carrier = self._listening_carrier(target)
            if carrier is not None:
                return carrier
        anywhere = ipaddress.ip_address("0.0.0.0" if target.ip.version == 4 else "::")  # noqa: S104  # to dial from
        for carrier in self._carriers:
            if carrier.is_for_dials and carrier.endpoint.ip == anywhere:
                return carrier
        try:
            return await self._open(Endpoint(anywhere, 0), is_for_dials=True)
        except OSError as error:
            raise NoRouteError(f"this machine gives no UDP socket: {error.strerror}") from error

    async def _open(self, endpoint: Endpoint, *, is_for_dials: bool = False) -> "Carrier":
        if self._nursery is None:
            raise RuntimeError("the transport does not run")
        opened = open_socket(endpoint, self._settings)
        core = QuicEndpoint(
            self._configuration,
            verify=self._identity.verify,
            settings=self._settings,
            token_bytes=os.urandom,
        )
        carrier = Carrier(opened, core, self._settings, self._forget, is_for_dials=is_for_dials)
        self._carriers.append(carrier)
        self._nursery.start_soon(carrier.run)
        return carrier

    def _forget(self, carrier: "Carrier") -> None:
        self._carriers.remove(carrier)


class QuicListener(Listener):
    """Takes the connections that begin at one socket."""

    def __init__(self, carrier: "Carrier") -> None:
        self._carrier = carrier
        self._is_closed = False
        carrier.core.is_listening = True

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        ip, port = self._carrier.endpoint
        if not ip.is_unspecified:
            return [quic_address(str(ip), port)]
        return [quic_address(str(own), port) for own in own_addresses(ip.version)]

    async def accept(self) -> SecuredConnection:
        """See `Listener`; the peers have proven who they are."""
        await trio.lowlevel.checkpoint()
        while not self._is_closed:
            session = self._carrier.take()
            if session is not None:
                return self._connection(session)
            await self._carrier.ready.wait()
        raise trio.ClosedResourceError("the listener is closed")

    def _connection(self, session: QuicSession) -> SecuredConnection:
        remote = session.core.engine.get_peer_address()
        assert remote is not None
        assert session.core.identity is not None
        local = self._carrier.endpoint
        if local.ip.is_unspecified:
            source = route_source(Endpoint(ip_of(remote[0]), remote[1]))
            local = Endpoint(source or local.ip, local.port)
        return SecuredConnection(
            session=session,
            public_key=session.core.identity,
            local_address=quic_address(str(local.ip), local.port),
            remote_address=quic_address(remote[0], remote[1]),
        )

    async def aclose(self) -> None:
        """See `Listener`."""
        if not self._is_closed:
            self._is_closed = True
            self._carrier.stop_listening()
        await trio.lowlevel.checkpoint()


def endpoint_of(address: Multiaddr) -> Endpoint | None:
    """Return where `/ip4/<ip>/udp/<port>/quic-v1`, or its IPv6 form, leads; None for others."""
    parts = list(address.items())
    names = [protocol.name for protocol, _ in parts]
    if len(parts) != 3 or names[0] not in _IPS or names[1:] != ["udp", "quic-v1"]:
        return None
    return Endpoint(ipaddress.ip_address(parts[0][1]), int(parts[1][1]))
